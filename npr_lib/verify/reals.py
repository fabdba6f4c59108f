"""Sets of real numbers, however they are written: intervals, unions, inequalities, conditions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sympy

from npr_lib.verify.answers import Answer
from npr_lib.verify.formula import FUNCTIONS, Unread, read


def same_reals(a: Answer, b: Answer) -> bool | None:
    """Whether two answers describe the same set of reals; None where one describes none."""
    first, second = _region(a), _region(b)
    if first is None or second is None:
        return None
    (one, x), (two, y) = first, second
    if x and y and x != y:
        return False
    return bool(one == two or one.symmetric_difference(two) == sympy.S.EmptySet)


def _region(a: Answer, within: bool = False) -> tuple[Any, str] | None:
    """(the set of reals it describes, the variable it names or ""), None for other answers. within:
    a union, where numbers in braces are a set of reals too."""
    if a.kind == "tuple" and len(a.parts) == 2:
        ends = _ends(a.parts)
        if ends is None or (ends[0] < ends[1]) != sympy.true:
            return None
        return sympy.Interval(*ends, a.text[0] == "(", a.text[1] == ")"), ""
    if a.kind in ("union", "list"):
        inner = (_region(part, within=a.kind == "union") for part in a.parts)
        found = [region for region in inner if region is not None]
        # a list of bare intervals is a set only where "or" stands between them
        intersects = a.kind == "list" and a.text != "or"
        if len(found) < len(a.parts) or (intersects and not all(name for _, name in found)):
            return None
        names = {name for _, name in found if name}
        if len(names) > 1:
            return None
        regions = [region for region, _ in found]
        name = names.pop() if names else ""
        if (a.kind, a.text) == ("union", "without"):
            return regions[0] - regions[1], name
        both = sympy.Intersection(*regions) if intersects else sympy.S.EmptySet
        # "x < 2, x > 3": no number is both, so either is meant
        either = not intersects or (both == sympy.S.EmptySet and a.text == ",")
        return (sympy.Union(*regions) if either else both), name
    if a.kind == "relation":
        return _solutions(a)
    if within and a.kind == "set" and (values := _ends(a.parts)):
        return sympy.FiniteSet(*values), ""
    if a.written == "\\mathbb{R}":
        return sympy.S.Reals, ""
    return None


def _ends(parts: Sequence[Answer]) -> list[Any] | None:
    try:
        ends = [read(part.items) for part in parts]
    except Unread:
        return None
    return ends if all(end.is_extended_real and not end.free_symbols for end in ends) else None


def _solutions(a: Answer) -> tuple[Any, str] | None:
    """Of `2 < x \\le 5`, `x > 3`, `x \\ne 12`, `x \\in (2,3)`: the set of x."""
    names = [i for i, part in enumerate(a.parts) if part.kind == "formula" and is_name(part)]
    if len(names) != 1:
        return None
    i = names[0]
    name = a.parts[i].written
    if a.operators == ("\\in",) and i == 0:
        inner = _region(a.parts[1])
        return (inner[0], name) if inner else None
    ends = _ends([part for j, part in enumerate(a.parts) if j != i])
    if ends is None or len(a.parts) > 3 or (len(a.parts) == 3 and i != 1):
        return None
    if a.operators == ("\\ne",):
        return sympy.S.Reals - sympy.FiniteSet(ends[0]), name
    if not set(a.operators) <= {"<", "\\le"}:
        return None
    low, high, open_low, open_high = -sympy.oo, sympy.oo, True, True
    if i > 0:
        low, open_low = ends[0], a.operators[i - 1] == "<"
    if i < len(a.parts) - 1:
        high, open_high = ends[-1], a.operators[i] == "<"
    return sympy.Interval(low, high, open_low, open_high), name


_A_LETTER = r"(?:[a-zA-Z]|\\(?!pi\b|infty\b)[a-zA-Z]+)(?:_\{[^{}]*\}|_.)?'*"
_A_NAME = re.compile(
    rf"{_A_LETTER}(?:\^\{{?-1\}}?)?(?:\({_A_LETTER}(?:,{_A_LETTER})*\)|\{{[a-zA-Z]\}})?|[A-Z]{{2,3}}"
    rf"|\({_A_LETTER}(?:,{_A_LETTER})+\)|"
)
_A_SUM = re.compile(rf"[0-9]*{_A_LETTER}(?:\+[0-9]*{_A_LETTER})*")


def is_name(side: Answer, sums: bool = False) -> bool:
    """Whether it is a name: a letter with its subscripts and accents, `f(x)` or `(x,y)`."""
    values = [t.value for t in side.items if t.kind != "text"]
    if any(value in FUNCTIONS for value in values) or values in (["i"], ["e"]):
        return False
    text = "".join(values)
    return bool(_A_NAME.fullmatch(text) or (sums and _A_SUM.fullmatch(text)))
