"""Which of a problem's right and valid samples is kept."""

from collections import Counter
from types import SimpleNamespace

import pytest

from npr_lib import WorkbenchError
from npr_lib.problems import load_problems
from npr_lib.profile import load_profile
from npr_lib.schema import parse
from npr_lib.tokenizer import tiny_tokenizer
from npr_lib.train import rejection

BLOCK = "<guideline><plan>1:A</plan></guideline><step>1:A=1</step><takeaway>t</takeaway>"
PROBLEMS = load_problems(load_profile("smoke")["problems"], "train", 0)[:4]


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
    """Gives every problem its samples, one a call."""

    def __init__(self, *_):
        self.calls, self.asked = 0, []

    def generate(self, prompts, params, mode):
        assert mode == "sequential"
        found = []
        for prompt in prompts:
            (i,) = [i for i, p in enumerate(PROBLEMS) if p.problem in prompt]
            text, verdict = SAMPLES[i][self.calls]
            answer = PROBLEMS[i].answer if verdict == "right" else "no"
            graph = parse(f"{text}\\boxed{{{answer}}}")
            found.append(SimpleNamespace(graph=graph, problem=i))
        self.asked.append(len(prompts))
        self.calls += 1
        return found


def collect(monkeypatch, tmp_path, keep):
    engine = ScriptedEngine()
    monkeypatch.setattr(rejection, "load_checkpoint", lambda path: (None, tiny_tokenizer()))
    monkeypatch.setattr(rejection, "TorchEngine", lambda *_: engine)
    seen = {}

    def to_rows(trajectories, **columns):
        seen.update(columns, blocks=[len(t.graph.blocks) for t in trajectories])
        return SimpleNamespace(to_parquet=lambda *_, **__: None, attrs={})

    monkeypatch.setattr(rejection, "to_rows", to_rows)
    profile = load_profile("smoke", [f"rejection.keep={keep}", "rejection.k=3"])
    profile["rejection"]["problems"] = 4
    frame = rejection.collect(profile, tmp_path, tmp_path, 0)
    return engine, seen, frame.attrs


def test_the_first_right_and_valid_sample(monkeypatch, tmp_path):
    engine, seen, attrs = collect(monkeypatch, tmp_path, "first")
    assert seen["attempt"] == (0, 1, 1) and seen["blocks"] == [1, 1, 2]
    assert seen["problem_id"] == [p.id for p in PROBLEMS[:3]]
    assert engine.asked == [4, 3, 1]  # who has one is not asked again
    assert attrs == {"tried": 4, "without": 1}


def test_the_rarest_depth_among_all(monkeypatch, tmp_path):
    """1 block; then 2, which nobody has yet; then again 1: as often as 2, and it comes later, so
    the first among equals is the sample of 2 blocks."""
    engine, seen, attrs = collect(monkeypatch, tmp_path, "rare")
    assert seen["blocks"] == [1, 2, 2] and seen["attempt"] == (0, 2, 1)
    assert engine.asked == [4, 4, 4]
    assert attrs == {"tried": 4, "without": 1}


def test_rarest_counts_what_it_chose():
    depths = Counter({1: 5, 2: 4})
    one, two = (SimpleNamespace(graph=SimpleNamespace(blocks=[0] * n)) for n in (1, 2))
    chosen = [rejection._rarest([(0, one), (1, two)], depths)[0] for _ in range(3)]
    assert chosen == [1, 0, 1]
    assert depths == {1: 6, 2: 6}


def test_another_rule_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match=r"rejection\.keep = 'best'; it is one of first, rare"):
        rejection.collect(load_profile("smoke", ["rejection.keep=best"]), tmp_path, tmp_path, 0)
