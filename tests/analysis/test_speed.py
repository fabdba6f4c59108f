"""Speed by a clock whose every tick is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from scripted import block, trajectory

from npr_lib.analysis import speed
from npr_lib.analysis.speed import speed_numbers, speed_ratios, time_replays

TEXTS = [f"{block('A=1', 'B=1+1')}\\boxed{{7}}", f"{block('A')}\\boxed{{7}}", "A=1\\boxed{7}"]
WORK = [12 + 7 + 9 + 3 + 3, 7 + 5 + 3 + 3, 3 + 3]
SPAN = [12 + 9 + 3 + 3, 7 + 5 + 3 + 3, 3 + 3]
# seconds by mode of each response alone, round by round, then of all at once
ALONE = {"parallel": [[3, 5, 2], [5, 7, 4]], "sequential": [[9, 6, 3], [11, 8, 3]]}
TOGETHER = {"parallel": [4, 8], "sequential": [10, 30]}


class Clock:
    """An engine whose replays take the time that the tables say, once each was made untimed."""

    context = 60

    def __init__(self, alone=ALONE, together=TOGETHER):
        self.now, self.calls, self.alone, self.together = 0.0, [], alone, together

    def replay_all(self, trajectories, mode):
        self.calls.append((len(trajectories), mode))
        whole = [n for n, m in self.calls if m == mode]
        rounds = whole.count(3) - 2 if len(trajectories) == 3 else (whole.count(1) - 1) // 3
        if len(trajectories) == 3:
            self.now += self.together[mode][rounds] if rounds >= 0 else 1000
        else:
            self.now += self.alone[mode][rounds][(whole.count(1) - 1) % 3]
        return trajectories


@pytest.fixture
def timing(monkeypatch):
    return timed(Clock(), "parallel", monkeypatch)


def timed(clock, mode, monkeypatch):
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    responses = {f"p{i}": trajectory(text, "A=1;", mode=mode) for i, text in enumerate(TEXTS)}
    responses["long"] = trajectory("A" * 57, "A=1;", mode=mode)  # 61 of the context's 60 tokens
    responses["fourth"] = trajectory("A", "A=1;", mode=mode)
    return time_replays(clock, responses, mode, 3, 2)


def test_responses_are_timed_alone_and_together_in_turns(monkeypatch):
    clock = Clock()
    found = timed(clock, "parallel", monkeypatch)
    assert found.problems == ["p0", "p1", "p2"] and found.too_long == 1
    assert (found.work, found.span) == (WORK, SPAN)
    assert found.latency == ALONE and found.throughput == TOGETHER
    of_a_round = lambda mode: [(1, mode)] * 3 + [(3, mode)]  # noqa: E731
    assert clock.calls == [
        (3, "parallel"),
        (3, "sequential"),
        *of_a_round("parallel"),
        *of_a_round("sequential"),
        *of_a_round("sequential"),
        *of_a_round("parallel"),
    ]


def test_numbers_are_ratios_of_sums(timing):
    found = {name: estimate.value for name, estimate in speed_numbers(timing, "parallel").items()}
    work = sum(WORK)
    alone = {mode: [np.mean(pair) for pair in zip(*ALONE[mode], strict=True)] for mode in ALONE}
    assert found == pytest.approx(
        {
            "timed_ideal": work / sum(SPAN),
            "parallel_seconds": np.mean(alone["parallel"]),
            "sequential_seconds": np.mean(alone["sequential"]),
            "parallel_tokens_per_second": work / sum(alone["parallel"]),
            "sequential_tokens_per_second": work / sum(alone["sequential"]),
            "parallel_batch_tokens_per_second": 2 * work / 12,
            "sequential_batch_tokens_per_second": 2 * work / 40,
            "replay_speedup": (10 + 7 + 3) / (4 + 6 + 3),
            "replay_batch_speedup": 40 / 12,
        }
    )
    speedup = speed_numbers(timing, "parallel")["replay_speedup"]
    assert speedup.low >= 3 / 3 and speedup.high <= 10 / 4 and speedup.low < speedup.high


def test_a_sequential_model_has_no_speed_up_and_is_compared_on_the_same_problems(
    timing, monkeypatch
):
    clock = Clock({"sequential": [[2, 2, 2], [4, 4, 4]]}, {"sequential": [5, 7]})
    other = timed(clock, "sequential", monkeypatch)
    assert set(speed_numbers(other, "sequential")) == {
        "timed_ideal",
        "sequential_seconds",
        "sequential_tokens_per_second",
        "sequential_batch_tokens_per_second",
    }
    other.problems[2] = "another"
    found = speed_ratios(timing, "parallel", other, "sequential")
    work = sum(WORK[:2])  # the same texts in sequence have as many tokens
    assert found["tokens_per_second_ratio"].value == pytest.approx((work / (4 + 6)) / (work / 6))
    assert found["time_ratio"].value == pytest.approx(6 / 10)
    other.problems[:2] = ["x", "y"]
    assert speed_ratios(timing, "parallel", other, "sequential") == {}


def test_where_nothing_fits_nothing_is_told(monkeypatch):
    clock = Clock()
    clock.context = 4
    found = timed(clock, "parallel", monkeypatch)
    assert found.too_long == 5 and speed_numbers(found, "parallel") == {} and not clock.calls
