"""How responses divide their problems, where those have parts, and what that has to do with their
accuracy.

A response is put into one of `KINDS` by its plans alone, whatever its steps come to:

- *divided*: every part is in exactly one plan, alone, and no part is begun before its parent's
  value can be seen (from an earlier block);
- *shared*: the same, but some plan holds several parts;
- *blind*: some part stands in a branch that can't see its parent's value: in parallel it lies in
  a sibling branch, or is not worked out yet. (Decoded one token after the other, a step does see
  its earlier siblings; the kind is named by what parallel decoding would show.)
- *broken*: no valid response, or parts are missing, repeated or made up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import pandas as pd

from npr_lib.identity import resolve
from npr_lib.reasoning.graph import ReasoningGraph
from npr_lib.reasoning.trajectory import row_graph
from npr_lib.tasks.parts.task import Parts, levels, parent, read, ready

KINDS = ("divided", "shared", "blind", "broken")


# Kinds of problems that can be read this way: what gives the `Reading` of a problem's text.
READINGS = {"parts": f"{__name__}:toy", "stories": "npr_lib.tasks.parts.stories:reading"}


class Reading(NamedTuple):
    """The parts of a problem, and how a plan's text and a step's text name them: as labels."""

    parts: Parts
    planned: Callable[[str], list[str]]
    worked: Callable[[str], list[str]]


def toy(problem: str) -> Reading:
    return Reading(read(problem), _planned, _worked)


def _planned(plan: str) -> list[str]:
    return plan.split(",")


def _worked(step: str) -> list[str]:
    return re.findall(r"(?:^|,)([A-Z])=", step)


def applies(problems: Mapping[str, Any]) -> bool:
    """Whether the problems of a profile can be read this way."""
    return problems.get("kind") in READINGS


def reading(problem: str) -> Reading:
    """The reading of a problem's text, by the kind whose it is. ValueError if it is none's."""
    for named in READINGS.values():
        with suppress(ValueError):
            return resolve(named)(problem)
    raise ValueError(f"not a problem of kind {' or '.join(READINGS)}: {problem!r}")


class Division(NamedTuple):
    """One response: its kind, its branches and how many of them work on other parts than their
    plan names, and, block by block, (parts that could be begun, branches)."""

    kind: str
    branches: int
    wrong_parts: int
    blocks: tuple[tuple[int, int], ...]


def divide(
    parts: Parts,
    graph: ReasoningGraph,
    planned_by: Callable[[str], list[str]] = _planned,
    worked_in: Callable[[str], list[str]] = _worked,
) -> Division:
    """How a response divides these parts (the rest as in `Reading`)."""
    done: set[str] = set()
    planned: list[str] = []
    blind = shared = False
    branches, wrong, blocks = 0, 0, []
    for block in graph.blocks:
        plans = [planned_by(plan.text) for plan in block.plans]
        blocks.append((len(ready(parts, done)), len(plans)))
        for labels in plans:
            seen = set(done)
            shared |= len(labels) > 1
            for label in labels:
                blind |= label in parts and parent(parts[label]) not in seen | {None}
                seen.add(label)
        named = {plan.index: labels for plan, labels in zip(block.plans, plans, strict=True)}
        for step in block.steps:
            branches += 1
            wrong += sorted(worked_in(step.text)) != sorted(named.get(step.index, []))
        planned += [label for labels in plans for label in labels]
        done |= {label for labels in plans for label in labels}
    whole = graph.valid and sorted(planned) == sorted(parts)
    kind = "broken" if not whole else "blind" if blind else "shared" if shared else "divided"
    return Division(kind, branches, wrong, tuple(blocks))


def divisions(frame: pd.DataFrame) -> pd.DataFrame:
    """The rollouts with the columns of `Division`, and `parts`, `independent` and `depth` (blocks
    that a response needs at least) of their problems. ValueError for other kinds of problems."""
    tasks = {problem: reading(problem) for problem in frame["problem"].unique()}
    found = []
    for row in frame.itertuples():
        parts, planned, worked = tasks[row.problem]
        above = levels(parts).values()
        division = divide(parts, row_graph(row._asdict()), planned, worked)
        independent = sum(level == 0 for level in above)
        found.append((*division, len(above), independent, max(above) + 1))
    columns = [*Division._fields, "parts", "independent", "depth"]
    return frame.reset_index(drop=True).join(pd.DataFrame(found, columns=columns))
