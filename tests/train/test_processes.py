"""Several processes train the model that one trains: nothing is lost, doubled or of one part only;
and when one of them dies, the run stops, says which, and goes on another time."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from oracles import random_model
from policies import random_policy
from stages_for_tests import make_stage
from test_resume import assert_same
from test_side_by_side import wait_for
from transformers import TrainerState

from npr_lib import WorkbenchError
from npr_lib.engine.branch import Response
from npr_lib.profiles.profile import load_profile
from npr_lib.profiles.sections import Launch
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.train import dapo, papo, portions, sft
from npr_lib.train.checkpoints import _last_checkpoint
from npr_lib.train.launch import launch
from npr_lib.train.trainer import TrainingStoppedError

TOKENIZER = tiny_tokenizer()
ROWS = "per_device_train_batch_size"
GAP = {"sampling/sampling_logp_difference/max"}  # between trainer and engine: rounding itself
RESPONSE = (
    "<guideline><plan>1:B</plan><plan>2:A</plan></guideline><step>1:B=4{}</step>"
    "<step>2:A=7-2+3</step><takeaway>B=5</takeaway>\\boxed{{13}}"
)


def by_shape(rollout):
    """A reward that differs, also where the model decodes sequentially; equal in some groups."""
    return round(2 * rollout.trajectory.span / rollout.trajectory.work, 1) + (
        rollout.trajectory.work % 3 == 0
    )


def chosen_by_a_writer():
    """A random writer chooses the tokens in the place of the sampler, in this process."""
    policy = random_policy(TOKENIZER, broken=0.0)
    Response.forced_token = lambda self, branch: policy(self, branch)


def make_start(folder):
    """A run with a random model and data to train on."""
    random_model(random.Random(3), TOKENIZER).save_pretrained(folder / "start")
    TOKENIZER.save_pretrained(folder / "start")
    shutil.copytree(folder / "start", folder / "seed")
    prompt = TOKENIZER.encode("A=1;", add_special_tokens=False)
    rows = [
        {"prompt_ids": prompt * (1 + i % 3), "text": RESPONSE.format("+1" * (i % 5 + 1))}
        for i in range(32)
    ]
    pd.DataFrame(rows).to_parquet(folder / "rejection.parquet")
    return folder


def stage_of(section, processes, folder, *more):
    """8 rows a step, however many processes share them."""
    common = ["max_steps=4", "learning_rate=0.02", "optim=sgd", "gradient_accumulation_steps=1"]
    overrides = [f"{section}.{x}" for x in (*common, f"{ROWS}={8 // processes}")]
    overrides += ["npr_zero.resamples=2", "sft.trl.warmup_steps=0", "launch.timeout=60", *more]
    return make_stage(load_profile("smoke", overrides), folder, folder / "start")


def every_stage(processes, folder):
    two = [f"sft.trl.{x}" for x in ("gradient_accumulation_steps=2", f"{ROWS}={4 // processes}")]
    dapo.train(stage_of("npr_zero.grpo", processes, folder), reward=by_shape)
    chosen_by_a_writer()  # who knows when to end a block, as a random model doesn't
    sft.train(stage_of("sft.trl", processes, folder, *two))
    papo.train(stage_of("npr.grpo", processes, folder), reward=by_shape)
    # as `work_through` has it done by launched processes
    portions._write_share(number_them, None, numbers=range(9), folder=folder, title="shared")
    return torch.get_num_threads()


def number_them(stage, numbers):
    """Portions that say who made them."""
    for number in numbers:
        yield number, pd.DataFrame({"number": [number], "rank": [os.environ.get("RANK", "0")]})


@pytest.fixture
def one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(Response, "forced_token", Response.forced_token)  # put back afterwards
    (tmp_path / "1").mkdir()
    every_stage(1, make_start(tmp_path / "1"))
    return tmp_path / "1"


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_do_what_one_does(one_process, tmp_path, processes):
    """Plain SGD: Adam would blow the rounding of gradients near zero up."""
    (many := tmp_path / "many").mkdir()
    settings = Launch(num_processes=processes, timeout=60)
    assert launch(settings, every_stage, processes, make_start(many)) == 1
    for name in ("npr_zero", "npr_beta", "npr"):
        assert_same(one_process / name, many / name, tolerance=1e-5, but=GAP)
    for name in ("npr_zero", "npr"):
        path = f"rollouts/{name}.parquet"
        one, other = (pd.read_parquet(run / path) for run in (one_process, many))
        for column in ("step", "problem_id", "sample"):
            assert one[column].tolist() == other[column].tolist(), column
        assert one["completion_ids"].map(str).equals(other["completion_ids"].map(str))
        assert other["advantage"].tolist() == pytest.approx(one["advantage"].tolist(), abs=1e-5)
    made = [pd.read_parquet(many / f"{number:06}.parquet") for number in range(9)]
    assert pd.concat(made)["number"].tolist() == list(range(9))
    assert set(pd.concat(made)["rank"]) == set(map(str, range(processes)))


def by_length(folder):
    """A reward of a notebook's cell, in whose rank 1 something goes wrong once, after the first
    checkpoint, where a file of the folder says what."""

    def reward(rollout):
        folder_path = Path(folder)
        later = list(folder_path.glob("npr.training/checkpoint-2"))
        if later and os.environ.get("RANK") == "1" and (said := list(folder_path.glob("do-*"))):
            said[0].unlink()
            (folder_path / "died").write_text(str(time.time()))
            if said[0].name == "do-kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no such part")
        return rollout.trajectory.span / rollout.trajectory.work

    return reward


@pytest.mark.slow
def test_when_a_rank_dies_the_run_stops_and_goes_on(tmp_path):
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
        make_start(folder)
    more = ["npr.grpo.max_steps=6"]
    papo.train(stage_of("npr.grpo", 1, folders[0], *more), reward=by_length(str(folders[0])))
    stage = stage_of("npr.grpo", 2, folders[1], *more, "launch.num_processes=2")
    reward = by_length(str(folders[1]))
    for what, told in (
        (
            "raise",
            r"rank 1 of 2 of npr_lib\.train\.papo\.train failed: ValueError: no such",
        ),
        ("kill", r"rank 1 of 2 of npr_lib\.train\.papo\.train was killed \(SIGKILL; .* goes on"),
    ):
        (folders[1] / f"do-{what}").touch()
        with pytest.raises(WorkbenchError, match=told):
            papo.train(stage, reward=reward)
        seconds = time.time() - float((folders[1] / "died").read_text())
        print(f"{what}: told {seconds:.1f} s after it")
        assert seconds < 60
        assert not psutil.Process().children(recursive=True)
        assert not (folders[1] / "npr").exists()
        assert (folders[1] / "npr.training" / "checkpoint-2" / "trainer_state.json").exists()
    assert papo.train(stage, reward=reward) == folders[1] / "npr"
    assert_same(*(folder / "npr" for folder in folders), tolerance=1e-5, but=GAP)


def test_a_checkpoint_whose_random_states_are_cut_off_is_not_gone_on_from(tmp_path):
    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        TrainerState().save_to_json(str(folder / "trainer_state.json"))
        torch.save({"cpu": torch.zeros(99)}, folder / "rng_state.pth")
    whole = (tmp_path / "checkpoint-4" / "rng_state.pth").read_bytes()
    (tmp_path / "checkpoint-4" / "rng_state.pth").write_bytes(whole[:-30])
    (tmp_path / "checkpoint-6" / "rng_state.pth").unlink()
    assert _last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_what_a_rank_raises_of_ours_is_raised_as_it_is():
    with pytest.raises(TrainingStoppedError, match=r"^all invalid") as caught:
        launch(Launch(num_processes=2, timeout=60), fail)
    assert caught.value.__notes__ == ["in rank 1 of 2 of test_processes.fail"]


def fail():
    if os.environ["RANK"] == "1":
        raise TrainingStoppedError("all invalid")
    time.sleep(600)


ALONE = """
import sys, time
from test_processes import Launch, launch, sleep
launch(Launch(num_processes=2, timeout=60), sleep, sys.argv[1])
"""


def sleep(folder):
    (Path(folder) / os.environ["RANK"]).touch()
    time.sleep(600)


@pytest.mark.slow
def test_the_ranks_end_when_their_caller_is_killed(tmp_path):
    path = os.pathsep.join([*filter(None, sys.path)])
    (tmp_path / "run.py").write_text(ALONE)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path)]
    caller = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    wait_for(tmp_path / "0")
    wait_for(tmp_path / "1")
    others = psutil.Process(caller.pid).children(recursive=True)
    assert len(others) >= 3  # the launcher and two ranks
    caller.kill()
    caller.wait()
    _, alive = psutil.wait_procs(others, timeout=40)
    assert not alive


FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}
mixed_precision: "no"
num_machines: 1
num_processes: 2
"""


@pytest.mark.slow
def test_sharded_weights_are_refused(tmp_path):
    """accelerate's file is read by accelerate's launcher; on a CPU it would leave them whole."""
    (tmp_path / "fsdp.yaml").write_text(FSDP)
    with pytest.raises(WorkbenchError, match="FSDP, which shards the weights"):
        launch(Launch(num_processes=2, config_file=str(tmp_path / "fsdp.yaml"), timeout=60), fail)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["launch.num_processes=0"], r"launch\.num_processes = 0: expected at least 1"),
        (["launch.config_file=a.yaml"], "is for several processes"),
    ],
)
def test_a_launch_that_makes_no_sense_is_refused(overrides, told):
    with pytest.raises(WorkbenchError, match=told):
        load_profile("smoke", overrides)


def test_a_missing_configuration_is_told_of():
    with pytest.raises(WorkbenchError, match=r"a\.yaml: there is no such file"):
        launch(Launch(num_processes=2, config_file="a.yaml"), fail)
