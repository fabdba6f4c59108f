"""Where a response may have gone wrong, as far as one can tell without knowing the problem."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from npr_lib.viz.names import segment_names

if TYPE_CHECKING:
    from npr_lib.reasoning.trajectory import Trajectory

_NUMBER = r"-?\d{1,15}(?:\.\d{1,15})?"
_FIRST, _LINK = re.compile(_NUMBER), re.compile(rf"([-+*/×·÷])\s*({_NUMBER})")
_EXPRESSION = re.compile(rf"{_NUMBER}(?:\s*[-+*/×·÷]\s*{_NUMBER})*")
# What makes an expression part of something larger, which is not read.
_BEFORE = re.compile(r"(?:[\w.]|[-+*/×·÷^)}\\]\s*)$")
_AFTER = re.compile(r"[\w(]|\.\d|\s*[-+*/×·÷^%!{\\]")
_NEAR = 8  # characters looked at on either side
_ABOUT = Fraction(1, 20)  # how far "~" may be off


def false_equations(text: str) -> list[tuple[int, int]]:
    """Spans (start, end) of "a = b" in `text` where both sides are plain arithmetic and differ.

    Chains ("7-2-3=5-3~5") are read link by link. What holds a letter, a power or a bracket is left
    alone, and so is a division by zero: no finding does not mean no error. Linear in the length.
    """
    found = []
    for left, right in pairwise(_EXPRESSION.finditer(text)):
        claim = text[left.end() : min(right.start(), left.end() + _NEAR)].strip()
        larger = _BEFORE.search(text[max(0, left.start() - _NEAR) : left.start()])
        larger = larger or _AFTER.match(text[right.end() : right.end() + _NEAR])
        if claim in ("=", "~", "≈") and not larger and not _agree(left[0], right[0], claim):
            found.append((left.start(), right.end()))
    return found


def slips(trajectory: Trajectory) -> list[tuple[str, str]]:
    """Name of a segment and an equation in it that does not hold, for every `false_equations`."""
    return [
        (name, text[start:end])
        for name, segment in zip(segment_names(trajectory), trajectory.segments, strict=True)
        if segment.kind != "prompt"
        for text in [trajectory.segment_text(segment)]
        for start, end in false_equations(text)
    ]


def doubt(trajectory: Trajectory) -> tuple[str, float]:
    """The part with the most surprising token: its name, and that token's −log p in nats.

    Guidelines are left out: in which order the parts of a problem are planned is free to choose.
    ("", 0.0) where nothing else was sampled.
    """
    prompt, most = len(trajectory.prompt_ids), ("", 0.0)
    for name, segment in zip(segment_names(trajectory), trajectory.segments, strict=True):
        if segment.kind not in ("prompt", "guideline"):
            own = trajectory.logprobs[segment.start - prompt : segment.end - prompt]
            surprise = max((-x for x in own if not math.isnan(x)), default=0.0)
            most = max(most, (name, surprise), key=lambda found: found[1])
    return most


def _agree(left: str, right: str, claim: str) -> bool:
    try:
        a, b = _value(left), _value(right)
    except ZeroDivisionError:
        return True
    digits = max(map(len, re.findall(r"\.(\d+)", f"{left} {right}")), default=None)
    tolerance = Fraction(0) if digits is None else Fraction(1, 2 * 10**digits)
    if claim != "=":
        tolerance = max(tolerance, _ABOUT * max(abs(a), abs(b)))
    return abs(a - b) <= tolerance


def _value(expression: str) -> Fraction:
    """Products before sums, from left to right."""
    first = _FIRST.match(expression)
    assert first is not None  # an expression begins with a number
    terms = [Fraction(first[0])]
    for operator, number in _LINK.findall(expression, first.end()):
        if operator in "+-":
            terms.append(Fraction(number) if operator == "+" else -Fraction(number))
        elif operator in "/÷":
            terms[-1] /= Fraction(number)
        else:
            terms[-1] *= Fraction(number)
    return sum(terms, Fraction(0))
