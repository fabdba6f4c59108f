r"""Responses made elsewhere, read from their text: what ideal parallel decoding would make of them.

    rollouts = read_texts("results.json")                        # words stand for tokens
    rollouts = read_texts("dump.jsonl", "path/to/tokenizer")     # its folder, or a tokenizer.json
    viz.explore(rollouts)

What a text says is shown, however broken it is: its graph, what is wrong with it, whether its
answer is right where one is given; and what follows from the graph under the parallel mask:
positions, who sees whom, and the steps of an engine that decodes every branch at once and waits for
nothing. What only the engine knew that wrote it (logprobs, entropies, which tokens it forced, its
own steps) is in no text, and left out.

A token lies where its first character lies. White space between two steps is of the branch before
it, that after `</guideline>` of the trunk.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tokenizers

from npr_lib import WorkbenchError
from npr_lib.reasoning.layout import BranchPath, Layout, Segment
from npr_lib.reasoning.schema import TAGS, parse
from npr_lib.reasoning.trajectory import Trajectory, to_rows
from npr_lib.verify import math_equal
from npr_lib.viz.explorer.written import written_segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    Splitter = Callable[[str], tuple[list[int], list[str]]]
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
WORD = re.compile(rf"{'|'.join(TAGS)}|\s?\w+|[^\w\s]|\s+")
BLANK = re.compile(r"\s*")
Verify = Callable[[str, str], bool]
Scalar = str | int | float | np.generic


def read_texts(
    path: Path | str,
    tokenizer: Path | str | PreTrainedTokenizerFast | None = None,
    column: str | None = None,
    verify: Verify = math_equal,
    max_branches: int = 5,
    max_depth: int = 5,
) -> pd.DataFrame:
    """A rollouts table of the responses in a file, for `viz.explore` and `viz.page`.

    Args:
        path: parquet, or JSON: an array, lines, objects one after another however they are
            indented, or one object that holds the records. A record is a response, or several
            of one problem.
        tokenizer: with fast tokenization; None: words stand for tokens.
        column: where the responses are; None: the first of `TEXTS` that the first record has. It,
            and the columns of problems and answers, are said.
        verify: (what is in the last box, answer) -> right or wrong, for records with an answer; of
            several answers any will do.
        max_branches, max_depth: what the violations go by (the release nests 5 deep).

    Raises:
        WorkbenchError: the file or a record can't be read; the message has the record's number.
    """
    path, split = Path(path), _splitter(tokenizer)
    records = _records(path)
    if not records:
        raise WorkbenchError(f"{path} holds no records")
    column = column or _first(records[0], TEXTS)
    if column is None:
        raise WorkbenchError(
            f"{path}: no column of responses found among {', '.join(records[0])}: name it"
        )
    problem, answer = _first(records[0], PROBLEMS), _first(records[0], ANSWERS)
    made: list[Trajectory] = []
    known: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        asked = _question(_at(record, problem)) or f"record {number}"
        expected = _answers(_at(record, answer))
        shared = {"problem_id": asked, "problem": asked if problem else None}
        shared |= {name: record[name] for name in KEPT if isinstance(record.get(name), Scalar)}
        shared |= {"answer": " or ".join(expected) or None}
        texts = _texts(_at(record, column), f"{path}, record {number}: {column!r}")
        for sample, text in enumerate(texts):
            ids, tokens = split(text)
            made.append(_trajectory(text, ids, tokens, max_branches, max_depth))
            verdict = _verdict(made[-1].graph.boxed, expected, verify)
            known.append({**shared, "sample": sample, "accuracy": verdict, "tokens": tokens})
    told = {"responses": column, "problems": problem, "answers": answer}
    found = ", ".join(f"{what} in {name!r}" for what, name in told.items() if name)
    print(f"{path}, {len(made)} responses: {found}")
    frame = to_rows(made).assign(finish_reason=None, temperature=math.nan)
    return frame.assign(**pd.DataFrame(known).dropna(axis=1, how="all"))


# ---------------------------------------------------------------- the file


def _records(path: Path) -> list[Row]:
    """The records of a file, each a mapping."""
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


def _verdict(boxed: str | None, expected: Sequence[str], verify: Verify) -> float | None:
    """1 or 0; None where no answer is given."""
    if not expected:
        return None
    return float(boxed is not None and any(verify(boxed, answer) for answer in expected))


# ---------------------------------------------------------------- the response


def _splitter(tokenizer: Path | str | PreTrainedTokenizerFast | None) -> Splitter:
    """A function: text -> ids and the texts of the tokens, which joined are the text. Of tokens
    that only together make a character the last one holds it."""
    if tokenizer is None:
        return _by_words()
    if isinstance(tokenizer, Path | str):
        file = Path(tokenizer)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise WorkbenchError(f"{file} does not exist: give a tokenizer.json, or its folder")
        core = tokenizers.Tokenizer.from_file(str(file))
    else:
        core = tokenizer.backend_tokenizer

    def split(text: str) -> tuple[list[int], list[str]]:
        encoded = core.encode(text, add_special_tokens=False)
        starts = [0, *(start for start, _ in encoded.offsets[1:]), len(text)]
        return encoded.ids or [0], [text[a:b] for a, b in pairwise(starts)]

    return split


def _by_words() -> Splitter:
    numbers: dict[str, int] = {}

    def split(text: str) -> tuple[list[int], list[str]]:
        words = WORD.findall(text) or [""]
        return [numbers.setdefault(word, len(numbers)) for word in words], words

    return split


def _trajectory(
    text: str, ids: list[int], tokens: list[str], max_branches: int, max_depth: int
) -> Trajectory:
    """The text as ideal parallel decoding would have made it, one position a step."""
    graph = parse(text, max_branches, max_depth)
    segments, texts = written_segments(graph, text, tokens)
    layout, unknown = parallel_layout(segments), [math.nan] * len(ids)
    return Trajectory(
        prompt_ids=[],
        completion_ids=ids,
        logprobs=unknown,
        behaviour_logprobs=unknown,
        sampled=[True] * len(ids),
        decode_steps=layout.position_ids.tolist(),
        layout=layout,
        finish_reason="stop",
        text=text,
        segment_texts=texts,
        max_branches=max_branches,
        max_depth=max_depth,
    )


def parallel_layout(segments: Sequence[Segment]) -> Layout:
    """Positions and visibility of a tree of segments, which begins at token 0: those of design
    section 4, whatever the tags are made of and whether or not the blocks are whole."""
    n, depth = segments[-1].end, max(len(segment.path) for segment in segments)
    positions, hidden = np.zeros(n, np.int64), np.zeros((depth, n, 2), np.int32)
    last: dict[BranchPath, int] = {(): -1}  # position of the last token of a branch
    joined: dict[BranchPath, int] = {}  # largest position in the blocks that a branch has joined
    begun: dict[BranchPath, int] = {}  # first token of a branch
    opened: dict[int, int] = {}  # first token of a block's branches
    for _, path, start, end in segments:
        for level, (block, _) in enumerate(path):
            outer, branch = path[:level], path[: level + 1]
            if block not in opened:
                opened[block] = start
                last[outer] = max(last[outer], joined.pop(outer, -1))
            if branch not in last:
                last[branch], begun[branch] = last[outer], start
        first = max(last[path], joined.pop(path, -1)) + 1
        positions[start:end] = np.arange(first, first + end - start)
        last[path] = first + end - start - 1
        for level, (block, _) in enumerate(path):
            outer, branch = path[:level], path[: level + 1]
            joined[outer] = max(joined.get(outer, -1), last[path])
            if begun[branch] > opened[block]:
                hidden[level, start:end] = opened[block], begun[branch]
    return Layout(positions, hidden, 0, list(segments))
