"""One response as a fragment of HTML, drawn by the explorer's front end wherever HTML is shown."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from npr_lib.reasoning.trajectory import to_rows
from npr_lib.viz.explorer import data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from npr_lib.reasoning.trajectory import Trajectory

VIEWS = ("graph", "text", "timeline", "mask", "positions", "surprises")
# Without what a still doesn't use: the table, edits, and the widget, which only a module may hold.
SCRIPT = data.script([m for m in data.MODULES if m not in ("table", "edits", "widget")])


class Response:
    """What `response` returns; a notebook shows it as its `_repr_html_`.

    The fragment holds script, style and data, so that it fetches nothing, and keeps them to itself:
    a page may hold several. Where no script may run, as in a notebook that is not trusted, it
    shows the response's text.
    """

    def __init__(self, shown: dict[str, Any], text: str) -> None:
        self.shown = shown  # what the front end is given: {table, record, views}
        self._text = text

    def __repr__(self) -> str:
        record, views = self.shown["record"], ", ".join(self.shown["views"])
        return f"Response({len(record['segments'])} segments, {record['work']} tokens: {views})"

    def _repr_html_(self) -> str:
        name = f"npr-{uuid4().hex}"  # a notebook may show the same response twice
        given = data.embedded(self.shown)
        # The classes keep MathJax from setting a response's formulas.
        return (
            f'<div id="{name}" class="tex2jax_ignore mathjax_ignore">'
            f"<pre>{html.escape(self._text)}</pre></div>\n"
            f"<style>{data.style()}</style>\n"
            f'<script type="application/json" id="{name}-data">{given}</script>\n'
            f"<script>\n(() => {{\n'use strict';\n{SCRIPT}"
            f'const given = document.getElementById("{name}-data");\n'
            f'const room = document.getElementById("{name}");\n'
            "const { views, ...held } = JSON.parse(given.textContent);\n"
            "mount(room, responseSource(held), views);\n})();\n</script>"
        )


def response(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase | None = None,
    problem: str = "",
    views: Sequence[str] = ("graph", "text", "timeline", "mask"),
    **known: object,
) -> Response:
    """One trajectory to look at in a notebook or a page: what forked where, and what came of it.

    Args:
        trajectory: of either engine, in either mode, finished or not.
        tokenizer: shows texts token by token; without it they are shown whole.
        problem: stands above it, and for the prompt where there is no tokenizer to read that.
        views: any of "graph" (the segments, branches side by side), "text" (the selected one, and
            what is known of it), "timeline" (who decoded in which step of the engine), "mask" (the
            attention that was executed), "positions", "surprises" (−log p and entropy by token).
        known: of `data.COLUMNS` what else is known, such as `answer`, `advantage`, `checkpoint`;
            `accuracy` tells right from wrong.

    Raises:
        ValueError: there is no such view, or none was asked for.
    """
    if unknown := [view for view in views if view not in VIEWS]:
        raise ValueError(f"no view {unknown[0]!r}: one of {', '.join(VIEWS)}")
    if not views:
        raise ValueError(f"no view: name some of {', '.join(VIEWS)}")
    pieces, prompt = None, problem
    if tokenizer:
        pieces = data.reader(tokenizer)
        prompt = tokenizer.decode(trajectory.prompt_ids, skip_special_tokens=False)
    rows = to_rows([trajectory], problem=problem, **known)
    shown = {"record": data.record(trajectory, pieces, prompt), "views": list(views)}
    return Response(
        {"table": data.table(rows, always={*data.ALWAYS, *known}), **shown}, trajectory.text
    )
