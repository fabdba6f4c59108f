"""Several training ranks on one real SGLang, its own options, and what a run decodes on it."""

import shutil
from dataclasses import replace

import pytest
from sglang_engines import TOKENIZER, forking_model
from stages_for_tests import make_stage
from test_resume import read

from npr_lib import WorkbenchError
from npr_lib.analysis import evaluate
from npr_lib.engine import EngineConfig, SGLangEngine
from npr_lib.engine.checkpoint import save_model
from npr_lib.profiles.profile import load_profile
from npr_lib.reasoning.trajectory import PER_TOKEN, read_rollouts
from npr_lib.tasks.problems import Problem, ProblemSet
from npr_lib.train import papo, portions, rejection
from npr_lib.train.rollout import Rollout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
SMALL = ["engine.backend=sglang", "engine.num_slots=4096", "engine.max_running=16"]
GAP = "sampling/sampling_logp_difference/max"


@pytest.fixture(scope="module")
def model():
    return forking_model("qwen3")


@pytest.fixture
def run(model, tmp_path):
    """A run whose every checkpoint is the model."""
    for name in ("npr_beta", "npr_zero", "npr"):
        save_model(model, TOKENIZER, tmp_path / name, "parallel")
    return tmp_path


def digits(count):
    return ProblemSet([Problem(str(i), f"{i}{(3 * i) % 7}", "0") for i in range(count)], "exact")


def by_shape(rollout):
    return rollout.trajectory.span / rollout.trajectory.work


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_roll_out_on_one_sglang(run, model, dtype):
    """Trainer and engine agree at every step, as far as SGLang's type goes: it has the new weights;
    each rank has its own problems."""
    grpo = ["max_steps=3", "learning_rate=0.02", "optim=sgd", "per_device_train_batch_size=4"]
    profile = load_profile(
        "smoke",
        [
            *SMALL,
            f"engine.sglang={{dtype: {dtype}, max_prefill_tokens: 4096}}",
            *(f"npr.grpo.{x}" for x in grpo),
            f"npr.max_logprob_gap={1e-3 if dtype == 'float32' else 1}",
            "npr.validation.every=3",
            "launch.num_processes=2",
            "launch.timeout=300",
        ],
    )
    stage = make_stage(replace(profile, prompt="{problem}="), run, run / "npr_beta")
    problems = {"train": digits(7), "validation": digits(8)}
    shutil.rmtree(run / "npr")
    folder = papo.train(stage, reward=by_shape, problems=problems)
    log, weights = read(folder)
    gaps = [row[GAP] for row in log if GAP in row]
    print(f"{dtype}: max |trainer - engine| logprob {gaps}")
    assert len(gaps) == 3
    assert max(gaps) < (1e-3 if dtype == "float32" else 0.5)
    assert dtype == "float32" or min(gaps) > 1e-3  # else it did not compute in bfloat16
    rollouts = read_rollouts(run / "rollouts" / "npr.parquet")
    assert rollouts.groupby("step").size().tolist() == [8, 8, 8]
    assert rollouts.groupby("step")["problem_id"].nunique().tolist() == [4, 4, 4]
    assert rollouts["triggered"].mean() > 0.7
    start = model.state_dict()
    assert max((w - start[name]).abs().max() for name, w in weights.items()) > 1e-3


def test_evaluation_and_rejection_decode_on_sglang(run, monkeypatch):
    problems = digits(20)  # more than are in flight: two portions
    monkeypatch.setattr(evaluate, "load_problems", lambda *_: problems)
    monkeypatch.setattr(portions, "at_once", lambda: 1)  # in this process, which is patched
    frames = {}
    for backend in ("torch", "sglang"):
        profile = load_profile("smoke", [*SMALL, f"engine.backend={backend}"])
        stage = make_stage(replace(profile, prompt="{problem}="), run)
        frames[backend] = evaluate.evaluate(stage, "npr")
    for frame in frames.values():
        assert len(frame) == 3 * len(problems) and set(frame["mode"]) == {"parallel"}
    greedy = [frame[frame["temperature"] == 0] for frame in frames.values()]
    same = [a == b for a, b in zip(*(frame["text"] for frame in greedy), strict=True)]
    assert sum(same) >= len(same) - 1  # a near-tie may fall otherwise

    def all_right(trajectories, asked, _):
        return [Rollout(t, p, 0.0, True) for t, p in zip(trajectories, asked, strict=True)]

    monkeypatch.setattr(rejection, "score", all_right)
    monkeypatch.setattr(rejection, "_problems", lambda stage: problems)
    kept = rejection.collect(stage)
    assert kept["problem_id"].tolist() == [p.id for p in problems]
    assert not set(PER_TOKEN) & set(kept) and (run / "rejection.parquet").exists()


def test_an_option_that_sglang_has_not_is_refused(model, tmp_path):
    save_model(model, TOKENIZER, tmp_path, "parallel")
    with pytest.raises(WorkbenchError, match=r"no argument tp_sizes \(engine\.sglang"):
        SGLangEngine(tmp_path, EngineConfig(sglang={"tp_sizes": 2}))
