"""The explorer as a widget for JupyterLab and VS Code; its data are `data`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anywidget
import pandas as pd
import traitlets

from npr_lib.viz.explorer import data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from npr_lib.reasoning.trajectory import Trajectory


class Explorer(anywidget.AnyWidget):
    """The front end with its table; a trajectory follows when it is asked for.

    Messages from the front end: {"ask": "record", "value": row} or {"ask": "find", "value": words};
    each is answered by {"reply": ..., "value": ..., "content": ...}. A reply may also come unasked:
    "record" of a row, "table" of all.

    rollouts: what is shown, in the table's order.
    """

    _esm = data.script()
    _css = data.style()
    table = traitlets.Dict().tag(sync=True)

    def __init__(
        self, rollouts: pd.DataFrame, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        super().__init__(table=data.table(rollouts))
        self._tokenizer = tokenizer
        self._pieces = data.reader(tokenizer) if tokenizer else None
        self.hold(rollouts)
        self.on_msg(self._answer)

    def hold(self, rollouts: pd.DataFrame) -> None:
        """Answer from other rollouts from now on; what is drawn stays."""
        self.table = data.table(rollouts)
        self.rollouts = rollouts
        self._read = data.records(rollouts, self._tokenizer)
        self._updated: dict[int, dict[str, Any]] = {}
        self._answers: dict[str, Callable[[Any], Any]] = {
            "record": self._record,
            "find": lambda words: data.find(rollouts, words),
        }

    def _record(self, row: int) -> dict[str, Any]:
        return self._updated.get(row) or self._read(row)

    def _answer(self, _: Explorer, message: dict[str, Any], buffers: list) -> None:
        kind, value = message["ask"], message["value"]
        self._reply(kind, value, self._answers[kind](value))

    def _reply(self, kind: str, value: Any, content: Any) -> None:
        self.send({"reply": kind, "value": value, "content": content})

    def update(
        self, row: int, trajectory: Trajectory, prompt: str = "", decoding: bool = False
    ) -> None:
        """Show another trajectory in place of a row's, wherever that row is open.

        decoding: there is more to come, and what is still open in it is no violation.
        """
        record = data.record(trajectory, self._pieces, prompt)
        if decoding:
            record |= {"ended": None, "violations": []}
        self._updated[row] = record
        self._reply("record", row, record)


def explore(rollouts: pd.DataFrame, tokenizer: PreTrainedTokenizerBase | None = None) -> Explorer:
    """Rollouts to look into: a table, and of the chosen response everything on one page.

    Args:
        rollouts: what `read_rollouts` returns, several of them concatenated to compare stages, with
            any of the columns `data.COLUMNS`; "accuracy" tells right from wrong.
        tokenizer: shows texts token by token; without it they are shown whole.

    Raises:
        ValueError: the table holds no rollouts.
    """
    return Explorer(rollouts, tokenizer)
