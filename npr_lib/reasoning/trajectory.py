"""The Trajectory: the one object that crosses every border.

The engine makes it, rewards read it, trainers train on its ids under its layout, metrics and
pictures are functions of it. It is never re-tokenized and its layout is never re-parsed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from npr_lib.reasoning.layout import Layout, Segment
from npr_lib.reasoning.schema import ReasoningGraph, parse
from npr_lib.reasoning.style import COMPACT, Style, named

Mode = Literal["parallel", "sequential"]
# `cancelled`: what there was when a stream was closed or a request withdrawn
FinishReason = Literal["stop", "length", "invalid", "stop_string", "cancelled"]


# Columns of `to_rows` with a value a token: nearly all of a table's size in memory.
PER_TOKEN = (
    *("completion_ids", "logprobs", "behaviour_logprobs", "entropies", "sampled", "decode_steps"),
    *("position_ids", "hidden", "segments", "segment_texts"),
)


@dataclass(eq=False)
class Trajectory:
    """One response as it was decoded.

    The per-token lists have the length of `completion_ids`. `logprobs` are log_softmax(raw
    logits / T), `behaviour_logprobs` those of the distribution actually sampled from; both are
    nan where `sampled` is False (tokens written by the engine). `entropies` are those of the
    distribution that `logprobs` are of, in nats, at the same tokens; all nan (what leaving it out
    gives) where nobody recorded them. `decode_steps` holds the engine step that decided each token:
    equal steps ran at once. `layout` covers prompt + completion.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    behaviour_logprobs: list[float]
    sampled: list[bool]
    decode_steps: list[int]
    layout: Layout
    finish_reason: FinishReason
    text: str
    mode: Mode = "parallel"
    violation: str | None = None
    temperature: float = 1.0
    spelled: tuple[int, ...] = ()
    max_branches: int = 5
    max_depth: int = 1
    style: Style = COMPACT
    # text of each segment but the prompt's, in order; concatenated they are `text`
    segment_texts: list[str] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.entropies = self.entropies or [float("nan")] * len(self.completion_ids)

    @cached_property
    def graph(self) -> ReasoningGraph:
        """The reasoning graph; tag text spelled with ordinary tokens counts as a violation."""
        limits = (self.max_branches, self.max_depth)
        return parse(self.text, *limits, spelled=self.spelled, style=self.style)

    @property
    def segments(self) -> list[Segment]:
        """The executed tree, depth first; a sequential response is one text segment."""
        return self.layout.segments

    @property
    def position_ids(self) -> np.ndarray:
        """int64 [prompt + completion]."""
        return self.layout.position_ids

    @property
    def work(self) -> int:
        """Completion tokens."""
        return len(self.completion_ids)

    @property
    def span(self) -> int:
        """Tokens on the critical path."""
        return self.layout.span

    @property
    def branch_lengths(self) -> list[list[int]]:
        """Tokens of every branch of every block, blocks in order of appearance."""
        blocks: dict[int, dict[int, int]] = {}
        for segment in self.segments:
            for block, branch in segment.path:
                lengths = blocks.setdefault(block, {})
                lengths[branch] = lengths.get(branch, 0) + segment.end - segment.start
        return [[lengths[i] for i in sorted(lengths)] for _, lengths in sorted(blocks.items())]

    @property
    def num_branches(self) -> list[int]:
        """Branches of every block."""
        return [len(lengths) for lengths in self.branch_lengths]

    @property
    def triggered(self) -> bool:
        """At least one block was executed in parallel (never so in sequential mode)."""
        return bool(self.num_branches)

    def segment_text(self, segment: Segment) -> str:
        """Text of a segment of the completion."""
        if segment.kind == "prompt":
            raise ValueError("the prompt's text is not part of the completion")
        return self.segment_texts[
            self.segments.index(segment) - (self.segments[0].kind == "prompt")
        ]

    def to_row(self) -> dict[str, object]:
        """Plain columns, enough to rebuild the trajectory (`from_row`), and its figures."""
        return {
            "prompt_ids": self.prompt_ids,
            "completion_ids": self.completion_ids,
            "logprobs": self.logprobs,
            "behaviour_logprobs": self.behaviour_logprobs,
            "entropies": self.entropies,
            "sampled": self.sampled,
            "decode_steps": self.decode_steps,
            "position_ids": self.layout.position_ids.tolist(),
            "hidden": self.layout.hidden.reshape(-1).tolist(),
            "segments": json.dumps([list(s) for s in self.segments]),
            "segment_texts": self.segment_texts,
            "finish_reason": self.finish_reason,
            "text": self.text,
            "mode": self.mode,
            "violation": self.violation,
            "temperature": self.temperature,
            "spelled": list(self.spelled),
            "max_branches": self.max_branches,
            "max_depth": self.max_depth,
            "style": self.style.name,
            "min_chars": list(self.style.min_chars),
            "valid": self.graph.valid,
            "violations": [str(v.kind) for v in self.graph.violations],
            "work": self.work,
            "span": self.span,
            "triggered": self.triggered,
            "num_blocks": len(self.num_branches),
            "num_branches": self.num_branches,
            "branch_lengths": self.branch_lengths,
        }


def from_row(row: Mapping[str, Any] | pd.Series) -> Trajectory:
    """Rebuild a trajectory from a row of `read_rollouts`; older ones hold no entropies and no style
    (theirs is compact)."""
    prompt_ids = [int(i) for i in row["prompt_ids"]]
    completion_ids = [int(i) for i in row["completion_ids"]]
    n = len(prompt_ids) + len(completion_ids)
    hidden = np.asarray(row["hidden"], np.int32).reshape(-1, n, 2)
    segments = [
        Segment(kind, tuple(map(tuple, path)), start, end)
        for kind, path, start, end in json.loads(row["segments"])
    ]
    told = row.get("entropies")
    # missing, or nan in a table that holds older rows and newer ones; parquet has null for nan
    given = [] if told is None or np.ndim(told) == 0 else told
    entropies = [math.nan if x is None else float(x) for x in given]
    return Trajectory(
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        logprobs=[float(x) for x in row["logprobs"]],
        behaviour_logprobs=[float(x) for x in row["behaviour_logprobs"]],
        sampled=[bool(x) for x in row["sampled"]],
        decode_steps=[int(x) for x in row["decode_steps"]],
        layout=Layout(np.asarray(row["position_ids"], np.int64), hidden, len(prompt_ids), segments),
        segment_texts=[str(x) for x in row["segment_texts"]],
        finish_reason=row["finish_reason"],
        text=row["text"],
        mode=row["mode"],
        violation=row["violation"] if isinstance(row["violation"], str) else None,
        temperature=float(row["temperature"]),
        spelled=tuple(int(i) for i in row["spelled"]),
        max_branches=int(row["max_branches"]),
        max_depth=int(row["max_depth"]),
        style=row_style(row),
        entropies=entropies,
    )


def row_style(row: Mapping[str, Any] | pd.Series) -> Style:
    """The style that the response of a row is written in."""
    name = row.get("style")
    return named(name, row["min_chars"]) if isinstance(name, str) else COMPACT


def row_graph(row: Mapping[str, Any] | pd.Series) -> ReasoningGraph:
    """The graph of a row's response, also where its columns of a value a token were not read."""
    limits = {"max_branches": row["max_branches"], "max_depth": row["max_depth"]}
    return parse(row["text"], **limits, spelled=tuple(row["spelled"]), style=row_style(row))


def to_rows(
    trajectories: Sequence[Trajectory], **columns: Sequence[object] | object
) -> pd.DataFrame:
    """A rollouts table: one row a trajectory, plus columns (a sequence of the same length, or one
    value for all). ValueError on a sequence of another length."""
    frame = pd.DataFrame([t.to_row() for t in trajectories])
    for name, values in columns.items():
        if isinstance(values, (list, tuple, np.ndarray, pd.Series)):
            if len(values) != len(trajectories):
                count = len(trajectories)
                raise ValueError(f"column {name}: {len(values)} values for {count} rows")
            values = list(values)
        frame[name] = values
    return frame


def write_rollouts(
    path: Path | str, trajectories: Sequence[Trajectory], **columns: Sequence[object] | object
) -> pd.DataFrame:
    """Write `to_rows` as parquet (folders are made); returns the table."""
    frame = to_rows(trajectories, **columns)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)
    return frame


def rollouts_path(run_dir: Path | str, name: str, split: str = "test") -> Path:
    """Where the evaluation of a checkpoint on a split lies."""
    return Path(run_dir) / "rollouts" / f"{'eval' if split == 'test' else split}_{name}.parquet"


def read_rollouts(path: Path | str) -> pd.DataFrame:
    """A rollouts table from parquet; FileNotFoundError names the path."""
    if not Path(path).exists():
        raise FileNotFoundError(f"no rollouts at {path}")
    return pd.read_parquet(path)
