r"""Whether two answers say the same: each is read into its kind, and kinds are compared.

    kind        written                              the same when
    words       \text{north east}, seven             the same words, but for case and a plural's s
    list, set   1, 2 and 3    \{1,2,3\}    \pm 1     the same elements, each as often, in any order
    tuple       (1,2,3)  \langle 1,2 \rangle         the same elements in order; a matrix of one
                                                     row or column is one
    interval    [2,5)    2 \le x < 5   x<2 or x>3    the same set of real numbers
    relation    y = 2x+3    x \ge 3                  the same up to order and a factor; beside a
                                                     bare value `name = value` says that value
    modular     n \equiv 3 \pmod 5                   the same class of the same modulus
    based       4210_5                               the same digits in the same base
    ratio       3:4    10:30                         part by part
    quantity    15\text{ cm}^2    45^\circ    28\%   the same number and unit; a missing unit is no
                                                     other one; times and lengths are converted
    table       matrices, cases                      cell by cell (rows of cases in any order)
    mixed       5\text{ red and }9\text{ blue}       piece by piece
    formula     \frac{n(n+1)}{2}                     `equality.equal`

Only equal spellings are equal where a formula can't be read. `Policy` says what a set of problems
wants otherwise.
"""

# ruff: noqa: SIM905 - lists of words are words

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sympy

from npr_lib.verify.answers import Answer, answer
from npr_lib.verify.equality import equal
from npr_lib.verify.formula import Token, Unread, read, tokens
from npr_lib.verify.policy import Policy
from npr_lib.verify.reals import is_name, same_reals
from npr_lib.verify.spelling import UNITS, spell

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty"
).split()


def verdict(expected: str, found: str, policy: Policy | None = None) -> bool | None:
    """`same`; None where `expected` is of a kind that isn't read."""
    try:
        return same(expected, found, policy)
    except Unread:
        return None if unreadable(expected) else False


def unreadable(expected: str) -> str | None:
    """Why an answer can't be compared with another writing of it, None where it can."""
    try:
        _read_all(answer(tokens(spell(expected))))
    except Unread as error:
        return str(error)
    return None


def _read_all(one: Answer) -> None:
    if one.kind == "broken":
        raise Unread("a relation without a side")
    if one.kind == "formula":
        read(one.items)
    for part in one.parts:
        _read_all(part)


def same(expected: str, found: str, policy: Policy | None = None) -> bool:
    """Whether `found` says what `expected` says. Unread where that can't be told."""
    policy = policy or Policy()
    # "1,200" is a number; within more than that it may be two
    for thousands in (True,) if _ONE_NUMBER.fullmatch(expected.strip(" $.")) else (True, False):
        one, two = spell(expected, thousands), spell(found, thousands)
        if not one or not two:
            return False
        if squeeze(one) == squeeze(two) or _choice(one, two):
            return True
        if _equal(answer(tokens(one)), answer(tokens(two)), policy):
            return True
        if "," not in expected + found:
            break
    return False


_ONE_NUMBER = re.compile(r"-?[0-9]{1,3}(?:(?:,|\{,\}|\\,|,\\!)[0-9]{3})+(?:\.[0-9]+)?")


def squeeze(text: str) -> str:
    """Without the white space that says nothing."""
    return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text)


_LETTER = re.compile(r"\(?([A-J])\)?")
_CHOSEN = re.compile(
    r"(?:(?:option|answer|choice)\s*:?\s*)?\(?([A-J])"
    r"(?:\)?|[.):](?:\s+(?P<rest>.*))?|\)\s+(?P<more>.*))",
    re.IGNORECASE,
)


# Another letter, or a word that takes it back. ("A" before a word is an article.)
_OTHER = re.compile(
    r"(?<![a-zA-Z'\\{])(?:[B-J]|A(?!\s+[a-z]))(?![a-zA-Z'}])|\b(?:no|not|or|wrong|incorrect)\b"
)


def _plain(text: str) -> str:
    """Without LaTeX around text."""
    return " ".join(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).split())


def chosen(text: str) -> str | None:
    """The letter A-J that an answer names, alone, in brackets, or before its option's text."""
    match = _CHOSEN.fullmatch(_plain(text))
    if match is None or match[1].islower():
        return None
    rest = (match["rest"] or match["more"] or "").lstrip()
    goes_on = re.match(r"(?:or|and|not)\b|[-+*/=<>^,(]", rest)
    return None if goes_on or _OTHER.search(rest) else match[1]


def _choice(expected: str, found: str) -> bool:
    match = _LETTER.fullmatch(_plain(expected))
    return match is not None and chosen(found) == match[1]


def _equal(a: Answer, b: Answer, policy: Policy) -> bool:
    """Whether found `b` says what expected `a` says."""
    if "broken" in (a.kind, b.kind):
        return False
    for kinds, compare in _RULES:
        if a.kind in kinds or b.kind in kinds:
            return compare(a, b, policy)
    if a.kind != b.kind:
        return False
    return _all(a.parts, b.parts, policy) and a.text == b.text


def _all(a: Sequence[Answer], b: Sequence[Answer], policy: Policy) -> bool:
    return len(a) == len(b) and all(_equal(x, y, policy) for x, y in zip(a, b, strict=True))


def _any_order(a: Sequence[Answer], b: Sequence[Answer], policy: Policy) -> bool:
    left = list(b)
    for one in a:
        match = next((other for other in left if _equal(one, other, policy)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _lists(a: Answer, b: Answer, policy: Policy) -> bool:
    if "relation" in (a.kind, b.kind):
        return _relations(a, b, policy)
    if (reals := same_reals(a, b)) is not None:
        return reals
    if {a.kind, b.kind} <= {"list", "set"}:
        ordered = (policy.ordered and "set" not in (a.kind, b.kind)) or _named(a) != _named(b)
        return (_all if ordered else _any_order)(a.parts, b.parts, policy)
    if {a.kind, b.kind} == {"tuple", "list"}:
        one, other = (a, b) if a.kind == "tuple" else (b, a)
        bare = one.text == "()" and other.text != "or"
        return bare and (one is a or _named(other)) and _all(a.parts, b.parts, policy)
    for one, other in ((a, b), (b, a)):
        if one.kind == "set" and len(one.parts) == 1 and other.kind in ("formula", "quantity"):
            inner = one.parts[0]
            empty = any(token.value == "\\emptyset" for token in inner.items)
            return not empty and _equal(*((inner, b) if one is a else (a, inner)), policy)
    return False


def _named(a: Answer) -> bool:
    """Whether each element says which unknown it is of: then bare values are in their order."""
    if not all(part.kind == "relation" and is_name(part.parts[0]) for part in a.parts):
        return False
    return len({part.parts[0].written for part in a.parts}) > 1


def _tuples(a: Answer, b: Answer, policy: Policy) -> bool:
    if a.kind == b.kind and a.text == b.text:
        return _all(a.parts, b.parts, policy)
    return bool(same_reals(a, b))


def _modulars(a: Answer, b: Answer, policy: Policy) -> bool:
    if a.kind != b.kind:
        if b.kind != "modular" or not _equal(a, b.parts[0], policy):
            return False
        value = b.parts[0].parts[-1] if b.parts[0].kind == "relation" else b.parts[0]
        residue, modulus = read(value.items), read(b.parts[1].items)
        return not residue.is_number or bool(sympy.Mod(residue, modulus) == residue)
    names = a.parts[2:], b.parts[2:]
    if all(names) and not _all(*names, policy):
        return False
    if not _equal(a.parts[1], b.parts[1], policy):
        return False
    difference = read(a.parts[0].items) - read(b.parts[0].items)
    return bool(sympy.Mod(difference, read(a.parts[1].items)) == 0)


def _relations(a: Answer, b: Answer, policy: Policy) -> bool:
    if a.kind != b.kind:
        if (reals := same_reals(a, b)) is not None:
            return reals
        one, other = (a, b) if a.kind == "relation" else (b, a)
        value = _value(one, policy, sums=one is b)
        if value is None:
            return False
        return _equal(value, other, policy) if one is a else _equal(other, value, policy)
    if set(a.operators) == set(b.operators) == {"="}:
        names = is_name(a.parts[0]), is_name(b.parts[0])
        if all(names) and max(len(a.parts), len(b.parts)) > 2:
            values = _value(a, policy), _value(b, policy)
            if not all(values) or not _equal(a.parts[0], b.parts[0], policy):
                return False
            return _equal(a.parts[-1], b.parts[-1], policy)
    if a.operators != b.operators:
        return bool(same_reals(a, b))
    if _all(a.parts, b.parts, policy):
        return True
    if len(a.parts) != 2 or a.operators[0] not in ("=", "<", "\\le", "\\ne"):
        return False
    if a.operators[0] in ("=", "\\ne") and _all(a.parts, b.parts[::-1], policy):
        return True
    return _proportional(a, b)


def _value(relation: Answer, policy: Policy, sums: bool = False) -> Answer | None:
    """What `name = ... = value` or `name \\in value` says, or a chain of equal values; None for
    other relations. sums: `m+n` is a name too."""
    if relation.operators == ("\\in",):
        return relation.parts[1] if is_name(relation.parts[0]) else None
    if set(relation.operators) != {"="}:
        return None
    named = is_name(relation.parts[0], sums)
    values = relation.parts[1:] if named else relation.parts
    for part in values[:-1]:
        different = not _equal(part, values[-1], policy)
        if different and (not named or _constant(part)):
            return None
    return values[-1]


def _constant(part: Answer) -> bool:
    try:
        return part.kind != "formula" or not read(part.items).free_symbols
    except Unread:
        return False


def _proportional(a: Answer, b: Answer) -> bool:
    """Whether two equations (or inequalities) are one up to a (positive) factor."""
    sides = [[read(part.items) for part in one.parts] for one in (a, b)]
    first, second = (left - right for left, right in sides)
    symbols = first.free_symbols
    if not symbols or symbols != second.free_symbols:
        return False
    point = {s: sympy.Rational(7 + 3 * k, 5) for k, s in enumerate(sorted(symbols, key=str))}
    at = second.subs(point)
    if at == 0:
        return False
    factor = first.subs(point) / at
    if a.operators[0] in ("<", "\\le") and not factor.is_positive:
        return False
    return equal(first, factor * second)


def _number_and_unit(a: Answer) -> tuple[Answer, str] | None:
    if a.kind == "quantity":
        return a.parts[0], a.text
    return (a, "") if a.kind in ("formula", "ratio") else None


def _quantities(a: Answer, b: Answer, policy: Policy) -> bool:
    if "sum" in (a.kind, b.kind):
        seconds = [_seconds(one) for one in (a, b)]
        return None not in seconds and seconds[0] == seconds[1]
    one, two = _number_and_unit(a), _number_and_unit(b)
    if one is None or two is None:
        return False
    (x, left), (y, right) = one, two
    if policy.units == "ignored" or left == right:
        return _equal(x, y, policy)
    if "\\%" in (left, right):
        if right == "\\%" and policy.percent == "unit" and not left:
            return _equal(x, y, policy)
        if left == "\\%" and not right:
            hundredth = read(x.items) / 100
            return _equal(x, y, policy) or equal(hundredth, read(y.items), policy.tolerance)
        if right == "\\%" and not left:
            return equal(read(x.items), read(y.items) / 100, policy.tolerance)
        return False
    if "\\degree" in (left, right) and (not left or not right or "radian" in left + right):
        degrees, other = (x, y) if left == "\\degree" else (y, x)
        angle = read(degrees.items) * sympy.pi / 180
        if equal(angle, read(other.items), policy.tolerance):
            return True
        in_pi = read(degrees.items).has(sympy.pi)
        return not ((left and right) or in_pi) and _equal(x, y, policy)
    if not left or not right:
        forgiven = policy.units == "optional" and _is_unit(left or right)
        return forgiven and _equal(x, y, policy)
    units = _unit(left), _unit(right)
    if units[0][0] != units[1][0]:
        return False
    values = [read(v.items) * factor for v, (_, factor) in zip((x, y), units, strict=True)]
    return equal(values[0], values[1], policy.tolerance)


_NO_UNIT = set(
    "not no or and more less fewer than at most least only about wrong rejected incorrect plus"
    " minus times squared cubed factorial half does is are if otherwise maybe approximately"
    " mod".split()
)


def _is_unit(text: str) -> bool:
    """Whether text after a number names what is counted, and says nothing else about it."""
    found = re.findall("[a-z]+", text.lower())
    return 0 < len(found) <= 4 and not _NO_UNIT.intersection(found)


def _unit(text: str) -> tuple[str, int]:
    """(what is measured with its power, factor to the base unit); an unknown unit is its own."""
    text = re.sub(r"^(?:square|sq\.?)\s+(\S+)$", r"\1^2", text)
    text = re.sub(r"^cubic\s+(\S+)$", r"\1^3", text)
    name, _, power = text.partition("^")
    name = name.strip()
    if len(name) > 3 and name not in UNITS:
        name = name.removesuffix("s")
    if name in UNITS and (not power or power.isdigit()):
        kind, factor = UNITS[name]
        return f"{kind}^{power or 1}", factor ** int(power or 1)
    # case tells mW from MW
    return " ".join(word if len(word) <= 3 else _stem(word) for word in text.split()), 1


def _seconds(a: Answer) -> Any:
    parts = a.parts if a.kind == "sum" else (a,)
    total = sympy.Integer(0)
    for part in parts:
        if part.kind != "quantity":
            return None
        kind, factor = _unit(part.text)
        if kind != "time^1":
            return None
        total += read(part.parts[0].items) * factor
    return total


def _stem(word: str) -> str:
    word = word.lower().strip(".,;:!\"'()")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _word_list(text: str) -> list[str]:
    stems = [stem for word in text.replace("-", " ").split() if (stem := _stem(word))]
    return [str(NUMBER_WORDS.index(s)) if s in NUMBER_WORDS else s for s in stems]


def _worded(a: Answer, b: Answer, policy: Policy) -> bool:
    if a.kind == b.kind:
        one, two = _word_list(a.text), _word_list(b.text)
        if one == two and one:
            return True
        joined = "".join(one)
        return joined == "".join(two) and joined.isalpha()
    words, other = (a, b) if a.kind == "words" else (b, a)
    names = _word_list(words.text)
    if len(names) == 1 and names[0].isdigit():
        value = Answer("formula", (Token("number", names[0]),))
        return _equal(value, other, policy)
    if other.kind == "formula" and names:
        plain = other.written
        number = "".join(t.value for t in words.items if t.kind == "text")
        return plain.isalnum() and (plain.lower() if len(plain) > 1 else plain) == (
            number.lower() if len(number) > 1 else number
        )
    return False


def _formulas(a: Answer, b: Answer, policy: Policy) -> bool:
    if a.kind != b.kind:
        return False
    return a.items == b.items or equal(read(a.items), read(b.items), policy.tolerance)


def _ratios(a: Answer, b: Answer, policy: Policy) -> bool:
    same_unit = a.text == b.text or "" in (a.text, b.text)
    return a.kind == b.kind and same_unit and _all(a.parts, b.parts, policy)


def _rows(a: Answer, b: Answer, policy: Policy) -> bool:
    return a.kind == b.kind and _any_order(a.parts, b.parts, policy)


def _unions(a: Answer, b: Answer, policy: Policy) -> bool:
    if (reals := same_reals(a, b)) is not None:
        return reals
    return a.kind == b.kind and _any_order(a.parts, b.parts, policy)


# The first rule in which either kind stands decides.
_RULES: list[tuple[set[str], Any]] = [
    ({"modular"}, _modulars),
    ({"union"}, _unions),
    ({"list", "set"}, _lists),
    ({"relation"}, _relations),
    ({"tuple"}, _tuples),
    ({"quantity", "sum"}, _quantities),
    ({"words"}, _worded),
    ({"ratio"}, _ratios),
    ({"cases"}, _rows),
    ({"formula"}, _formulas),
]
