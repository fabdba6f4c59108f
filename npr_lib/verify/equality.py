"""Whether two sympy expressions are the same: exactly, or at random points."""

from __future__ import annotations

import random
from typing import Any

import sympy
from sympy import Integer, Rational

from npr_lib.verify.formula import Unread

# What is defined, or meant, for integers only.
_WHOLE = (sympy.factorial, sympy.binomial, sympy.Sum, sympy.Product, sympy.Mod)
_STEPS = (sympy.floor, sympy.ceiling)  # of which n, as a rule, is an integer, and x is not
DIGITS = 120  # of numbers that aren't rational
POINTS = 12


def equal(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two expressions are the same: rationals exactly, other numbers to 100 digits, what
    has variables at `POINTS` random points near and far, of both signs.

    tolerance: relative, for two numbers. Unread: there is no telling.
    """
    if a == b:
        return True
    if a.has(sympy.oo, -sympy.oo, sympy.nan, sympy.zoo) or b.has(sympy.oo, -sympy.oo):
        return False
    a, b = a.doit(), b.doit()
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if not symbols:
        return _close(a, b, tolerance)
    draw = random.Random(0)
    whole = a.has(*_WHOLE) or b.has(*_WHOLE)
    steps = a.has(*_STEPS) or b.has(*_STEPS)
    integers = [whole or (steps and str(symbol) in "ijklmn") for symbol in symbols]
    seen = 0
    for k in range(POINTS):
        # of what is meant for integers: even and odd ones, and none twice
        values = [
            _whole(draw, k, j, 120 if whole else 3000) if integer else _real(draw, k)
            for j, integer in enumerate(integers)
        ]
        point = dict(zip(symbols, values, strict=True))
        at = [expression.subs(point).doit() for expression in (a, b)]
        if not all(value.is_number and value.is_finite for value in at):
            continue
        if not _close(at[0], at[1], tolerance):
            return False
        seen += 1
    if seen < 3:
        raise Unread("too few points at which both are defined")
    return True


def _whole(draw: random.Random, k: int, j: int, most: int) -> Any:
    return Integer(2 + k + 3 * j if k < POINTS // 2 else draw.randint(10, most))


def _real(draw: random.Random, k: int) -> Any:
    """A rational that is no integer, up to about 5, 60, or 1,300."""
    scale = (Rational(1, 37), Rational(1, 3), Rational(29, 4))[k % 3]
    return (draw.randint(-90, 90) * 2 + 1) * scale


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, Rational) and isinstance(b, Rational) and not tolerance:
        return bool(a == b)
    a, b = a.evalf(DIGITS), b.evalf(DIGITS)
    if not (a.is_number and b.is_number):
        raise Unread("no numbers")
    allowed = max(Rational(tolerance), Rational(1, 10 ** (DIGITS - 20)))
    return bool(abs(a - b) <= allowed * max(abs(a), abs(b)))
