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

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import tokenizers

from npr_lib import WorkbenchError
from npr_lib.reasoning.schema import TAGS, parse
from npr_lib.reasoning.trajectory import Trajectory, to_rows
from npr_lib.verify import math_equal
from npr_lib.viz.explorer.records import read_records
from npr_lib.viz.explorer.written import parallel_layout, written_segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    Splitter = Callable[[str], tuple[list[int], list[str]]]

WORD = re.compile(rf"{'|'.join(TAGS)}|\s?\w+|[^\w\s]|\s+")
Verify = Callable[[str, str], bool]


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
        path, column: as `records.read_records` takes them; what was found where is said.
        tokenizer: with fast tokenization; None: words stand for tokens.
        verify: (what is in the last box, answer) -> right or wrong, for records with an answer; of
            several answers any will do.
        max_branches, max_depth: what the violations go by (the release nests 5 deep).

    Raises:
        WorkbenchError: the file or a record can't be read; the message has the record's number.
    """
    path, split = Path(path), _splitter(tokenizer)
    records, found = read_records(path, column)
    made: list[Trajectory] = []
    known: list[dict[str, Any]] = []
    for record in records:
        for sample, text in enumerate(record.responses):
            ids, tokens = split(text)
            made.append(_trajectory(text, ids, tokens, max_branches, max_depth))
            verdict = _verdict(made[-1].graph.boxed, record.answers, verify)
            known.append({**record.known, "sample": sample, "accuracy": verdict, "tokens": tokens})
    print(f"{path}, {len(made)} responses: {found}")
    frame = to_rows(made).assign(finish_reason=None, temperature=math.nan)
    return frame.assign(**pd.DataFrame(known).dropna(axis=1, how="all"))


def _verdict(boxed: str | None, expected: Sequence[str], verify: Verify) -> float | None:
    """1 or 0; None where no answer is given."""
    if not expected:
        return None
    return float(boxed is not None and any(verify(boxed, answer) for answer in expected))


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
