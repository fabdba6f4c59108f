r"""Formulas: LaTeX in `spelling`'s spelling -> tokens -> sympy.

Read by our own precedence climbing, in linear time and exactly: decimals are rationals, case
counts (`N` is not `n`), a subscript belongs to its letter, `3\frac14` is a mixed number, two
numbers side by side are no product. Numbers too large to be worked out are refused (`Unread`)
before they are tried. For integrals and limits the parser is asked that math-verify uses; all else
it reads otherwise than an answer is meant (`N` as `n`, `5 6` as 11, `E_0^2` not at all) and takes
exponential time over brackets in each other.
"""

# ruff: noqa: SIM905 - lists of words are words

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import sympy
from sympy import I, Integer, Rational, Symbol, pi

MAX_DEPTH = 50  # of brackets in each other
MAX_BITS = 200_000  # of a power that is worked out
MAX_FACTORIAL = 10_000

_LEXER = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)|\\text\s*\{(?P<text>[^{}]*)\}"
    r"|\\(?P<env>begin|end)\s*\{(?P<name>[a-zA-Z]+\*?)\}(?:\{[lcr|\s]*\})?"
    r"|(?P<command>\\(?:[a-zA-Z]+|.))|(?P<sign>\S))",
    re.DOTALL,
)


class Token(NamedTuple):
    """kind: number, text, begin, end, command, sign (letters among them)."""

    kind: str
    value: str


class Unread(Exception):  # noqa: N818 - not an error: the answer is of a kind that isn't read
    """What is written can't be read as a formula."""


def tokens(text: str) -> list[Token]:
    """The tokens of a spelled text. Dots that go on are text."""
    found = []
    for match in _LEXER.finditer(text):
        kind = str(match.lastgroup)
        value = match[kind]
        if kind == "name":
            kind, value = match["env"], match["name"].rstrip("*")
        elif kind == "text":
            value = " ".join(value.split())
        elif value == r"\dots":
            kind, value = "text", "..."
        found.append(Token(kind, value))
    return found


FUNCTIONS = {
    **{f"\\{f}": getattr(sympy, f) for f in "sin cos tan cot sec csc sinh cosh tanh".split()},
    **{f"\\arc{name}": getattr(sympy, f"a{name}") for name in "sin cos tan cot".split()},
    "\\ln": sympy.log,
    "\\log": sympy.log,
    "\\exp": sympy.exp,
    "\\gcd": sympy.gcd,
    "\\lcm": sympy.lcm,
    "\\max": sympy.Max,
    "\\min": sympy.Min,
}  # fmt: skip
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "|": "|", "\\lfloor": "\\rfloor"}
_CLOSING["\\lceil"] = "\\rceil"
_ACCENTS = (
    "\\dot",
    "\\ddot",
    "\\hat",
    "\\vec",
    "\\bar",
    "\\tilde",
    "\\overline",
    "\\overrightarrow",
    "\\mathbb",
    "\\mathcal",
)
_GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi"
    " rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi"
    " Omega hbar ell aleph nabla partial".split()
)
_ENDS = {"+", "-", "/", ")", "]", "}", "|", "\\}", "\\rfloor", "\\rceil", "\\times", ","}


class _Reader:
    """Precedence climbing over the tokens: sum, product, sign, power, atom."""

    def __init__(self, items: Sequence[Token]) -> None:
        self.items, self.i, self.depth, self.bars = items, 0, 0, 0
        self.bound: set[str] = set()  # indices of the sums around

    def peek(self, offset: int = 0) -> Token:
        i = self.i + offset
        return self.items[i] if i < len(self.items) else Token("sign", "")

    def take(self) -> Token:
        token = self.peek()
        self.i += 1
        return token

    def expect(self, value: str) -> None:
        if self.take().value != value:
            raise Unread(f"{value} is missing")

    def whole(self) -> Any:
        result = self.sum()
        if self.i < len(self.items):
            raise Unread(f"{self.peek().value!r} is not understood")
        return result

    def sum(self) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unread("too many brackets in each other")
        result = self.product()
        while self.peek().value in ("+", "-") and self.peek().kind == "sign":
            sign = 1 if self.take().value == "+" else -1
            result = result + sign * self.product()
        self.depth -= 1
        return result

    def product(self, in_function: bool = False) -> Any:
        result = self.signed()
        while True:
            token = self.peek()
            if token.value == "\\times":
                self.take()
                result = result * self.signed()
            elif token.value == "/":
                self.take()
                result = _quotient(result, self.signed())
            elif self.starts_atom(token) and not (in_function and token.value in FUNCTIONS):
                if token.kind == "number" and self.items[self.i - 1].kind == "number":
                    raise Unread("two numbers side by side")
                result = result * self.power()
            else:
                return result

    def starts_atom(self, token: Token) -> bool:
        if not token.value or token.value in _ENDS or token.kind in ("begin", "end", "text"):
            return bool(token.value == "|" and not self.bars)
        return token.kind != "sign" or token.value.isalpha() or token.value in ("(", "[", "{")

    def signed(self) -> Any:
        if self.peek().value in ("+", "-") and self.peek().kind == "sign":
            sign = 1 if self.take().value == "+" else -1
            return sign * self.signed()
        return self.power()

    def power(self) -> Any:
        result = self.atom()
        while True:
            value = self.peek().value
            if value == "^":
                self.take()
                result = _power(result, self.argument())
            elif value == "!":
                self.take()
                if self.peek().value == "!":
                    raise Unread("a double factorial")
                result = _factorial(result)
            elif value == "\\degree":
                self.take()
                result = result * pi / 180
            else:
                return result

    def argument(self) -> Any:
        """A group in braces, or the single digit, letter or command that stands for one."""
        token = self.peek()
        if token.value == "{":
            return self.group()
        if token.kind == "number" and len(token.value) > 1:
            digits = list(self.items)
            digits[self.i : self.i + 1] = [Token("number", d) for d in token.value]
            self.items = digits
        if token.value == "-":
            return self.signed()
        return self.atom()

    def group(self) -> Any:
        opening = self.take().value
        bars, self.bars = self.bars, 0
        result = self.sum()
        self.bars = bars
        closing = self.take().value
        if closing != _CLOSING[opening]:
            raise Unread(f"{opening} is not closed")
        return result

    def atom(self) -> Any:
        token = self.peek()
        if token.kind == "number":
            return self.number()
        if token.value in ("(", "[", "{"):
            return self.group()
        if token.value == "|":
            self.take()
            self.bars += 1
            result = sympy.Abs(self.sum())
            self.bars -= 1
            self.expect("|")
            return result
        if token.kind == "sign" and token.value.isalpha():
            self.take()
            if token.value in self.bound:
                return Symbol(token.value)
            if token.value in "ie" and self.peek().value not in ("_", "'"):
                return I if token.value == "i" else sympy.E
            return self.symbol(token.value)
        if token.kind == "command":
            return self.command(self.take().value)
        raise Unread(f"{token.value!r} is not understood")

    def number(self) -> Any:
        text = self.take().value
        value = Rational(Fraction(text.rstrip(".") or "0"))
        if self.peek().value in ("\\overline", "\\bar", "\\dot") and "." in text:
            self.take()
            digits = self.raw()
            if not digits.isdigit():
                raise Unread("no digits that repeat")
            places = len(text.partition(".")[2])
            return value + Rational(int(digits), (10 ** len(digits) - 1) * 10**places)
        if "." not in text and (part := self.mixed()) is not None:
            return value + part
        return value

    def mixed(self) -> Any:
        """The proper fraction right after an integer, None where there is none."""
        ahead = [self.peek(k).value for k in range(7)]
        numbers: tuple[str, str] | None = None
        if ahead[0] == "\\frac" and [ahead[i] for i in (1, 3, 4, 6)] == ["{", "}", "{", "}"]:
            numbers, length = (ahead[2], ahead[5]), 7
        elif ahead[0] == "\\frac" and len(ahead[1]) == 2 and ahead[1].isdigit():
            numbers, length = (ahead[1][0], ahead[1][1]), 2
        elif self.peek().kind == "number" and ahead[1] == "/":
            numbers, length = (ahead[0], ahead[2]), 3
        if numbers is None or not all(n.isdigit() for n in numbers):
            return None
        over, under = map(int, numbers)
        if not 0 < over < under:
            raise Unread("an integer and an improper fraction")
        self.i += length
        return Rational(over, under)

    def raw(self) -> str:
        """The text of a group or of one token, for names."""
        if self.peek().value != "{":
            return self.take().value
        self.take()
        depth, parts = 1, []
        while depth and self.peek().value:
            value = self.take().value
            depth += {"{": 1, "}": -1}.get(value, 0)
            parts.append(value if depth else "")
        return "".join(parts)

    def symbol(self, name: str) -> Any:
        while self.peek().value in ("_", "'"):
            name += "'" if self.take().value == "'" else "_" + self.raw()
        return Symbol(name)

    def command(self, name: str) -> Any:
        if name == "\\frac":
            return _quotient(self.argument(), self.argument())
        if name == "\\sqrt":
            index = self.group() if self.peek().value == "[" else Integer(2)
            return _power(self.argument(), 1 / index)
        if name == "\\binom":
            return _binomial(self.argument(), self.argument())
        if name in ("\\lfloor", "\\lceil"):
            result = self.sum()
            self.expect(_CLOSING[name])
            return (sympy.floor if name == "\\lfloor" else sympy.ceiling)(result)
        if name in ("\\sum", "\\prod"):
            return self.series(sympy.Sum if name == "\\sum" else sympy.Product)
        if name in FUNCTIONS:
            return self.function(name)
        if name in _ACCENTS:
            return self.symbol(f"{name} {self.raw()}")
        if name == "\\pi":
            return pi
        if name == "\\infty":
            return sympy.oo
        if name[1:] in _GREEK:
            return self.symbol(name)
        raise Unread(f"{name} is not understood")

    def function(self, name: str) -> Any:
        base = None
        exponent = Integer(1)
        while self.peek().value in ("_", "^"):
            if self.take().value == "_":
                base = self.argument()
            else:
                exponent = self.argument()
        if self.peek().value in ("(", "[", "{"):
            opening = self.take().value
            arguments = [self.sum()]
            while self.peek().value == ",":
                self.take()
                arguments.append(self.sum())
            self.expect(_CLOSING[opening])
        else:
            arguments = [self.product(in_function=True)]
        if name in ("\\gcd", "\\lcm") and not all(a.is_Integer for a in arguments):
            raise Unread(f"{name} of other than integers")
        if exponent == -1 and name in ("\\sin", "\\cos", "\\tan", "\\cot"):
            name, exponent = f"\\arc{name[1:]}", Integer(1)
        if base is not None:
            arguments.append(base)
        return FUNCTIONS[name](*arguments) ** exponent

    def series(self, kind: Any) -> Any:
        self.expect("_")
        self.expect("{")
        index = self.take().value
        self.expect("=")
        low = self.sum()
        self.expect("}")
        self.expect("^")
        high = self.argument()
        if (high - low).is_number and high - low > MAX_FACTORIAL:
            raise Unread("a sum or product of too many terms to be worked out")
        outer, self.bound = self.bound, self.bound | {index}
        term = self.product()
        self.bound = outer
        return kind(term, (Symbol(index), low, high))


def _quotient(over: Any, under: Any) -> Any:
    if under == 0:
        raise Unread("a division by zero")
    return over / under


def _power(base: Any, exponent: Any) -> Any:
    if base.is_infinite or exponent.is_infinite:
        raise Unread("a power of infinity")
    if isinstance(exponent, Integer) and isinstance(base, Rational) and base not in (0, 1, -1):
        bits = max(abs(base.p), base.q).bit_length()
        if abs(int(exponent)) * bits > MAX_BITS:
            raise Unread("a power too large to be worked out")
    elif exponent.is_number and base.is_number and abs(exponent.evalf(5, maxn=30)) > MAX_BITS:
        raise Unread("a power too large to be worked out")
    if base == 0 and not exponent.is_positive:
        raise Unread("a power of zero")
    return base**exponent


def _factorial(n: Any) -> Any:
    if n.is_number and not (isinstance(n, Integer) and 0 <= n <= MAX_FACTORIAL):
        raise Unread("no factorial that can be worked out")
    return sympy.factorial(n)


def _binomial(n: Any, k: Any) -> Any:
    if n.is_number and abs(n) > MAX_FACTORIAL:
        raise Unread("a binomial coefficient too large to be worked out")
    return sympy.binomial(n, k)


@lru_cache(maxsize=4096)
def read(items: tuple[Token, ...]) -> Any:
    """The sympy expression. Unread where it can't be."""
    if not items:
        raise Unread("nothing")
    try:
        if any(token.value in ("\\int", "\\iint", "\\lim") for token in items):
            return _calculus(" ".join(token.value for token in items))
        return _Reader(items).whole()
    except (TypeError, AttributeError, ValueError, ZeroDivisionError, RecursionError) as error:
        raise Unread(str(error)) from error


def _calculus(text: str) -> Any:
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    if text.count("(") + text.count("{") > MAX_DEPTH // 4:
        raise Unread("too many brackets")
    try:
        config = ConversionConfig(lowercase_symbols=False)
        return latex2sympy(text, normalization_config=None, conversion_config=config)
    except Exception as error:  # its parser raises bare ones
        raise Unread(str(error).partition("\n")[0]) from error
