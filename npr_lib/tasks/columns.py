r"""From a row, whatever its columns are called, to a problem and its answers.

A row is a mapping, or a list, whose items are then the columns `0`, `1`, … A column is named by
its path: `reward_model.ground_truth` is a column of that name, or else the entry `ground_truth` of
the mapping in the column `reward_model`. Nothing is ever written as Python would print it: what is
no text and no number is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from npr_lib.reasoning.schema import last_boxed

# Usual names, the surest first; upper and lower case are the same. `0.value` and
# `1.ground_truth.value` are those of a conversation in ORZ's form.
PROBLEM = ("problem", "question", "puzzle", "prompt", "query", "0.value")
ANSWER = (
    *("answer", "final_answer", "ground_truth", "reward_model.ground_truth"),
    *("expected_answer", "1.ground_truth.value", "solution"),
)

Row = Mapping[str, Any]


def columns_of(row: Any) -> Row:
    """A row as a mapping. ValueError if it is neither a mapping nor a list."""
    if isinstance(row, list):
        return {str(i): item for i, item in enumerate(row)}
    if not isinstance(row, Mapping):
        raise ValueError(f"is no row but {_shown(row)}")
    return row


def find(row: Row, column: str, usual: Sequence[str], given: str | None) -> str:
    """The path of the column `problem` or `answer`: the one that is given, or the first usual one
    that the row has. ValueError where it has none."""
    for path in (given,) if given else usual:
        if (found := _same(row, path)) is not None:
            return found
    has = ", ".join(map(str, row)) or "none"
    tried = "" if given else f" (or {', '.join(usual[1:])})"
    raise ValueError(f"lacks column {given or column!r}{tried}; it has {has}")


def _same(row: Row, path: str) -> str | None:
    """The path as this row spells it, None if it has no such column."""
    names = {str(name).lower(): str(name) for name in row}
    if path.lower() in names:
        return names[path.lower()]
    first, _, rest = path.partition(".")
    inner = row.get(names.get(first.lower(), ""))
    if rest and isinstance(inner, Mapping | list):
        below = _same(columns_of(inner), rest)
        return None if below is None else f"{names[first.lower()]}.{below}"
    return None


def value(row: Row, path: str) -> Any:
    """What stands in a column; None where a row has less than the first one had."""
    if path in row:
        return row[path]
    first, _, rest = path.partition(".")
    inner = row.get(first)
    return value(columns_of(inner), rest) if rest and isinstance(inner, Mapping | list) else None


def problem_text(found: Any) -> str:
    """The problem: a text, or what the user says in a list of messages (`role` and `content`, or
    `from` and `value`). ValueError for anything else, and for a conversation of several turns."""
    if isinstance(found, list) and found and all(isinstance(m, Mapping) for m in found):
        said = [
            m.get("content", m.get("value"))
            for m in found
            if m.get("role", m.get("from")) in ("user", "human")
        ]
        if len(said) != 1:
            raise ValueError(f"is a conversation in which the user speaks {len(said)} times")
        found = said[0]
    if not isinstance(found, str):
        raise ValueError(f"is no text but {_shown(found)}")
    if not found.strip():
        raise ValueError("is blank")
    return found


def answer_texts(found: Any, solution: bool = False) -> list[str]:
    r"""The answers of which any is right: one, or as many as a list holds.

    solution: of a worked solution with a box the answer is what stands in its last `\boxed{}`.
    ValueError for a blank answer, nan, and what is no text or number.
    """
    if isinstance(found, list):
        if not found:
            raise ValueError("is an empty list")
        return list(dict.fromkeys(_answer(one, solution) for one in found))
    return [_answer(found, solution)]


def _answer(found: Any, solution: bool) -> str:
    if isinstance(found, bool):
        return json.dumps(found)
    if isinstance(found, int | float):
        if math.isnan(found):
            raise ValueError("is nan")
        return str(found)
    if not isinstance(found, str):
        raise ValueError(f"is no text or number but {_shown(found)}")
    text = (last_boxed(found) or found) if solution else found
    if not text.strip() or text.strip().lower() == "nan":
        raise ValueError("is blank" if not text.strip() else "is nan")
    return text


def _shown(found: Any) -> str:
    """What something is, as JSON calls it, and how it begins."""
    names = {type(None): "null", list: "a list", bytes: "bytes"}
    name = "a mapping" if isinstance(found, Mapping) else names.get(type(found))
    text = json.dumps(found, ensure_ascii=False, default=str)
    return f"{name or type(found).__name__}: {text[:60]}" if found is not None else "null"
