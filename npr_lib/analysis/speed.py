"""How fast a model decodes its own responses: the same tokens again, in parallel and in sequence.

Latency is measured with one response in flight, throughput with all that were chosen at once; both
ways take turns within a round. Tokens are completion tokens, engine-written ones included. Models
are measured one after the other, in one run on one machine.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from npr_lib.analysis.bootstrap import Estimate, interval, resample
from npr_lib.engine import SGLangEngine, TorchEngine
from npr_lib.progress import report_progress
from npr_lib.reasoning.trajectory import Mode, Trajectory


@dataclass(frozen=True, slots=True)
class Timing:
    """Replays of chosen responses of one set.

    problems: whose responses. work, span: tokens of each. latency: mode -> seconds
    [round][response], one at a time. throughput: mode -> seconds [round], all at once. too_long:
    responses that could not be chosen, since they don't fit the model's context in sequence.
    """

    problems: list[str]
    work: list[int]
    span: list[int]
    latency: dict[str, list[list[float]]]
    throughput: dict[str, list[float]]
    too_long: int = 0


def time_replays(
    engine: TorchEngine | SGLangEngine,
    responses: Mapping[str, Trajectory],
    mode: Mode,
    count: int,
    rounds: int,
    title: str = "",
) -> Timing:
    """Time the first `count` of these responses (problem -> response) that fit the context."""
    fits = {
        problem: response
        for problem, response in responses.items()
        if len(response.prompt_ids) + response.work <= engine.context
    }
    chosen = dict(itertools.islice(fits.items(), count))
    ways: tuple[Mode, ...] = ("parallel", "sequential") if mode == "parallel" else ("sequential",)
    own = list(chosen.values())
    latency: dict[str, list[list[float]]] = {way: [] for way in ways}
    throughput: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways if own else ():
        engine.replay_all(own, way)  # once untimed: the first call of a kind is slow
    for number in range(rounds if own else 0):
        for way in ways if number % 2 == 0 else ways[::-1]:
            latency[way].append([_seconds(engine, [response], way) for response in own])
            throughput[way].append(_seconds(engine, own, way))
        report_progress(number + 1, rounds, part=title)
    return Timing(
        problems=list(chosen),
        work=[response.work for response in own],
        span=[response.span for response in own],
        latency=latency,
        throughput=throughput,
        too_long=len(responses) - len(fits),
    )


def _seconds(
    engine: TorchEngine | SGLangEngine, responses: Sequence[Trajectory], mode: Mode
) -> float:
    begin = time.perf_counter()
    engine.replay_all(responses, mode)
    return time.perf_counter() - begin


def speed_numbers(timing: Timing, mode: Mode) -> dict[str, Estimate]:
    """Name -> value. Intervals are over responses where one is in flight, over rounds where all
    are."""
    if not timing.problems:
        return {}
    work, span = np.array(timing.work, float), np.array(timing.span, float)
    found = {"timed_ideal": interval(work, span)}
    for way in timing.latency:
        alone, together = _alone(timing, way), np.array(timing.throughput[way])
        found[f"{way}_seconds"] = interval(alone)
        found[f"{way}_tokens_per_second"] = interval(work, alone)
        found[f"{way}_batch_tokens_per_second"] = interval(
            np.full(len(together), work.sum()), together
        )
    if mode == "parallel":
        found["replay_speedup"] = interval(_alone(timing, "sequential"), _alone(timing, mode))
        found["replay_batch_speedup"] = interval(
            np.array(timing.throughput["sequential"]), np.array(timing.throughput[mode])
        )
    return found


def _alone(timing: Timing, way: str) -> np.ndarray:
    """Seconds of each response on its own, mean over the rounds."""
    return np.array(timing.latency[way]).mean(axis=0)


def speed_ratios(one: Timing, mode: Mode, other: Timing, other_mode: Mode) -> dict[str, Estimate]:
    """The first model's speed over the other's, each decoding its own responses to the same
    problems in its own mode: of tokens/s (the paper's measure) and of the time of a response."""
    both = [problem for problem in one.problems if problem in other.problems]
    if not both:
        return {}
    series = [
        pd.DataFrame({"work": timing.work, "seconds": _alone(timing, way)}, timing.problems)
        .loc[both]
        .to_numpy()
        for timing, way in ((one, mode), (other, other_mode))
    ]

    def ratios(draws_P: np.ndarray) -> tuple[float, float]:
        (work, seconds), (other_work, other_seconds) = (s[draws_P].sum(axis=0) for s in series)
        return (work / seconds) / (other_work / other_seconds), other_seconds / seconds

    tokens, time_ = resample(ratios, len(both))
    return {"tokens_per_second_ratio": tokens, "time_ratio": time_}
