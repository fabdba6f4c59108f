"""Responses written down problem by problem: killed, gone on with, refused, never mixed."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from oracles import random_model
from policies import random_policy
from scripted import trajectory

from npr_lib import WorkbenchError
from npr_lib.analysis import responses
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.tasks.problems import Problem, ProblemSet

TOKENIZER = tiny_tokenizer()
# two rows of a set may hold the same problem
TEXTS = [*(f"A={i}+1;" for i in range(10)), "A=3+1;"]
PROBLEMS = ProblemSet([Problem(f"p{i}", text, "7") for i, text in enumerate(TEXTS)], "exact")
MADE_OF = {"model": "abc", "k": 3, "temperature": 1.0}
KILL = "KILL_AFTER"


def answer(path, problems=PROBLEMS, made_of=MADE_OF, at_once=4, engine=None):
    """Real decoding with forks, at random: every token depends on its branch's key."""
    policy = random_policy(TOKENIZER, broken=0.2)
    Response.forced_token, before = policy_of(policy), Response.forced_token
    try:
        return responses.answers(
            engine or make_engine,
            problems,
            path,
            made_of,
            template="{problem}\n",
            sampling=SamplingParams(max_tokens=90, seed=5),
            k=3,
            mode="parallel",
            at_once=at_once,
        )
    finally:
        Response.forced_token = before


def policy_of(policy):
    return lambda self, branch: policy(self, branch)


def make_engine():
    return TorchEngine(
        random_model(random.Random(0), TOKENIZER), TOKENIZER, EngineConfig(num_slots=4096)
    )


def no_engine():
    raise AssertionError("nothing is missing, and yet an engine is made")


def flat(found):
    return [(t.completion_ids, t.position_ids.tolist(), t.finish_reason) for p in found for t in p]


def main():
    """In another process: answer, and die in the middle."""
    left = int(os.environ[KILL])
    write = responses._write_part

    def write_and_die(*arguments):
        nonlocal left
        write(*arguments)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    responses._write_part = write_and_die
    answer(Path(sys.argv[1]))


@pytest.mark.parametrize("after", [1, 6])
def test_killed_and_gone_on_with_gives_the_same_responses(tmp_path, after):
    path = tmp_path / "set.parquet"
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (root, root / "tests", root / "tests" / "analysis")))
    environment = os.environ | {KILL: str(after), "PYTHONPATH": paths}
    command = [sys.executable, __file__, str(path)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    parts = path.with_name("set.parquet.parts")
    assert len(list(parts.glob("*.parquet"))) == after and not path.exists()

    asked = []
    real = responses.by_problem

    def by_problem(engine, missing, *others):
        asked.extend(problem.id for problem in missing)
        return real(engine, missing, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses, "by_problem", by_problem)
        resumed = answer(path)
    assert len(asked) == len(PROBLEMS) - after, "what was answered is answered again"
    uninterrupted = answer(tmp_path / "whole.parquet", at_once=11)
    assert flat(resumed) == flat(uninterrupted)
    texts = {t.text for found in uninterrupted for t in found}
    assert len(texts) > 25 and any(t.triggered for found in uninterrupted for t in found)
    assert not parts.exists()
    assert flat(answer(path, engine=no_engine)) == flat(uninterrupted)


def test_a_problem_that_stands_twice_has_two_draws(tmp_path):
    found = answer(tmp_path / "set.parquet")
    first, twin = found[3], found[10]
    assert first[0].prompt_ids == twin[0].prompt_ids
    assert flat([first]) != flat([twin])


def test_more_problems_are_added_and_fewer_are_chosen(tmp_path):
    path = tmp_path / "set.parquet"
    few = answer(path, PROBLEMS[:4])
    every = answer(path)
    assert flat(every[:4]) == flat(few)
    assert len(pd.read_parquet(path)) == 3 * len(PROBLEMS)
    assert flat(answer(path, PROBLEMS[:4], engine=no_engine)) == flat(few)
    assert flat(every) == flat(answer(tmp_path / "whole.parquet"))


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_parameter_is_refused_with_its_name(tmp_path, finished):
    path = tmp_path / "set.parquet"
    if finished:
        answer(path)
    else:
        parts = path.with_name("set.parquet.parts")
        parts.mkdir()
        (parts / "made_of.json").write_text(json.dumps(MADE_OF))
        pd.DataFrame({"problem_id": ["p0"]}).to_parquet(parts / "000000.parquet")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    message = r"made otherwise \(temperature: 1.0 there, 0.7 now, top_p: null there, 0.9 now\)"
    with pytest.raises(WorkbenchError, match=message):
        answer(path, made_of=MADE_OF | {"temperature": 0.7, "top_p": 0.9}, engine=no_engine)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_an_attempt_that_answered_nothing_binds_nobody(tmp_path):
    path = tmp_path / "set.parquet"
    with pytest.raises(AssertionError, match="nothing is missing"):
        answer(path, PROBLEMS[:1], engine=no_engine)
    assert len(answer(path, PROBLEMS[:1], made_of=MADE_OF | {"k": 5})) == 1


def test_another_problem_under_an_old_id_is_refused(tmp_path):
    path = tmp_path / "set.parquet"
    answer(path, PROBLEMS[:2])
    changed = ProblemSet([Problem("p0", "B=1;", "7")], "exact")
    with pytest.raises(WorkbenchError, match="answers another problem 'p0' than the set has now"):
        answer(path, changed, engine=no_engine)


def test_scores_take_the_place_of_bare_responses_and_leave_others_alone(tmp_path):
    path = tmp_path / "set.parquet"
    found = answer(path)
    rollouts, _ = responses.scored(found[:2], PROBLEMS[:2])
    table = responses.to_rows(
        [rollout.trajectory for rollout in rollouts],
        problem_id=["p0"] * 3 + ["p1"] * 3,
        problem="?",
        sample=[0, 1, 2] * 2,
        accuracy=1.0,
    )
    table["problem"] = [TEXTS[0]] * 3 + [TEXTS[1]] * 3
    responses.write_scored(path, table)
    there = pd.read_parquet(path)
    assert len(there) == 3 * len(PROBLEMS)
    scored = there["problem_id"].isin(["p0", "p1"])
    assert (there.loc[scored, "accuracy"] == 1).all() and there.loc[
        ~scored, "accuracy"
    ].isna().all()
    assert flat(answer(path, engine=no_engine)) == flat(found)
    assert np.unique(there["problem_id"]).size == len(PROBLEMS)


def test_no_verdict_counts_as_wrong_and_is_told_apart():
    said = {"7": True, "8": False, "9": None}
    problems = ProblemSet(list(PROBLEMS[:2]), lambda predicted, problem: said[predicted])
    boxes = [["7", "9", None], ["8", "9", "7"]]
    found = [
        [trajectory("A" if box is None else f"\\boxed{{{box}}}") for box in own] for own in boxes
    ]
    rollouts, decided = responses.scored(found, problems)
    assert [rollout.correct for rollout in rollouts] == [True, False, False, False, False, True]
    assert decided == [True, False, True, True, False, True]
    assert [rollout.problem.id for rollout in rollouts] == ["p0"] * 3 + ["p1"] * 3


if __name__ == "__main__":
    main()
