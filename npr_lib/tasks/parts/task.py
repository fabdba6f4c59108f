"""The tiny task family "parts": what its problems are made of.

    A=7-2+3+1;B=4+1-2+6;C=A-5+2-1;values?        A = 9, B = 9, C = 9-5+2-1 = 5, so 9,9,5

A problem is a few labelled parts; the answer is the value of each, in the order of the labels, and
so right only if every part is. A part is a chain of
additions and subtractions that stays within 0..9. It is *independent* when it begins with a
number, and *dependent* when it begins with the label of another part, its parent, whose value it
needs: two independent parts can be worked out at the same time, a dependent one only after its
parent. So how far to divide a problem is a decision: wide where parts are independent, deep (one
block after another) where they aren't.

The *resolved* text of a part has its parent's value in the label's place ("9-5+2-1"): what is
computed, and what the splits share out (`npr_lib.tasks.problems`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

QUESTION = "values?"
LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TERMS = 4  # operands of a part, unless a profile says otherwise
Parts = Mapping[str, str]  # label -> "7-2+3+1" or "A-5+2-1", in the order of the labels


@lru_cache
def expressions(terms: int = TERMS) -> tuple[str, ...]:
    """Every "a±b±c..." of so many operands 1..9 whose running values are all 0..9."""
    found = [(str(a), a) for a in range(1, 10)]
    for _ in range(terms - 1):
        found = [
            (f"{text}{sign}{b}", value)
            for text, before in found
            for sign, step in (("+", 1), ("-", -1))
            for b in range(1, 10)
            if 0 <= (value := before + step * b) <= 9
        ]
    return tuple(text for text, _ in found)


def values(expression: str) -> list[int]:
    """The running values of a resolved expression: "7-2+3" gives [7, 5, 8]."""
    total, found = 0, []
    for sign, digit in re.findall(r"([+-]?)(\d)", expression):
        total += -int(digit) if sign == "-" else int(digit)
        found.append(total)
    return found


def parent(expression: str) -> str | None:
    """The label that a part begins with; None: it is independent."""
    return expression[0] if expression[0] in LABELS else None


def resolve(parts: Parts) -> dict[str, str]:
    """Every part with its parent's value in the place of the label."""

    def start(label: str) -> str:
        above = parent(parts[label])
        return parts[label][0] if above is None else str(value(above))

    def value(label: str) -> int:
        return values(start(label) + parts[label][1:])[-1]

    return {label: start(label) + expression[1:] for label, expression in parts.items()}


def solve(parts: Parts) -> dict[str, int]:
    """The value of every part."""
    return {label: values(text)[-1] for label, text in resolve(parts).items()}


def answer(parts: Parts) -> str:
    """All values in the order of the labels: "9,9,5"."""
    return ",".join(map(str, solve(parts).values()))


def levels(parts: Parts) -> dict[str, int]:
    """How many parts have to be done before each: 0 for an independent one."""

    def level(label: str) -> int:
        above = parent(parts[label])
        return 0 if above is None else level(above) + 1

    return {label: level(label) for label in parts}


def ready(parts: Parts, done: Collection[str]) -> list[str]:
    """The parts that can be worked out next: not done, and their parent, if any, is."""
    above = {label: parent(expression) for label, expression in parts.items()}
    return [p for p in parts if p not in done and (above[p] is None or above[p] in done)]


def write(parts: Parts) -> str:
    """The problem's text."""
    return "".join(f"{label}={expression};" for label, expression in parts.items()) + QUESTION


def read(problem: str) -> dict[str, str]:
    """The parts of a problem's text: the inverse of `write`. ValueError for any other text."""
    parts = dict(re.findall(r"([A-Z])=([A-Z1-9](?:[+-]\d)+);", problem))
    if not parts or write(parts) != problem:
        raise ValueError(f"not a problem of kind 'parts': {problem!r}")
    return parts


def draw_parts(
    pool: Sequence[str], count: int, dependent: float, shuffled: float, draw: random.Random
) -> dict[str, str]:
    """`count` parts whose resolved texts are all of the pool.

    Each after the first depends, with chance `dependent`, on one before it drawn uniformly (of
    those whose value some expression of the pool begins with; else it is independent). With chance
    `shuffled` labels are then given at random, so that a parent may come after its child.
    """
    by_start = _by_start(tuple(pool))
    labels = list(LABELS[:count])
    if draw.random() < shuffled:
        draw.shuffle(labels)
    parts: dict[str, str] = {}
    known: dict[str, int] = {}
    for label in labels:
        parents = [above for above, value in known.items() if value in by_start]
        if parents and draw.random() < dependent:
            above = draw.choice(parents)
            resolved = draw.choice(by_start[known[above]])
            parts[label] = above + resolved[1:]
        else:
            parts[label] = resolved = draw.choice(pool)
        known[label] = values(resolved)[-1]
    return dict(sorted(parts.items()))


@lru_cache
def _by_start(pool: tuple[str, ...]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for expression in pool:
        found.setdefault(int(expression[0]), []).append(expression)
    return found
