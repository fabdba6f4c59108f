"""Files of responses made elsewhere: JSON however it is arranged, or parquet, by usual names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from npr_lib import WorkbenchError

Row = Mapping[str, Any]
# What files call these, the likeliest first; a dot leads into an object.
TEXTS = (
    *("response", "responses", "output", "outputs", "completion", "completions", "generation"),
    *("generations", "generated_text", "model_output", "model_response", "prediction"),
    *("predictions", "text", "texts", "content", "message", "choices"),
)
PROBLEMS = ("problem", "question", "query", "prompt", "input", "messages", "extra_info.question")
ANSWERS = (
    *("answer", "gts", "gold", "ground_truth", "reward_model.ground_truth", "expected_answer"),
    *("reference_answer", "target", "label"),
)
KEPT = ("problem_id", "stage", "checkpoint", "step", "temperature", "finish_reason", "reward")
"""What else is taken over, where a file has it."""
BLANK = re.compile(r"\s*")
Scalar = str | int | float | np.generic


@dataclass(frozen=True, slots=True)
class Record:
    """One problem of a file: its responses, the answers that are right (none: not known), and what
    else is known of all of them, by the names that a rollouts table has for it."""

    responses: list[str]
    answers: list[str]
    known: dict[str, Any]


def read_records(path: Path, column: str | None = None) -> tuple[list[Record], str]:
    """The records of a file, and in words where what was found: `responses in 'output', ...`.

    Args:
        path: parquet, or JSON: an array, lines, objects one after another however they are
            indented, or one object that holds the records.
        column: where the responses are; None: the first of `TEXTS` that the first record has.

    Raises:
        WorkbenchError: the file or a record can't be read; the message has the record's number.
    """
    rows = _rows(path)
    if not rows:
        raise WorkbenchError(f"{path} holds no records")
    column = column or _first(rows[0], TEXTS)
    if column is None:
        has = ", ".join(rows[0])
        raise WorkbenchError(f"{path}: no column of responses found among {has}: name it")
    problem, answer = _first(rows[0], PROBLEMS), _first(rows[0], ANSWERS)
    found = []
    for number, row in enumerate(rows, start=1):
        asked = _question(_at(row, problem)) or f"record {number}"
        answers = _answers(_at(row, answer))
        known = {"problem_id": asked, "problem": asked if problem else None}
        known |= {name: row[name] for name in KEPT if isinstance(row.get(name), Scalar)}
        known |= {"answer": " or ".join(answers) or None}
        responses = _texts(_at(row, column), f"{path}, record {number}: {column!r}")
        found.append(Record(responses, answers, known))
    told = {"responses": column, "problems": problem, "answers": answer}
    return found, ", ".join(f"{what} in {name!r}" for what, name in told.items() if name)


def _rows(path: Path) -> list[Row]:
    """The records of a file as they are, each a mapping."""
    if not path.is_file():
        raise WorkbenchError(f"{path} is no file")
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_dict("records")
    values = list(_json_values(path))
    if len(values) == 1 and isinstance(values[0], list):
        (values,) = values
    elif len(values) == 1 and isinstance(values[0], dict) and not _is_record(values[0]):
        values = _held(values[0], path)
    values = [{"text": value} if isinstance(value, str) else value for value in values]
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise WorkbenchError(f"{path}, record {number}: expected an object, not a {kind}")
    return values


def _is_record(value: Row) -> bool:
    """Whether it holds responses, and not records that do."""
    if (name := _first(value, TEXTS)) is None:
        return False
    nested = any(isinstance(one, dict) for one in _listed(value[name]))
    return not nested or _first(value, (*PROBLEMS, *ANSWERS)) is not None


def _json_values(path: Path) -> Iterator[Any]:
    """The values of a file, with nothing but white space between them."""
    decoder, at = json.JSONDecoder(), 0
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise WorkbenchError(f"{path} is neither parquet nor text: {error}") from error
    for number in count(1):
        blank = BLANK.match(text, at)
        assert blank is not None, "it matches anything"
        if blank.end() == len(text):
            return
        try:
            value, at = decoder.raw_decode(text, blank.end())
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}: {error.msg}"
            raise WorkbenchError(f"{path}, record {number}: no JSON at {where}") from error
        yield value


def _held(whole: Row, path: Path) -> list[Any]:
    """The records that one object holds: in a list of them, or each under a key of its own, of the
    problem or of what holds records in turn (a benchmark)."""
    lists = [v for v in whole.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if len(lists) == 1:
        return lists[0]
    if not whole or not all(isinstance(value, dict) for value in whole.values()):
        has = ", ".join(whole) or "nothing"
        raise WorkbenchError(f"{path}: an object with {has} holds no records of responses")
    found: list[Any] = []
    for key, value in whole.items():
        if _is_record(value):
            found.append({"problem_id": key, **value})
        else:
            found += [{"stage": key, **row} for row in _held(value, path)]
    return found


def _at(record: Any, name: str | None) -> Any:
    """A value by its name, which may lead into objects; None where there is none."""
    for part in (name or "").split("."):
        record = record.get(part) if isinstance(record, Mapping) else None
    return record


def _first(record: Any, names: Sequence[str]) -> str | None:
    return next((name for name in names if _at(record, name) is not None), None)


def _listed(value: Any) -> list[Any]:
    """The items of what may be one or several."""
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def _texts(value: Any, where: str) -> list[str]:
    """The responses of a record: a text, an object around one, or several of either."""
    found = []
    for item in _listed(value):
        while isinstance(item, Mapping) and (name := _first(item, TEXTS)):
            item = item[name]
        if not isinstance(item, str):
            raise WorkbenchError(f"{where} holds a {type(item).__name__}, expected a text")
        found.append(item)
    return found


def _question(value: Any) -> str | None:
    """A problem's text; of a conversation what the user says last."""
    said = [turn for turn in _listed(value) if isinstance(turn, Mapping)]
    asked = [turn.get("content") for turn in said if turn.get("role") == "user"]
    found = asked[-1] if asked else value
    return found if isinstance(found, str) else None


def _answers(value: Any) -> list[str]:
    known = [str(one).strip() for one in _listed(value) if not (one is None or one != one)]
    return [one for one in known if one]
