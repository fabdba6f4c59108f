r"""The format reward, the accuracy reward and what stages 1 and 3 make of them.

**Format.** `PENALTIES` gives every kind of violation its penalty. The reward is their sum over
the kinds present, each once however often it occurs; only the kinds in `PER_ITEM` count once for
every plan, step or takeaway concerned ("-0.4 for each ..."). An item that holds tags is not
measured, so no item is counted twice. The sum is clipped at -2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from npr_lib.reasoning.schema import ReasoningGraph, ViolationKind, last_boxed, parse
from npr_lib.verify import math_equal

if TYPE_CHECKING:
    from npr_lib.reasoning.trajectory import Trajectory

Invalid = Literal["filter", "penalize"]

PENALTIES: Mapping[ViolationKind, float] = MappingProxyType(
    {
        ViolationKind.EMPTY: -2.0,
        ViolationKind.NO_BLOCK: -1.5,
        ViolationKind.TAGS_OUTSIDE_BLOCKS: -1.5,
        ViolationKind.NO_PLAN: -1.0,
        ViolationKind.COUNT_MISMATCH: -1.0,
        ViolationKind.TAGS_AFTER_BLOCKS: -1.0,
        ViolationKind.MISSING_BOX: -1.0,
        ViolationKind.MISPLACED_TAG: -1.0,
        ViolationKind.PLAN_INDEX: -1.0,
        ViolationKind.STEP_INDEX: -1.0,
        ViolationKind.UNCLOSED: -1.0,
        ViolationKind.TRUNCATED: -1.0,
        ViolationKind.TOO_MANY_BRANCHES: -1.0,
        ViolationKind.TOO_DEEP: -1.0,
        ViolationKind.SPELLED_TAG: -1.0,
        ViolationKind.SHORT_PLAN: -0.4,
        ViolationKind.SHORT_STEP: -0.4,
        ViolationKind.SHORT_TAKEAWAY: -0.4,
        ViolationKind.TAGS_IN_PLAN: -0.4,
        ViolationKind.TAGS_IN_STEP: -0.4,
        ViolationKind.TAGS_IN_TAKEAWAY: -0.4,
        ViolationKind.STRAY_TEXT_IN_GUIDELINE: -0.2,
        ViolationKind.STRAY_TEXT_BETWEEN_STEPS: -0.2,
        ViolationKind.STRAY_TEXT_OUTSIDE_BLOCKS: -0.2,
    }
)
PER_ITEM = frozenset(kind for kind, penalty in PENALTIES.items() if penalty == -0.4)
LOWEST_FORMAT_REWARD = -2.0


def format_reward(text_or_graph: str | ReasoningGraph, **parse_options: Any) -> float:
    """r_f in [-2, 0], 0 exactly when the response is valid (section 7).

    parse_options: those of `schema.parse`, for a text; TypeError together with a graph, which was
    already parsed under its own.
    """
    if isinstance(text_or_graph, ReasoningGraph):
        if parse_options:
            raise TypeError("format_reward takes parse options for a text, not for a graph")
        graph = text_or_graph
    else:
        graph = parse(text_or_graph, **parse_options)
    counts = Counter(violation.kind for violation in graph.violations)
    total = sum(PENALTIES[kind] * (n if kind in PER_ITEM else 1) for kind, n in counts.items())
    return max(LOWEST_FORMAT_REWARD, round(total, 1) + 0.0)


def accuracy_reward(
    text: str, answer: str, equal: Callable[[str, str], bool] = math_equal
) -> float:
    r"""r_a: 1 when the content of the last `\boxed{}` of the text is right, else -1.

    equal: (predicted, answer) -> bool. A text without a box is wrong, and nobody is asked.
    """
    predicted = last_boxed(text)
    if predicted is None:
        return -1.0
    return 1.0 if equal(predicted, answer) else -1.0


class Scored(Protocol):
    """What the rules below look at in a rollout (`npr_lib.train.rollout.Rollout`)."""

    trajectory: Trajectory
    format_reward: float
    correct: bool


def stage1_reward(rollout: Scored, partial_credit: bool = False) -> float:
    """NPR-Zero: the format first, then accuracy.

    A beginner breaks so much that r_f is -2 whatever it tries, prose as well as a block in which
    only the indices are wrong: nothing to reinforce. With `partial_credit` half of an invalid
    response's reward is r_f, half what is there already (`progress`), in [-2, 0). Without any of
    the form it is -2: a box alone, which r_f has something for, would be learnt before the tags.
    """
    if rollout.format_reward < 0:
        if not partial_credit:
            return rollout.format_reward
        there = progress(rollout.trajectory.text)
        return (rollout.format_reward - 2 + 2 * there) / 2 if there else LOWEST_FORMAT_REWARD
    return 1.0 if rollout.correct else -1.0


_FORM = (
    ("<guideline>",),
    ("<plan>", "</plan>"),
    ("</guideline>",),
    ("<step>", "</step>"),
    ("<takeaway>", "</takeaway>"),
)


def progress(text: str) -> float:
    r"""How much of a response's form is there, in sevenths: an opened guideline, a plan, the end of
    the guideline, a step, a takeaway, each after those before; and where any is, as many steps as
    plans, and a box."""
    at = found = 0
    for tags in _FORM:
        end = at
        for tag in tags:
            end = text.find(tag, end) if end >= 0 else -1
        if end >= 0:
            at, found = end, found + 1
    if found:
        found += text.count("</step>") == text.count("</plan>") > 0
        found += last_boxed(text[at:]) is not None
    return found / 7


def stage3_reward(rollout: Scored, invalid: Invalid = "filter", span_bonus: float = 0.0) -> float:
    """NPR: accuracy. A response with violations is left out of loss and statistics, which nan says
    ("filter", the paper's way), or kept at -1 ("penalize").

    A right answer earns 1 + span_bonus * (1 - span / work): more the shorter its critical path,
    against collapse into sequential reasoning (ThreadWeaver).
    """
    if invalid not in ("filter", "penalize"):
        raise ValueError(f"invalid must be 'filter' or 'penalize', not {invalid!r}")
    if rollout.format_reward < 0:
        return math.nan if invalid == "filter" else -1.0
    if not rollout.correct:
        return -1.0
    response = rollout.trajectory
    return 1.0 + span_bonus * (1 - response.span / response.work)
