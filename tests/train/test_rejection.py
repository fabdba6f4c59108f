"""Which of a problem's right and valid samples is kept."""

import random
from collections import Counter
from contextlib import nullcontext

import pandas as pd
import pytest
from scripted import TOKENIZER, trajectory
from stages_for_tests import make_stage

from npr_lib import WorkbenchError
from npr_lib.engine.sampling import mix
from npr_lib.profiles.profile import load_profile
from npr_lib.reasoning.schema import parse
from npr_lib.reasoning.trajectory import PER_TOKEN, from_row, read_rollouts
from npr_lib.tasks.problems import Problem, ProblemSet, load_problems
from npr_lib.train import portions, rejection

BLOCK = "<guideline><plan>1:A</plan></guideline><step>1:A=1</step><takeaway>t</takeaway>"
PROBLEMS = load_problems(load_profile("smoke").problems, "train", 0)[:4]


def answers(blocks, right=True):
    """A response of so many blocks; 0: not valid."""
    return [BLOCK * blocks, "right" if right else "wrong"]


# problem -> its samples, attempt by attempt
SAMPLES = [
    [answers(1), answers(2), answers(1)],
    [answers(1, right=False), answers(1), answers(2)],
    [answers(0), answers(2), answers(1)],
    [answers(0), answers(1, right=False), answers(0)],
]


class ScriptedEngine:
    """Gives every problem the sample of the attempt that the seed belongs to."""

    tokenizer = TOKENIZER

    def __init__(self):
        self.asked = Counter()

    def generate(self, prompts, params, mode):
        assert mode == "sequential"
        (attempt,) = [attempt for attempt in range(3) if mix(0, attempt) == params.seed]
        self.asked[attempt] += len(prompts)
        return [self.answer(prompt, attempt) for prompt in prompts]

    def answer(self, prompt, attempt):
        (i,) = [i for i, p in enumerate(PROBLEMS) if p.problem in prompt]
        text, verdict = SAMPLES[i][attempt]
        answer = PROBLEMS[i].answer if verdict == "right" else "no"
        return trajectory(f"{text}\\boxed{{{answer}}}", prompt, mode="sequential")


def collect(monkeypatch, run_dir, keep, size=64, engine=None):
    engine = engine or ScriptedEngine()
    monkeypatch.setattr(rejection, "checkpoint_engine", lambda *_: nullcontext(engine))
    monkeypatch.setattr(portions, "at_once", lambda: 1)
    run_dir.mkdir(exist_ok=True)
    overrides = [f"rejection.keep={keep}", "rejection.k=3", "rejection.problems=4"]
    overrides += [f"engine.max_running={size}"]
    return engine, rejection.collect(make_stage(load_profile("smoke", overrides), run_dir))


def blocks(frame):
    return [len(parse(text).blocks) for text in frame["text"]]


@pytest.mark.parametrize("size", [64, 3, 1])
def test_the_first_right_and_valid_sample(monkeypatch, tmp_path, size):
    engine, frame = collect(monkeypatch, tmp_path, "first", size)
    assert frame["attempt"].tolist() == [0, 1, 1] and blocks(frame) == [1, 1, 2]
    assert frame["problem_id"].tolist() == [p.id for p in PROBLEMS[:3]]
    assert engine.asked == {0: 4, 1: 3, 2: 1}  # who has one is not asked again
    assert (frame.attrs["tried"], frame.attrs["without"]) == (4, 1)
    assert not set(PER_TOKEN) & set(frame)  # what a table of long responses mostly is
    whole = read_rollouts(tmp_path / "rejection.parquet")
    assert [from_row(row).text for _, row in whole.iterrows()] == frame["text"].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["rejection.parquet"]


def test_any_of_the_numbers_of_blocks_whatever_the_portions(monkeypatch, tmp_path):
    first_of = [{1: 0, 2: 1}, {1: 1, 2: 2}, {1: 2, 2: 1}]
    found = []
    for size in (64, 3, 1):
        engine, frame = collect(monkeypatch, tmp_path / str(size), "varied", size)
        chosen = zip(blocks(frame), frame["attempt"], first_of, strict=True)
        assert all(attempt == of[number] for number, attempt, of in chosen)
        assert engine.asked == {0: 4, 1: 4, 2: 4}
        assert (frame.attrs["tried"], frame.attrs["without"]) == (4, 1)
        found.append(read_rollouts(tmp_path / str(size) / "rejection.parquet"))
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0], other)


def test_each_number_of_blocks_is_as_likely(tmp_path):
    """Of a problem with samples of 2, 1 and 3 blocks, first seen at 0, 1 and 5."""
    pd.DataFrame({"problem_id": ["a"] * 3}).to_parquet(tmp_path / "0.parquet")
    draw, problem = random.Random(0), ProblemSet([Problem("a", "?", "1")], "exact")
    files = [tmp_path / "0.parquet"]
    kept = Counter(rejection._choose(files, problem, draw)[0][1] for _ in range(1500))
    assert set(kept) == {0, 1, 2}
    assert max(abs(count / 1500 - 1 / 3) for count in kept.values()) < 0.05


class Killed(ScriptedEngine):
    """Stops at the problem that comes second."""

    def answer(self, prompt, attempt):
        if PROBLEMS[1].problem in prompt:
            raise KeyboardInterrupt
        return super().answer(prompt, attempt)


def test_what_was_sampled_is_not_sampled_again(monkeypatch, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        collect(monkeypatch, tmp_path, "varied", 1, Killed())
    parts = tmp_path / "rejection.parquet.portions"
    assert [path.name for path in parts.glob("*.parquet")] == ["000000.parquet"]
    engine, frame = collect(monkeypatch, tmp_path, "varied", 1)
    assert engine.asked == {0: 3, 1: 3, 2: 3} and not parts.exists()
    _, whole = collect(monkeypatch, tmp_path / "whole", "varied")
    pd.testing.assert_frame_equal(frame, whole)


def test_portions_of_another_setting_are_set_aside(monkeypatch, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        collect(monkeypatch, tmp_path, "varied", 1, Killed())
    engine, _ = collect(monkeypatch, tmp_path, "first", 1)
    assert engine.asked[0] == 4 and "begun with other settings" in capsys.readouterr().out
    assert len(list((tmp_path / "aside").glob("rejection.parquet-*/000000.parquet"))) == 1


def test_a_problem_that_stands_twice_is_in_one_portion():
    """Where its second draw is another than its first."""
    problems = [Problem(str(i), text, "1") for i, text in enumerate("abcadab")]
    stage = make_stage(load_profile("smoke", ["engine.max_running=2"]), ".")
    found = [[p.id for p in portion] for portion in portions.split(stage, problems)]
    assert found == [["0", "1", "3", "5", "6"], ["2"], ["4"]]


def test_another_rule_is_refused():
    with pytest.raises(WorkbenchError, match=r"rejection\.keep = 'best'.*'first' or 'varied'"):
        load_profile("smoke", ["rejection.keep=best"])
