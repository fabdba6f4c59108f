"""Problem sets of the tiny profile's toy."""

from __future__ import annotations

import random
from functools import lru_cache

from npr_lib.tasks.parts import task
from npr_lib.tasks.parts.task import TERMS, Parts
from npr_lib.tasks.problems import (
    SHARES,
    Problem,
    ProblemSet,
    Split,
    number,
    required,
    split_of,
    text_id,
)


def load(
    split: Split,
    seed: int,
    count: int | None,
    parts: list[int] | tuple[int, int] = (2, 4),
    terms: int = TERMS,
    linked: float = 1.0,
    dependent: float = 0.5,
    shuffled: float = 0.5,
    shares: dict[Split, float] = SHARES,
) -> ProblemSet:
    """parts: [fewest, most] parts of a problem, drawn uniformly; terms: operands of a part; linked:
    the share of problems in which parts may depend on each other; dependent, shuffled: chances of
    `task.draw_parts` there."""
    fewest, most = parts
    if not 1 <= fewest <= most <= len(task.LABELS):
        limit = len(task.LABELS)
        raise ValueError(f"parts: [fewest, most] must lie in 1..{limit}: {[fewest, most]}")
    pool = _pool(terms, split, tuple(shares.items()))
    count = required(count, split, "parts")
    room = sum(len(pool) ** n for n in range(fewest, most + 1))
    if 2 * count > room:
        raise ValueError(f"{count} distinct problems asked of the {split} split, which has {room}")
    draw = random.Random(number("parts", split, seed))
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        chance = dependent if draw.random() < linked else 0.0
        drawn = task.draw_parts(pool, draw.randint(fewest, most), chance, shuffled, draw)
        problem = parts_problem(drawn)
        problems.setdefault(problem.id, problem)
    return ProblemSet(problems.values(), "exact")


def parts_problem(parts: Parts) -> Problem:
    """The problem with these parts, e.g. "A=7-2+3+1;B=A+1-2-3;values?"."""
    text = task.write(parts)
    return Problem(text_id("parts", text), text, task.answer(parts), {"parts": dict(parts)})


@lru_cache
def _pool(terms: int, split: Split, shares: tuple[tuple[Split, float], ...]) -> tuple[str, ...]:
    """The expressions that a split owns."""
    return tuple(e for e in task.expressions(terms) if split_of(e, dict(shares)) == split)
