r"""What an answer consists of: spelled tokens -> an `Answer` of one of the kinds.

`compare` says when two of a kind are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from npr_lib.verify.formula import FUNCTIONS, Token
from npr_lib.verify.spelling import UNITS

_OPEN = {"(", "[", "{", "\\{", "\\langle"}
_CLOSE = {")", "]", "}", "\\}", "\\rangle"}
_RELATIONS = {"=", "<", ">", "\\le", "\\ge", "\\ne", "\\equiv", "\\in"}
_FLIPPED = {">": "<", "\\ge": "\\le"}
_SEPARATORS = {",", ";"}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "dozen": 12}
_JOINING = {"and", "or", "and/or"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of one kind (the table in `compare`). parts: answers in it; text: what stands there
    (operators of a relation, brackets of a tuple, the unit, the base); items: its tokens."""

    kind: str
    items: tuple[Token, ...]
    parts: tuple[Answer, ...] = ()
    text: str = ""
    operators: tuple[str, ...] = ()

    @property
    def written(self) -> str:
        """Its tokens in a row, without white space."""
        return "".join(token.value for token in self.items)


def answer(items: Sequence[Token]) -> Answer:
    """What kind of answer these tokens are."""
    items = _unwrapped(tuple(items))
    readers = (_list, _relation, _union, _bracketed, _table, _ratio, _modular, _based, _signs)
    for reader in readers:
        if (result := reader(items)) is not None:
            return result
    return _pieces(items)


def _unwrapped(items: tuple[Token, ...]) -> tuple[Token, ...]:
    """Without braces, or brackets around a table, that hold it all."""
    while len(items) > 2 and _closing(items, 0) == len(items) - 1:
        inner, opening = items[1:-1], items[0].value
        table = opening in ("(", "[") and inner[0].kind == "begin"
        if not (
            opening == "{" or table or (opening == "(" and len(_split(inner, _SEPARATORS)) == 1)
        ):
            break
        items = inner
    return items


def _closing(items: Sequence[Token], start: int) -> int:
    """Where what opens at `start` is closed, -1 where it isn't."""
    depth = 0
    for i in range(start, len(items)):
        token = items[i]
        opens = token.value in _OPEN and token.kind != "text"
        closes = token.value in _CLOSE and token.kind != "text"
        depth += (opens or token.kind == "begin") - (closes or token.kind == "end")
        if depth == 0:
            return i
    return -1


def _split(items: Sequence[Token], at: set[str]) -> list[tuple[Token, ...]]:
    """The tokens cut where one of `at` stands outside brackets."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in items:
        if token.kind != "text":
            depth += (token.value in _OPEN or token.kind == "begin") - (
                token.value in _CLOSE or token.kind == "end"
            )
        if depth == 0 and token.value in at and token.kind in ("sign", "command"):
            parts.append([])
        else:
            parts[-1].append(token)
    return [tuple(part) for part in parts]


def _list(items: tuple[Token, ...]) -> Answer | None:
    parts: list[tuple[Token, ...]] = []
    joins = set()
    for part in _split(items, _SEPARATORS):
        start = 0
        depth = 0
        for i, token in enumerate(part):
            depth += (token.value in _OPEN) - (token.value in _CLOSE) if token.kind != "text" else 0
            word = token.value.lower().strip(" ,")
            if depth == 0 and token.kind == "text" and word in _JOINING:
                joins.add(word)
                parts.append(part[start:i])
                start = i + 1
        parts.append(part[start:])
    kept = [part for part in parts if part]
    if len(parts) == 1 or not kept:
        return None
    if len(kept) == 1:
        return answer(kept[0])
    return Answer(
        "list", items, tuple(map(answer, kept)), "or" if "or" in joins else "and" if joins else ","
    )


def _relation(items: tuple[Token, ...]) -> Answer | None:
    exact = _split(items, {"\\approx", "\\sim"})
    if len(exact) > 1:  # what it is, rather than what that is about
        return answer(exact[0] or exact[1])
    sides = _split(items, _RELATIONS)
    if len(sides) == 1:
        return None
    if not all(sides):
        return Answer("broken", items)
    lengths = 0
    found = []
    for side in sides[:-1]:
        lengths += len(side)
        found.append(items[lengths].value)
        lengths += 1
    if found[-1] == "\\equiv" and len(sides) == 2 and (modulus := _modulus(sides[1])):
        value, of = modulus
        return Answer("modular", items, (answer(value), answer(of), answer(sides[0])))
    if all(op in (">", "\\ge") for op in found):
        sides, found = sides[::-1], found[::-1]
    operators = tuple(_FLIPPED.get(operator, operator) for operator in found)
    return Answer("relation", items, tuple(map(answer, sides)), operators=operators)


def _modulus(items: tuple[Token, ...]) -> tuple[tuple[Token, ...], tuple[Token, ...]] | None:
    for i, token in enumerate(items):
        if token.value == "\\pmod" and i and _closing(items, i + 1) == len(items) - 1:
            return items[:i], items[i + 2 : -1]
    return None


def _modular(items: tuple[Token, ...]) -> Answer | None:
    if (modulus := _modulus(items)) is None:
        return None
    return Answer("modular", items, (answer(modulus[0]), answer(modulus[1])))


def _union(items: tuple[Token, ...]) -> Answer | None:
    parts = _split(items, {"\\setminus"})
    if len(parts) == 2 and all(parts):
        return Answer("union", items, tuple(map(answer, parts)), "without")
    parts = _split(items, {"\\cup"})
    return Answer("union", items, tuple(map(answer, parts))) if len(parts) > 1 else None


def _bracketed(items: tuple[Token, ...]) -> Answer | None:
    if not items or items[0].value not in _OPEN or _closing(items, 0) != len(items) - 1:
        return None
    opening, closing = items[0].value, items[-1].value
    inner = items[1:-1]
    if opening == "\\{" and closing == "\\}":
        for such_that in (":", "|"):
            halves = _split(inner, {such_that})
            if len(halves) == 2 and len(halves[0]) == 1 and halves[0][0].value.isalpha():
                return answer(halves[1])
        parts = _split(inner, _SEPARATORS)
        return Answer("set", items, tuple(answer(p) for p in parts if p))
    parts = _split(inner, _SEPARATORS)
    if len(parts) < 2 or not all(parts):
        return None
    brackets = "()" if opening == "\\langle" else opening + closing
    return Answer("tuple", items, tuple(map(answer, parts)), brackets)


def _table(items: tuple[Token, ...]) -> Answer | None:
    if len(items) < 3 or items[0].kind != "begin" or _closing(items, 0) != len(items) - 1:
        return None
    rows = [row for row in _split(items[1:-1], {"\\\\"}) if row]
    cells = [
        Answer("row", row, tuple(answer(cell) for cell in _split(row, {"&"}) if cell))
        for row in rows
    ]
    if items[0].value == "cases":
        return Answer("cases", items, tuple(cells))
    if items[0].value in ("vmatrix", "Vmatrix"):  # a determinant, a norm
        return Answer("table", items, tuple(cells), items[0].value)
    if len(cells) == 1 or all(len(row.parts) == 1 for row in cells):
        flat = tuple(cell for row in cells for cell in row.parts)
        return Answer("tuple", items, flat, "()")
    return Answer("table", items, tuple(cells))


def _ratio(items: tuple[Token, ...]) -> Answer | None:
    parts = _split(items, {":"})
    if len(parts) == 1 or not all(parts):
        return None
    tail = [token for token in parts[-1] if token.kind == "text"]
    parts[-1] = tuple(token for token in parts[-1] if token.kind != "text")
    unit = " ".join(token.value.lower() for token in tail)
    return Answer("ratio", items, tuple(map(answer, parts)), unit)


def _based(items: tuple[Token, ...]) -> Answer | None:
    for i, token in enumerate(items):
        if token.value == "_" and i:
            digits = [t.value for t in items[:i] if t.value not in ("(", ")", "{", "}")]
            base = [t.value for t in items[i + 1 :] if t.value not in ("{", "}")]
            number = "".join(digits)
            hexadecimal = len(base) == 1 and base[0].isdigit() and int(base[0]) > 10
            digit = "[0-9A-F.]" if hexadecimal else "[0-9.]"
            if re.fullmatch(rf"-?[0-9]{digit}*", number) and len(base) == 1:
                return Answer("based", items, text=f"{number}_{base[0]}")
            return None
    return None


def _signs(items: tuple[Token, ...]) -> Answer | None:
    if not any(token.value in ("\\pm", "\\mp") for token in items):
        return None
    both = []
    for plus, minus in (("+", "-"), ("-", "+")):
        sign = {"\\pm": Token("sign", plus), "\\mp": Token("sign", minus)}
        both.append(answer([sign.get(token.value, token) for token in items]))
    return Answer("list", items, tuple(both), "and")


def _pieces(items: tuple[Token, ...]) -> Answer:
    """Words, a formula, a quantity, or words and formulas in turn."""
    groups: list[tuple[str, list[Token]]] = []
    angle = any(token.value in FUNCTIONS for token in items)
    for i, token in enumerate(items):
        last = i == len(items) - 1
        unit = last and (token.value == "\\%" or (token.value == "\\degree" and not angle))
        kind = "text" if token.kind == "text" or unit else "formula"
        if not groups or groups[-1][0] != kind:
            groups.append((kind, []))
        groups[-1][1].append(token)
    groups = _with_exponents(groups)
    if not groups:
        return Answer("words", items)
    parts = [
        Answer("words" if k == "text" else "formula", tuple(g), text=_words(g)) for k, g in groups
    ]
    if len(parts) == 1:
        return parts[0]
    kinds = [part.kind for part in parts]
    if kinds == ["formula", "words"]:
        first, _, rest = parts[1].text.partition(" ")
        if scale := SCALES.get(first.lower()):
            times = (Token("command", "\\times"), Token("number", str(scale)))
            scaled = Answer("formula", (*parts[0].items, *times))
            return Answer("quantity", items, (scaled,), rest) if rest else scaled
        return Answer("quantity", items, (parts[0],), parts[1].text)
    if kinds == ["formula", "words"] * (len(kinds) // 2):
        units = [part.text.removesuffix(" and") for part in parts[1::2]]
        if all(UNITS.get(unit, ("", 0))[0] == "time" for unit in units):
            pairs = zip(parts[::2], units, strict=True)
            quantities = [Answer("quantity", v.items, (v,), unit) for v, unit in pairs]
            return Answer("sum", items, tuple(quantities), "s")
    return Answer("mixed", items, tuple(parts))


def _with_exponents(groups: list[tuple[str, list[Token]]]) -> list[tuple[str, list[Token]]]:
    """An exponent right after text, as in `\\text{ cm}^2` or `\\text{ mol}^{-1}`, is the unit's."""
    result: list[tuple[str, list[Token]]] = []
    for kind, group in groups:
        follows = result and result[-1][0] == "text"
        if kind == "formula" and follows and group[0].value == "^":
            end = _closing(group, 1) + 1 if len(group) > 1 and group[1].value == "{" else 2
            result[-1][1].extend(group[:end])
            group = group[end:]
            if not group:
                continue
        if result and result[-1][0] == kind:
            result[-1][1].extend(group)
        else:
            result.append((kind, list(group)))
    return result


def _words(items: Sequence[Token]) -> str:
    text = "".join(f" {t.value}" if t.kind == "text" else t.value for t in items).strip()
    text = re.sub(r"\^\{?([^{}]*)\}?", r"^\1", text)
    return " ".join(text.split())
