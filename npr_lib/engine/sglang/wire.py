"""What the SGLang client and the plugin say to each other: a request's settings, a trajectory.

A request asks for NPR by `custom_params={"npr": ...}` in its sampling parameters: the mode as a
string, or a dictionary of plain values (SGLang's transport allows no nesting, so lists travel as
JSON). `meta_info["npr"]` of the answer has an entry for each token, most of them None: the last is
`{"trajectory": ...}`, and where events were asked for each chunk of a stream ends in one with the
`events` since the last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import index
from typing import Any

import numpy as np

from npr_lib.engine.api import (
    BranchEnd,
    Event,
    Fork,
    Join,
    Preempt,
    Prefix,
    Resume,
    SamplingParams,
    Token,
)
from npr_lib.reasoning.layout import Layout, Segment
from npr_lib.reasoning.style import COMPACT, Style, named
from npr_lib.reasoning.trajectory import Mode, Trajectory

KEY = "npr"
_EVENTS = {kind.__name__: kind for kind in (Token, Fork, BranchEnd, Join, Preempt, Resume)}
_PARAMS = [field.name for field in fields(SamplingParams)]
_OWN = ("mode", "key", "max_branches", "max_depth", "style", "min_chars", "forced", "prefix")
_KNOWN = {*_PARAMS, *_OWN, "events"}
_WHOLE = ("max_tokens", "max_span", "min_fork_tokens", "top_k", "seed")  # those that are integers


@dataclass(frozen=True, slots=True)
class Settings:
    """How a request wants its response: `key` is that of its random numbers, `forced` what a
    replay writes, `prefix` what the response begins with, by branch path. `events`: whether a
    stream tells them."""

    params: SamplingParams
    mode: Mode
    key: int
    max_branches: int
    max_depth: int
    forced: Prefix | None = None
    prefix: Prefix | None = None
    events: bool = False
    style: Style = COMPACT


def pack(settings: Settings) -> dict[str, object]:
    """`custom_params` of a request."""
    values: dict[str, object] = {name: getattr(settings.params, name) for name in _PARAMS}
    values["stop"] = json.dumps(settings.params.stop)
    values |= {"mode": settings.mode, "key": str(settings.key), "events": settings.events}
    values |= {"max_branches": settings.max_branches, "max_depth": settings.max_depth}
    values |= {"style": settings.style.name, "min_chars": json.dumps(settings.style.min_chars)}
    for name in ("forced", "prefix"):
        by_path = getattr(settings, name)
        if by_path is not None:
            values[name] = json.dumps([[path, list(ids)] for path, ids in by_path.items()])
    return {KEY: values}


def unpack(asked: object, defaults: Mapping[str, object]) -> Settings:
    """The settings of a request that asks for NPR; `defaults` (fields of SamplingParams, key,
    max_branches, max_depth, style) stand for what it leaves out. ValueError on anything else:
    whatever else it raised would end SGLang's scheduler, and with it the requests of others."""
    try:
        return _settings(asked, defaults)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"custom_params[{KEY!r}]: {error}") from error


def _settings(asked: object, defaults: Mapping[str, object]) -> Settings:
    if isinstance(asked, str):
        asked = {"mode": asked}
    if not isinstance(asked, Mapping):
        raise ValueError(f"custom_params[{KEY!r}] = {asked!r}: expected a mode or a dictionary")
    values = {**defaults, **asked}
    unknown = sorted(values.keys() - _KNOWN)
    if unknown:
        raise ValueError(f"custom_params[{KEY!r}]: unknown {', '.join(unknown)}")
    params = {name: values[name] for name in _PARAMS if name in values}
    for name in _WHOLE:
        if name in params and not (name == "max_span" and params[name] is None):
            params[name] = index(params[name])
    stop = params.get("stop", ())
    params["stop"] = tuple(json.loads(stop) if isinstance(stop, str) else stop)
    mode = values.get("mode", "parallel")
    if mode not in ("parallel", "sequential"):
        raise ValueError(f"mode = {mode!r}: expected 'parallel' or 'sequential'")
    least = values.get("min_chars")
    least = json.loads(least) if isinstance(least, str) else least
    return Settings(
        SamplingParams(**params),
        mode,
        int(values["key"]),
        int(values["max_branches"]),
        int(values["max_depth"]),
        _by_path(values.get("forced")),
        _by_path(values.get("prefix")),
        bool(values.get("events", False)),
        named(values.get("style", COMPACT.name), least),
    )


def _by_path(text: Any) -> Prefix | None:
    if text is None:
        return None
    return {
        tuple((index(b), index(i)) for b, i in path): [index(token) for token in ids]
        for path, ids in json.loads(text)
    }


def to_wire(trajectory: Trajectory) -> dict[str, object]:
    """Plain JSON values, without what the client knows itself (the prompt)."""
    layout = trajectory.layout
    return {
        "completion_ids": trajectory.completion_ids,
        "logprobs": _numbers(trajectory.logprobs),
        "behaviour_logprobs": _numbers(trajectory.behaviour_logprobs),
        "entropies": _numbers(trajectory.entropies),
        "sampled": trajectory.sampled,
        "decode_steps": trajectory.decode_steps,
        "position_ids": layout.position_ids[layout.prompt_len :].tolist(),
        "hidden": layout.hidden[:, layout.prompt_len :].tolist(),
        "segments": [list(segment) for segment in layout.segments],
        "finish_reason": trajectory.finish_reason,
        "violation": trajectory.violation,
        "text": trajectory.text,
        "segment_texts": trajectory.segment_texts,
        "spelled": list(trajectory.spelled),
        "mode": trajectory.mode,
        "temperature": trajectory.temperature,
        "max_branches": trajectory.max_branches,
        "max_depth": trajectory.max_depth,
        "style": trajectory.style.name,
        "min_chars": trajectory.style.min_chars,
    }


def from_wire(row: Mapping[str, Any], prompt_ids: Sequence[int]) -> Trajectory:
    """The trajectory of a response to `prompt_ids`."""
    prompt = len(prompt_ids)
    own = np.asarray(row["hidden"], np.int32).reshape(-1, len(row["completion_ids"]), 2)
    hidden = np.concatenate([np.zeros((len(own), prompt, 2), np.int32), own], axis=1)
    positions = np.concatenate([np.arange(prompt), np.asarray(row["position_ids"], np.int64)])
    segments = [
        Segment(kind, tuple(tuple(step) for step in path), start, end)
        for kind, path, start, end in row["segments"]
    ]
    return Trajectory(
        prompt_ids=list(prompt_ids),
        completion_ids=list(row["completion_ids"]),
        logprobs=_floats(row["logprobs"]),
        behaviour_logprobs=_floats(row["behaviour_logprobs"]),
        entropies=_floats(row["entropies"]),
        sampled=list(row["sampled"]),
        decode_steps=list(row["decode_steps"]),
        layout=Layout(positions, hidden, prompt, segments),
        finish_reason=row["finish_reason"],
        text=row["text"],
        mode=row["mode"],
        violation=row["violation"],
        temperature=row["temperature"],
        spelled=tuple(row["spelled"]),
        max_branches=row["max_branches"],
        max_depth=row["max_depth"],
        style=named(row["style"], row["min_chars"]),
        segment_texts=list(row["segment_texts"]),
    )


def events_to_wire(events: Sequence[Event]) -> list[list[object]]:
    """[kind, step, seconds, path, and its own fields] each; nan and infinity as above."""
    own = [[getattr(event, field.name) for field in fields(event)[2:]] for event in events]
    return [
        [type(event).__name__, *_numbers(values[:2]), values[2], *_numbers(values[3:])]
        for event, values in zip(events, own, strict=True)
    ]


def event_from_wire(values: Sequence[Any], call: int, index: int) -> Event:
    """The event of response `index` in call `call`."""
    kind, step, seconds, path, *own = values
    if kind == "Token" and own[1] is None:
        own[1] = float("nan")
    path = tuple(tuple(part) for part in path)
    return _EVENTS[kind](call, index, step, seconds, path, *own)


def _numbers(values: Sequence[Any]) -> list[Any]:
    """JSON knows no nan and no infinity: null, "-inf"."""
    return [None if v != v else "-inf" if v == -np.inf else v for v in values]


def _floats(values: Sequence[float | str | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]
