r"""Is this answer right? Imports no other room.

    math_equal, verdict    mathematically the same, under a `Policy` (`compare`: what that means)
    exact, choice, words   the same text; the same letter A-J; the same words
    grid                   the same table (ZebraLogic)
    unreadable             why an answer can't be compared, to be said when a set is loaded
    last_number            the answer where no box is asked for, as the paper's release finds it

`spelling` writes what has many spellings in one, `answers` reads an answer's kind, `formula` a
formula; `compare` says when two answers are the same, by `equality` of formulas and sets of
`reals`; `worker` is the process they run in. Nothing here looks at a whole response: boxes are the
reasoning graph's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from npr_lib.verify.policy import Policy
from npr_lib.verify.worker import MAX_ANSWER_CHARS, TIMEOUT_SECONDS, ask

__all__ = [
    "Policy",
    "choice",
    "exact",
    "grid",
    "last_number",
    "math_equal",
    "unreadable",
    "verdict",
    "words",
]

_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")


def math_equal(
    predicted: str, answer: Any, timeout: float = TIMEOUT_SECONDS, policy: Policy | None = None
) -> bool:
    """`verdict`, and what can't be compared is wrong."""
    return bool(verdict(predicted, answer, timeout, policy))


def verdict(
    predicted: str, answer: Any, timeout: float = TIMEOUT_SECONDS, policy: Policy | None = None
) -> bool | None:
    """Whether two answers in LaTeX or plain text are mathematically the same; None where that
    can't be told (the answer can't be read, or time was up), with a warning in the log.

    From any thread; at most `timeout` seconds (a killed worker gets them once more; the wait for
    other threads and for the worker to start comes on top). ValueError for a blank answer: nothing
    would match it. RuntimeError when no worker can be started.
    """
    expected, found = str(answer).strip(), predicted.strip()
    if not expected:
        raise ValueError("math_equal needs an answer to compare with, not a blank one")
    if expected == found:
        return True
    if _INTEGER.fullmatch(expected) and _INTEGER.fullmatch(found) and policy is None:
        return int(expected) == int(found)
    if not found or max(len(expected), len(found)) > MAX_ANSWER_CHARS:
        return False
    return ask(expected, found, policy, timeout)


def unreadable(answer: str) -> str | None:
    """Why other writings of this answer can't be told to be the same; None where they can."""
    if _INTEGER.fullmatch(answer.strip()):
        return None
    from npr_lib.verify import compare  # sympy takes a moment

    return compare.unreadable(answer)


def exact(predicted: str, answer: str) -> bool:
    """Whether the two are the same text, but for white space around them."""
    return predicted.strip() == answer.strip()


def choice(predicted: str, answer: str, options: Sequence[str] = ()) -> bool:
    """Whether a letter A-J is chosen: `B`, `(B)`, `B.`, `B) its text`, `Option B`, or the text of
    the right one of `options` alone. ValueError where `answer` is no letter."""
    from npr_lib.verify.compare import chosen, squeeze
    from npr_lib.verify.spelling import spell

    letter = chosen(spell(answer))
    if letter is None:
        raise ValueError(f"choice needs a letter A-J as the answer, not {answer!r}")
    named = chosen(spell(predicted))
    texts = [squeeze(spell(option)).lower() for option in options]
    if named is None and (text := squeeze(spell(predicted)).lower()) in texts:
        return texts.index(text) == ord(letter) - ord("A")
    return named == letter


def words(predicted: str, answer: str, case: bool = False, order: bool = True) -> bool:
    """Whether the two hold the same words: letters and digits; punctuation, LaTeX around text and
    white space don't count. case: whether upper case does. order: whether the order does."""
    one, two = (_words(text if case else text.lower()) for text in (predicted, answer))
    return bool(two) and (one == two if order else sorted(one) == sorted(two))


def _words(text: str) -> list[str]:
    plain = re.sub(r"\\[a-zA-Z]+\s*", " ", text)
    return re.findall(r"[^\W_]+(?:['’.-][^\W_]+)*", plain)


def grid(predicted: str, answer: str) -> bool:
    """Whether every cell of a table is right (ZebraLogic's strict score), but for case.

    Either is JSON: {"header": [...], "rows": [[...], ...]} with the row's name in its first cell,
    or {"row name": {"column": "cell"}}. What is no table is wrong. ValueError: the answer is none.
    """
    expected = _cells(answer)
    if not expected:
        raise ValueError(f"grid needs a table in JSON as the answer, not {answer[:80]!r}")
    return _cells(predicted) == expected


def _cells(text: str) -> dict[tuple[str, str], str]:
    """(row, column) -> cell, all in lower case; empty where the text is no table."""
    text = re.sub(r"^\s*```(?:json)?|```\s*$|\\(?=[{}_\"])", "", text)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(table, Mapping):
        return {}
    if {"header", "rows"} <= table.keys():
        header, rows = table["header"], table["rows"]
        if not isinstance(header, list) or not isinstance(rows, list):
            return {}
        if not header or any(not isinstance(r, list) or len(r) != len(header) for r in rows):
            return {}
        if len({str(row[0]) for row in rows}) < len(rows):
            return {}
        table = {str(row[0]): dict(zip(map(str, header[1:]), row[1:], strict=True)) for row in rows}
    if not all(isinstance(row, Mapping) for row in table.values()):
        return {}
    return {
        (_label(name), _label(column)): _label(cell)
        for name, row in table.items()
        for column, cell in row.items()
    }


def _label(cell: Any) -> str:
    return " ".join(str(cell).lower().removeprefix("house ").split())


def last_number(text: str) -> str | None:
    """What follows the last "answer is", else the last number of a text; None without either."""
    parts = re.split(r"answer is:?\s*", text, flags=re.IGNORECASE)
    if len(parts) > 1:
        line = parts[-1].strip().split("\n")[0].split(". ")[0].strip().rstrip(".")
        if line:
            return line
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None
