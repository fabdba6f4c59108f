"""What if: the explorer with edits of the selected part; the engine goes on from what they keep."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pandas as pd

from npr_lib.engine import edit
from npr_lib.engine.api import Engine, Prefix, SamplingParams
from npr_lib.reasoning.layout import BranchPath, Segment, branch_paths
from npr_lib.reasoning.trajectory import Trajectory, from_row, to_rows
from npr_lib.viz.explorer.widget import Explorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESAMPLE = "resample from here"
Verify = Callable[[str | None, pd.Series], bool]
"""Whether an answer (what is in the last box, None: no box) is right for the problem of a row."""
KEPT = ("problem_id", "problem", "answer")  # of a row, in those of its attempts
_PLAN = re.compile(r"<plan>\s*\d+\s*:(.*?)</plan>", re.DOTALL)
_STEP_TAGS = re.compile(r"^\s*<step>\s*\d+\s*:|</step>\s*$")


@dataclass(frozen=True, slots=True)
class Edit:
    """What can be done with a part.

    text: what a person begins to write from; None where nothing is to be written.
    prefix: from the written text, what the engine goes on from.
    """

    label: str
    text: str | None
    prefix: Callable[[str], Prefix]


def edits(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, segment: Segment
) -> list[Edit]:
    """What can be done with a segment of a trajectory, in the order of the buttons."""
    first = max(0, segment.start - len(trajectory.prompt_ids))
    found = [Edit(RESAMPLE, None, lambda _: edit.cut(trajectory, tokenizer, first))]
    if trajectory.mode == "sequential":  # it has no branch that could stay while another changes
        return found
    segments, depth = trajectory.segments, len(segment.path)
    paths, i = branch_paths(segments), segments.index(segment)
    if segment.kind == "step":
        found += _of_branch(trajectory, tokenizer, segment, paths[i])
    elif segment.kind == "takeaway":
        block = paths[i - 1][depth][0]  # what stands before it is its block's last branch
        text = re.sub(r"</?takeaway>", "", trajectory.segment_text(segment))
        text = text.removeprefix(trajectory.style.in_takeaway)
        rewrite = partial(edit.rewrite_takeaway, trajectory, tokenizer, block, parent=paths[i])
        found.append(Edit("rewrite this takeaway", text, rewrite))
    elif segment.kind == "guideline" and len(paths[i : i + 2][-1]) > depth:
        block = paths[i + 1][depth][0]
        for branch, plan in enumerate(_plans(trajectory, segment)):
            path = (*paths[i], (block, branch))
            change = partial(edit.change_plan, trajectory, tokenizer, path)
            found.append(Edit(f"edit plan {branch + 1}", plan, change))
    return found


def _of_branch(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    segment: Segment,
    path: BranchPath,
) -> list[Edit]:
    segments, branch = trajectory.segments, path[-1][1]
    begin = next(s for s in segments if s.path == segment.path)
    outer = [s for s in segments[: segments.index(begin)] if s.path == segment.path[:-1]]
    plans = _plans(trajectory, outer[-1])  # in front of a block stands its guideline
    plan = "".join(plans[branch : branch + 1])  # none where spelled tags hide it
    text = _STEP_TAGS.sub("", trajectory.segment_text(begin))
    text = text.removesuffix(trajectory.style.end_of_step)
    where = (trajectory, tokenizer, path)
    found = [
        Edit("edit this plan", plan, partial(edit.change_plan, *where)),
        Edit("rewrite this branch", text, partial(edit.rewrite_branch, *where)),
    ]
    if len(plans) > 1:
        found.append(Edit("drop this branch", None, lambda _: edit.drop_branch(*where)))
    return found


def _plans(trajectory: Trajectory, guideline: Segment) -> list[str]:
    return _PLAN.findall(trajectory.segment_text(guideline))


class WhatIf(Explorer):
    """The explorer with edits; each attempt is a further row, shown beside the one it came from.

    rollouts: the given ones and the attempts. Of these `edit` says what was done, `origin` to
        which row (as numbered here), and `seed` what it was sampled with; `accuracy` is there if
        there is something to verify with.

    One more message: {"ask": "edit", "value": the arguments of `attempt`}.
    """

    def __init__(
        self,
        engine: Engine,
        rollouts: pd.DataFrame,
        tokenizer: PreTrainedTokenizerBase,
        params: SamplingParams,
        verify: Verify | None = None,
    ) -> None:
        super().__init__(rollouts.reset_index(drop=True), tokenizer)
        self._verify = verify
        self._engine = engine
        self._params = params
        self._seeds = count(params.seed + 1)
        self._loop = _running_loop()

    def attempt(
        self, row: int, segment: int, label: str, text: str = "", token: int | None = None
    ) -> int:
        """Edit a segment of a row's response and decode the rest anew; the number of the new row.

        A resampling takes a seed that was not used before, any other edit that of the parameters.

        Args:
            token: of the segment, counted from the prompt's first: where a resampling begins.

        Raises:
            ValueError: the segment has no such edit or token, or the engine can't go on from it.
        """
        trajectory = from_row(self.rollouts.iloc[row])
        node = self._record(row)["segments"][segment]
        offered = {one.label: one for one in self._edits(trajectory, node)}
        if label not in offered:
            raise ValueError(f"{node['name']} of row {row}: {label!r} is none of {[*offered]}")
        what, params = f"{node['name']}: {label}", self._params
        if label == RESAMPLE:
            params = replace(params, seed=next(self._seeds))
        if token is None:
            prefix = offered[label].prefix(text)
        else:
            prefix, what = self._from_token(trajectory, node, label, token)
        prompts, mode = [trajectory.prompt_ids], trajectory.mode
        (made,) = self._engine.generate(prompts, params, mode=mode, prefix=prefix)
        known = {name: self.rollouts[name].iloc[row] for name in KEPT if name in self.rollouts}
        known |= {"edit": what, "origin": row, "seed": params.seed}
        if self._verify:
            right = self._verify(made.graph.boxed, self.rollouts.iloc[row])
            known["accuracy"] = float(right)
        new = to_rows([made], **known).astype({"origin": "Int64", "seed": "UInt64"})
        self.hold(pd.concat([self.rollouts, new], ignore_index=True))
        return len(self.rollouts) - 1

    def _from_token(
        self, trajectory: Trajectory, node: dict[str, Any], label: str, token: int
    ) -> tuple[Prefix, str]:
        """What a resampling from a token goes on from, and what it is called."""
        name, first = node["name"], token - len(trajectory.prompt_ids)
        if label != RESAMPLE or first < 0 or not node["start"] <= token < node["end"]:
            raise ValueError(f"{label!r} of {name}: token {token} is none of it to resample from")
        written = node["tokens"][token - node["start"]][:40]
        return edit.cut(trajectory, self._tokenizer, first), f"{name}: resample from “{written}”"

    def _edits(self, trajectory: Trajectory, node: dict[str, Any]) -> list[Edit]:
        path = tuple(tuple(step) for step in node["path"])
        segment = Segment(node["kind"], path, node["start"], node["end"])
        return edits(trajectory, self._tokenizer, segment)

    def _record(self, row: int) -> dict[str, Any]:
        record, trajectory = super()._record(row), from_row(self.rollouts.iloc[row])
        for node in record["segments"]:
            node["edits"] = [[one.label, one.text] for one in self._edits(trajectory, node)]
        return record

    def _answer(self, widget: Explorer, message: dict[str, Any], buffers: list) -> None:
        if message["ask"] != "edit":
            super()._answer(widget, message, buffers)
        elif self._loop is None:
            self._edit(message["value"])
        else:
            # JupyterLab delivers messages on a thread of their own; the engine belongs to one only.
            self._loop.call_soon_threadsafe(self._edit, message["value"])

    def _edit(self, value: dict[str, Any]) -> None:
        try:
            row = self.attempt(**value)
        except Exception as error:
            self._reply("edit", value, {"error": f"{type(error).__name__}: {error}"})
            if not isinstance(error, ValueError):  # that one says what was wrong with the edit
                raise
        else:
            self._reply("table", row, self.table)
            self._reply("edit", value, {"row": row})


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def what_if(
    engine: Engine,
    rollouts: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    params: SamplingParams,
    verify: Verify | None = None,
) -> WhatIf:
    """The explorer, and for the selected part what could have been otherwise: resample from there
    or from a token of it, edit a plan, rewrite a branch or a takeaway, drop a branch. What has not
    seen the change stays, the rest is decoded again and shown beside the response as it was.

    Args:
        verify: tells whether an attempt is right, from its answer and the row it came from;
            without it attempts have no verdict.

    Raises:
        ValueError: the table holds no rollouts.
    """
    return WhatIf(engine, rollouts, tokenizer, params, verify)
