"""Which of a problem's right and valid samples is kept."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from stages_for_tests import make_stage

from npr_lib import WorkbenchError
from npr_lib.engine.sampling import mix
from npr_lib.profiles.profile import load_profile
from npr_lib.reasoning.schema import parse
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.tasks.problems import load_problems
from npr_lib.train import rejection

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

    def __init__(self, *_):
        self.asked = {}

    def generate(self, prompts, params, mode):
        assert mode == "sequential"
        found = []
        (attempt,) = [attempt for attempt in range(3) if mix(0, attempt) == params.seed]
        for prompt in prompts:
            (i,) = [i for i, p in enumerate(PROBLEMS) if p.problem in prompt]
            text, verdict = SAMPLES[i][attempt]
            answer = PROBLEMS[i].answer if verdict == "right" else "no"
            graph = parse(f"{text}\\boxed{{{answer}}}")
            found.append(SimpleNamespace(graph=graph, problem=i))
        self.asked[attempt] = len(prompts)
        return found


def collect(monkeypatch, tmp_path, keep, shares=1):
    engine = ScriptedEngine()
    monkeypatch.setattr(rejection, "load_checkpoint", lambda path: (None, tiny_tokenizer()))
    monkeypatch.setattr(rejection, "TorchEngine", lambda *_: engine)
    monkeypatch.setattr(rejection, "at_once", lambda: shares)
    monkeypatch.setattr(rejection, "side_by_side", lambda f, calls: [f(*call) for call in calls])
    seen = {}

    def to_table(scored, **columns):
        seen.update(columns, blocks=[len(r.graph.blocks) for r in scored])
        seen["problem_id"] = [r.problem.id for r in scored]
        return SimpleNamespace(attrs={})

    monkeypatch.setattr(rejection, "to_table", to_table)
    monkeypatch.setattr(rejection, "write_made", lambda *_: None)
    overrides = [f"rejection.keep={keep}", "rejection.k=3", "rejection.problems=4"]
    frame = rejection.collect(make_stage(load_profile("smoke", overrides), tmp_path))
    return engine, seen, frame.attrs


def test_the_first_right_and_valid_sample(monkeypatch, tmp_path):
    engine, seen, attrs = collect(monkeypatch, tmp_path, "first")
    assert seen["attempt"] == (0, 1, 1) and seen["blocks"] == [1, 1, 2]
    assert seen["problem_id"] == [p.id for p in PROBLEMS[:3]]
    assert engine.asked == {0: 4, 1: 3, 2: 1}  # who has one is not asked again
    assert attrs == {"tried": 4, "without": 1}


@pytest.mark.parametrize("shares", [1, 2])
def test_any_of_the_numbers_of_blocks(monkeypatch, tmp_path, shares):
    engine, seen, attrs = collect(monkeypatch, tmp_path, "varied", shares)
    first_of = [{1: 0, 2: 1}, {1: 1, 2: 2}, {1: 2, 2: 1}]
    chosen = zip(seen["blocks"], seen["attempt"], first_of, strict=True)
    assert all(attempt == of[blocks] for blocks, attempt, of in chosen)
    assert engine.asked == {0: 4, 1: 4, 2: 4}
    assert attrs == {"tried": 4, "without": 1}


def test_each_number_of_blocks_is_as_likely_and_its_first_sample_kept():
    samples = [
        (i, SimpleNamespace(graph=SimpleNamespace(blocks=[0] * n)))
        for i, n in enumerate([2, 1, 1, 1, 1, 3, 2])
    ]
    draw = random.Random(0)
    kept = Counter(rejection._varied(samples, draw)[0] for _ in range(3000))
    assert set(kept) == {0, 1, 5}
    assert max(abs(count / 3000 - 1 / 3) for count in kept.values()) < 0.035
    assert rejection._varied(samples[1:5], draw)[0] == 1


def test_another_rule_is_refused():
    with pytest.raises(WorkbenchError, match=r"rejection\.keep = 'best'.*'first' or 'varied'"):
        load_profile("smoke", ["rejection.keep=best"])
