"""What the SGLang client and the plugin say to each other: a request's settings, a trajectory.

A request asks for NPR by `custom_params={"npr": ...}` in its sampling parameters: the mode as a
string, or a dictionary of plain values (SGLang's transport allows no nesting, so lists travel as
JSON). The trajectory comes back in `meta_info["npr"]`, as the entry of the last token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from npr_lib.engine.api import Prefix, SamplingParams
from npr_lib.layout import Layout, Segment
from npr_lib.trajectory import Mode, Trajectory

KEY = "npr"
_PARAMS = [field.name for field in fields(SamplingParams)]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a request wants its response: `key` is that of its random numbers, `forced` what a
    replay writes, `prefix` what the response begins with, by branch path."""

    params: SamplingParams
    mode: Mode
    key: int
    max_branches: int
    max_depth: int
    forced: Prefix | None = None
    prefix: Prefix | None = None


def pack(settings: Settings) -> dict[str, object]:
    """`custom_params` of a request."""
    values: dict[str, object] = {name: getattr(settings.params, name) for name in _PARAMS}
    values["stop"] = json.dumps(settings.params.stop)
    values |= {"mode": settings.mode, "key": str(settings.key)}
    values |= {"max_branches": settings.max_branches, "max_depth": settings.max_depth}
    for name in ("forced", "prefix"):
        by_path = getattr(settings, name)
        if by_path is not None:
            values[name] = json.dumps([[path, list(ids)] for path, ids in by_path.items()])
    return {KEY: values}


def unpack(asked: object, defaults: Mapping[str, object]) -> Settings:
    """The settings of a request that asks for NPR; `defaults` (fields of SamplingParams, and
    max_branches, max_depth) stand for what it leaves out. ValueError on anything else."""
    if isinstance(asked, str):
        asked = {"mode": asked}
    if not isinstance(asked, Mapping):
        raise ValueError(f"custom_params[{KEY!r}] = {asked!r}: expected a mode or a dictionary")
    values = {**defaults, **asked}
    known = {*_PARAMS, "mode", "key", "max_branches", "max_depth", "forced", "prefix"}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(f"custom_params[{KEY!r}]: unknown {', '.join(unknown)}")
    params = {name: values[name] for name in _PARAMS if name in values}
    stop = params.get("stop", ())
    params["stop"] = tuple(json.loads(stop) if isinstance(stop, str) else stop)
    mode = values.get("mode", "parallel")
    if mode not in ("parallel", "sequential"):
        raise ValueError(f"mode = {mode!r}: expected 'parallel' or 'sequential'")
    return Settings(
        SamplingParams(**params),
        mode,
        int(values.get("key", 0)),
        int(values["max_branches"]),
        int(values["max_depth"]),
        _by_path(values.get("forced")),
        _by_path(values.get("prefix")),
    )


def _by_path(text: object) -> Prefix | None:
    if text is None:
        return None
    return {tuple((b, i) for b, i in path): ids for path, ids in json.loads(text)}


def to_wire(trajectory: Trajectory) -> dict[str, object]:
    """Plain JSON values, without what the client knows itself (the prompt)."""
    layout = trajectory.layout
    return {
        "completion_ids": trajectory.completion_ids,
        "logprobs": _numbers(trajectory.logprobs),
        "behaviour_logprobs": _numbers(trajectory.behaviour_logprobs),
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
    }


def from_wire(row: Mapping[str, object], prompt_ids: Sequence[int]) -> Trajectory:
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
        segment_texts=list(row["segment_texts"]),
    )


def _numbers(values: Sequence[float]) -> list[float | str | None]:
    """JSON knows no nan and no infinity: null, "-inf"."""
    return [None if v != v else "-inf" if v == -np.inf else v for v in values]


def _floats(values: Sequence[float | str | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]
