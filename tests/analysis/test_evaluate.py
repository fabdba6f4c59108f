"""Evaluation and speed: of an engine whose every answer, by a clock whose every tick, is known."""

import statistics
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
from scripted import TOKENIZER, ScriptedEngine, block, trajectory
from stages_for_tests import make_stage

from npr_lib.analysis import evaluate
from npr_lib.engine import SamplingParams
from npr_lib.profiles.profile import load_profile
from npr_lib.reasoning.trajectory import rollouts_path
from npr_lib.tasks.problems import Problem, ProblemSet
from npr_lib.train import portions

PROBLEMS = ProblemSet([Problem(f"p{i}", f"A={i};", str(10 + i)) for i in range(4)], "exact")
RIGHT = ("101", "011", "000", "110")  # problem by problem, sample by sample


def script(prompt, sample, params, mode):
    """A wrong response is right for the problem after: a shift by one problem turns it round."""
    (i,) = [i for i, problem in enumerate(PROBLEMS) if problem.problem in prompt]
    answer = PROBLEMS[(i + (RIGHT[i][sample] == "0")) % len(PROBLEMS)].answer
    text = f"{block(*'AB')}\\boxed{{{answer}}}"
    return trajectory(text, prompt, params.temperature, mode)


def test_every_verdict_goes_to_its_problem_and_sample():
    engine, params = ScriptedEngine(script), SamplingParams(max_tokens=9, temperature=0.5, seed=3)
    frame = evaluate.respond(engine, PROBLEMS, "{problem}?\n", params, 3, "mine", "parallel")
    prompts = [f"A={i};?\n" for i in range(4)]
    assert engine.calls == [(prompts, params, 3, "parallel")]
    assert frame[["problem_id", "sample"]].values.tolist() == [
        [f"p{i}", s] for i in range(4) for s in range(3)
    ]
    assert frame["accuracy"].tolist() == [float(x) for x in "".join(RIGHT)]
    assert frame["reward"].tolist() == [2.0 * int(x) - 1 for x in "".join(RIGHT)]
    for _, row in frame.iterrows():
        problem = PROBLEMS[int(row["problem_id"][1:])]
        assert (row["problem"], row["answer"]) == (problem.problem, problem.answer)
        assert TOKENIZER.decode(row["prompt_ids"]).startswith(problem.problem)
        assert (f"\\boxed{{{row['answer']}}}" in row["text"]) == (row["accuracy"] == 1)
    assert set(frame["stage"]) == set(frame["checkpoint"]) == {"mine"}


def evaluate_with(monkeypatch, run_dir, engine, mode="parallel", size=64):
    monkeypatch.setattr(evaluate, "checkpoint_engine", lambda *_: nullcontext(engine))
    monkeypatch.setattr(evaluate, "load_problems", lambda spec, split, seed: PROBLEMS)
    monkeypatch.setattr(evaluate, "checkpoint_mode", lambda folder: mode)
    monkeypatch.setattr(portions, "at_once", lambda: 1)
    overrides = ["evaluation.samples=3", "evaluation.sampling.temperature=0.7"]
    overrides += [f"engine.max_running={size}"]
    stage = make_stage(load_profile("smoke", overrides), run_dir, seed=5)
    return stage, evaluate.evaluate(stage, "npr", "validation")


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_evaluation_samples_by_the_profile_and_decodes_greedily_once(tmp_path, monkeypatch, mode):
    engine = ScriptedEngine(script)
    stage, frame = evaluate_with(monkeypatch, tmp_path, engine, mode)
    (sampled, greedy) = [(params, n) for _, params, n, _ in engine.calls]
    assert (sampled[0].temperature, sampled[1]) == (0.7, 3)
    assert (greedy[0].temperature, greedy[1]) == (0.0, 1)
    assert sampled[0].seed != greedy[0].seed
    kept = stage.profile.evaluation.sampling
    assert all(replace(p, temperature=0.7, seed=kept.seed) == kept for p, _ in (sampled, greedy))
    assert {call[3] for call in engine.calls} == set(frame["mode"]) == {mode}
    assert frame["temperature"].tolist() == [0.7] * 12 + [0.0] * 4
    assert frame.groupby(["temperature", "problem_id"]).size().tolist() == [1] * 4 + [3] * 4
    assert set(frame.loc[frame["temperature"] == 0, "sample"]) == {0}
    expected = [float(x) for x in "".join(RIGHT)] + [float(right[0]) for right in RIGHT]
    assert frame["accuracy"].tolist() == expected
    assert pd.read_parquet(rollouts_path(tmp_path, "npr", "validation")).shape == frame.shape
    assert evaluate.evaluate(stage, "npr", "validation").shape == frame.shape
    assert len(engine.calls) == 2, "what was answered before was answered again"


def test_a_killed_evaluation_goes_on_and_portions_change_nothing(tmp_path, monkeypatch):
    def killed(prompt, *others):
        if "A=2" in prompt:
            raise KeyboardInterrupt
        return script(prompt, *others)

    with pytest.raises(KeyboardInterrupt):
        evaluate_with(monkeypatch, tmp_path, ScriptedEngine(killed), size=1)
    engine = ScriptedEngine(script)
    _, frame = evaluate_with(monkeypatch, tmp_path, engine, size=1)
    assert {prompt for call in engine.calls for prompt in call[0]} == {"A=2;\n", "A=3;\n"}
    _, whole = evaluate_with(monkeypatch, tmp_path / "whole", ScriptedEngine(script))
    pd.testing.assert_frame_equal(frame, whole)
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["validation_npr.parquet"]


# seconds of a call with one response and with all four, round by round: medians of quotients are
# other numbers than quotients of medians
SECONDS = {
    "npr": ((2, 8, 3), (4, 9, 5)),
    "sr": ((3, 9, 12), (6, 7, 8)),
    "replay_parallel": ((1, 4, 2), (3, 5, 9)),
    "replay_sequential": ((4, 5, 6), (4, 8, 7)),
}
ROUNDS, COUNT = 3, len(PROBLEMS)


class TimedEngine(ScriptedEngine):
    """Its calls take the time that `SECONDS` says, on `clock`."""

    def __init__(self, name, clock):
        super().__init__(self.answer)
        self.name, self.clock, self.counts = name, clock, {}

    def answer(self, prompt, sample, params, mode):
        own = self.name == "npr"
        text = f"{block('A=1', 'B=1+1')}\\boxed{{7}}" if own else "A=1,B=1+1\\boxed{7}"
        return trajectory(text, prompt, params.temperature, mode)

    def generate(self, prompts, params, n=1, mode="parallel"):
        assert mode == ("parallel" if self.name == "npr" else "sequential")
        if self.name == "sr" or self.calls:  # NPR's first call makes what is replayed: not timed
            self._wait(self.name, len(prompts))
        else:
            self.clock.now += 1000
        return super().generate(prompts, params, n, mode)

    def replay_all(self, trajectories, mode):
        self._wait(f"replay_{mode}", len(trajectories))
        return trajectories

    def _wait(self, way, size):
        done = self.counts.setdefault((way, size), 0)
        self.counts[way, size] += 1
        each = SECONDS[way][size > 1][done // (COUNT if size == 1 else 1)]
        self.clock.now += each


def expected(way, batch, unit):
    """A number a round, by hand."""
    tokens = COUNT * (work_of("sr") if way == "sr" else work_of("npr"))
    calls = COUNT if batch == 0 else 1
    spent = [calls * seconds for seconds in SECONDS[way][batch]]
    if unit == "seconds_per_response":
        return [seconds / COUNT for seconds in spent]
    return [tokens / seconds for seconds in spent]


def work_of(name):
    params = SamplingParams(max_tokens=9)
    mode = "parallel" if name == "npr" else "sequential"
    return len(TimedEngine(name, None).answer("A=1;\n", 0, params, mode).completion_ids)


def test_speed_is_what_the_clock_says(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    engines = {name: TimedEngine(name, clock) for name in ("npr", "sr")}
    monkeypatch.setattr(evaluate, "load_engine", lambda stage, name: engines[name])
    monkeypatch.setattr(evaluate, "load_problems", lambda spec, split, seed: PROBLEMS)
    monkeypatch.setattr(evaluate, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    overrides = [f"evaluation.speed_problems={COUNT}", f"evaluation.speed_rounds={ROUNDS}"]
    found = evaluate.speed(make_stage(load_profile("smoke", overrides), tmp_path))
    for batch, kind in enumerate(("latency", "throughput")):
        for way in SECONDS:
            for unit in ("seconds_per_response", "tokens_per_second"):
                middle = statistics.median(expected(way, batch, unit))
                assert found[kind][way][unit] == pytest.approx(middle), (kind, way, unit)
        for ratio, top, bottom, unit in (
            ("npr_over_sr_tokens", "npr", "sr", "tokens_per_second"),
            ("npr_over_sr_time", "sr", "npr", "seconds_per_response"),
            ("replay", "replay_sequential", "replay_parallel", "seconds_per_response"),
        ):
            pairs = zip(expected(top, batch, unit), expected(bottom, batch, unit), strict=True)
            middle = statistics.median(a / b for a, b in pairs)
            assert found[f"{kind}_ratios"][ratio] == pytest.approx(middle), (kind, ratio)
    # tokens: <guideline> with its plans 12, the steps 7 and 9, the takeaway 3, the box 3
    assert work_of("npr") == 12 + 7 + 9 + 3 + 3
    assert found["ideal"] == pytest.approx((12 + 7 + 9 + 3 + 3) / (12 + 9 + 3 + 3))
    assert found["problems"] == COUNT
