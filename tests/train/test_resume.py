"""A training run that was interrupted gives what it would have given without."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from oracles import random_model
from policies import random_policy
from stages_for_tests import make_stage
from transformers import AutoModelForCausalLM

from npr_lib import WorkbenchError
from npr_lib.engine.branch import Response
from npr_lib.profiles.profile import load_profile
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.train import dapo, papo, reinforce, sft
from npr_lib.train.logs import LogWriter
from npr_lib.train.trainer import RolloutTrainer

TOKENIZER = tiny_tokenizer()
STEPS = ["npr.grpo.max_steps=6", "npr.grpo.learning_rate=0.01"]


def by_length(rollout):
    """A reward that differs, without a word on what is right."""
    return rollout.trajectory.span / rollout.trajectory.work


def train(profile, run_dir, start, seed=0, mode="parallel"):
    return papo.train(make_stage(profile, run_dir, start, seed), mode, reward=by_length)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A random model whose tokens a random writer chooses; rewards by the responses' lengths."""
    policy = random_policy(TOKENIZER, broken=0.0)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    folder = tmp_path / "start"
    random_model(random.Random(3), TOKENIZER).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def interrupt(monkeypatch, at):
    """Ctrl-C at the beginning of step `at` (from 1): earlier ones are done."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == at - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(LogWriter, "on_step_begin", on_step_begin, raising=False)


def read(folder):
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return log, weights


def assert_same(one, other, tolerance=1e-6, but=()):
    (log, weights), (log_again, weights_again) = read(one), read(other)
    assert [row["step"] for row in log] == [row["step"] for row in log_again]
    # SFTTrainer counts tokens since the process began
    clocks = {"step_time", "num_tokens"}
    for row, again in zip(log, log_again, strict=True):
        assert row.keys() == again.keys()
        for name in row.keys() - clocks - set(but):
            assert row[name] == pytest.approx(again[name], tolerance, tolerance), (
                row["step"],
                name,
            )
    for name, tensor in weights.items():
        assert torch.allclose(tensor, weights_again[name], atol=tolerance), name


@pytest.mark.parametrize("at", [2, 4, 6])
def test_papo_goes_on_exactly(tmp_path, monkeypatch, start, at):
    """Whatever came after the last checkpoint (every 2 steps) is done again, to the same end."""
    profile = load_profile("smoke", STEPS)
    train(profile, tmp_path / "whole", start, 0)
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(KeyboardInterrupt):
            train(profile, tmp_path / "parts", start, 0)
    folder = tmp_path / "parts" / "npr"
    assert not folder.exists() and (tmp_path / "parts" / "npr.training" / "training.json").exists()
    begun = []
    roll_out = RolloutTrainer.roll_out

    def counted(self, prompts):
        begun.append(self.state.global_step)
        return roll_out(self, prompts)

    monkeypatch.setattr(RolloutTrainer, "roll_out", counted)
    train(profile, tmp_path / "parts", start, 0)
    assert begun == list(range((at - 1) // 2 * 2, 6))
    assert_same(tmp_path / "whole" / "npr", folder)
    rows, again = (
        pd.read_parquet(tmp_path / name / "rollouts" / "npr.parquet") for name in ("whole", "parts")
    )
    assert rows["step"].unique().tolist() == list(range(6))
    assert rows["advantage"].abs().max() > 0.1
    for name in ("problem_id", "completion_ids", "logprobs", "advantage", "position_ids"):
        assert rows[name].map(str).tolist() == again[name].map(str).tolist(), name
    assert not list(folder.glob("checkpoint-*"))


def killed_before_the_end(monkeypatch, module, train, *arguments):
    """All steps are done, the finished model is not saved yet."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "finish_training", killed)
        with pytest.raises(KeyboardInterrupt):
            train(*arguments)


@pytest.mark.parametrize("at", [6, 8])
def test_a_second_epoch_goes_on_exactly(tmp_path, monkeypatch, start, at):
    """Three steps an epoch; the run goes on from step 4, in the second, or 6, at its end."""
    profile = load_profile("smoke", ["npr.grpo.max_steps=8", "problems.train=6"])
    train(profile, tmp_path / "whole", start, 0)
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(KeyboardInterrupt):
            train(profile, tmp_path / "parts", start, 0)
    train(profile, tmp_path / "parts", start, 0)
    assert_same(tmp_path / "whole" / "npr", tmp_path / "parts" / "npr")
    rows, again = (
        pd.read_parquet(tmp_path / name / "rollouts" / "npr.parquet") for name in ("whole", "parts")
    )
    assert rows["completion_ids"].map(str).tolist() == again["completion_ids"].map(str).tolist()
    assert rows["problem_id"].tolist() == again["problem_id"].tolist()
    epochs = [rows.loc[rows["step"] // 3 == i, "problem_id"].tolist() for i in (0, 1)]
    assert set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]


def test_a_kill_while_something_is_written_costs_only_that(tmp_path, monkeypatch, start):
    """A checkpoint without the file that is written last, one with half of it, half a log line."""
    profile = load_profile("smoke", STEPS)
    train(profile, tmp_path / "whole", start, 0)
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(profile, tmp_path / "parts", start, 0)
    folder = tmp_path / "parts" / "npr.training"
    for step, content in ((4, None), (6, '{"global_step": 6, "ma')):
        cut = shutil.copytree(folder / "checkpoint-2", folder / f"checkpoint-{step}")
        (cut / "trainer_state.json").unlink()
        if content is not None:
            (cut / "trainer_state.json").write_text(content)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    train(profile, tmp_path / "parts", start, 0)
    assert_same(tmp_path / "whole" / "npr", tmp_path / "parts" / "npr")


@pytest.mark.parametrize("best", [2, 6])
def test_a_run_killed_after_its_last_step_is_not_trained_further(
    tmp_path, monkeypatch, start, best
):
    evaluate = RolloutTrainer.evaluate

    def judged(self, *_, **__):
        return evaluate(self) | {"eval_reward": -abs(self.state.global_step - best)}

    monkeypatch.setattr(RolloutTrainer, "evaluate", judged)
    profile = load_profile("smoke", STEPS)
    train(profile, tmp_path / "whole", start, 0)
    killed_before_the_end(monkeypatch, reinforce, train, profile, tmp_path / "parts", start, 0)
    train(profile, tmp_path / "parts", start, 0)
    assert_same(tmp_path / "whole" / "npr", tmp_path / "parts" / "npr")
    rows = pd.read_parquet(tmp_path / "parts" / "rollouts" / "npr.parquet")
    assert rows["step"].unique().tolist() == list(range(6))


def test_a_finished_run_is_not_repeated_and_another_begins_anew(tmp_path, start, capsys):
    profile = load_profile("smoke", ["npr.grpo.max_steps=2"])
    folder = train(profile, tmp_path, start, 0)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    table = tmp_path / "rollouts" / "npr.parquet"
    rows = table.read_bytes()
    table.unlink()
    train(profile, tmp_path, start, 0)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert table.read_bytes() == rows
    assert "was trained before" in capsys.readouterr().out
    train(profile, tmp_path, start, 1)
    assert (folder / "model.safetensors").stat().st_mtime_ns > written
    (before,) = (tmp_path / "aside").iterdir()  # what was there is not lost
    assert (before / "model.safetensors").stat().st_mtime_ns == written


def test_other_problems_in_the_same_file_are_another_run(tmp_path, start):
    path = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    profile = load_profile("smoke", ["npr.grpo.max_steps=2"])
    profile = replace(profile, problems={"kind": "file", "path": path})

    def train_on(answer):
        for name in path.values():
            rows = [{"problem": f"A={i};", "answer": answer} for i in range(8)]
            Path(name).write_text("\n".join(map(json.dumps, rows)))
        train(profile, tmp_path, start, 0)
        return set(pd.read_parquet(tmp_path / "rollouts" / "npr.parquet")["answer"])

    assert train_on("1") == {"1"}
    assert train_on("2") == {"2"}


def test_the_best_checkpoint_by_validation_is_kept(tmp_path, monkeypatch, start):
    """Validation rewards 1, 3, 2: the model is the one after step 4, not the last."""
    rewards, weights = {2: 1.0, 4: 3.0, 6: 2.0}, {}

    def evaluate(self, *_, **__):
        metrics = {"eval_reward": rewards[self.state.global_step]}
        weights[self.state.global_step] = {
            name: tensor.clone() for name, tensor in self.model.state_dict().items()
        }
        return metrics

    monkeypatch.setattr(RolloutTrainer, "evaluate", evaluate)
    folder = train(load_profile("smoke", STEPS), tmp_path, start, 0)
    kept = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    same = {
        step: all(torch.equal(kept[name], tensor) for name, tensor in saved.items() if name in kept)
        for step, saved in weights.items()
    }
    assert same == {2: False, 4: True, 6: False}


def test_validation_answers_held_out_problems_the_same_way_each_time(tmp_path, start):
    folder = train(load_profile("smoke", STEPS), tmp_path, start, 0)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seen = [row for row in log if "eval_reward" in row]
    assert [row["step"] for row in seen] == [2, 4, 6]
    assert all(0 < row["eval_reward"] <= 1 for row in seen)  # the reward is a share here
    assert len({row["eval_work"] for row in seen}) == 1  # the writer does not learn


def test_a_checkpoint_inside_a_rollout_batch_is_refused(tmp_path, start):
    several = ["npr.clip=dapo", "npr.grpo.steps_per_generation=4", "npr.validation.every=2"]
    with pytest.raises(WorkbenchError, match="every 2 steps falls into the middle of a rollout"):
        train(load_profile("smoke", several), tmp_path, start, 0)


def test_a_rollout_batch_of_broken_steps_is_refused(tmp_path, start):
    """Three parts a batch, two an optimizer step: rollouts of two batches would bear one step."""
    broken = ["npr_zero.grpo.steps_per_generation=3", "npr_zero.grpo.gradient_accumulation_steps=2"]
    with pytest.raises(WorkbenchError, match="steps_per_generation = 3 must be a multiple"):
        dapo.train(make_stage(load_profile("smoke", broken), tmp_path, start))


def test_fewer_validation_problems_than_asked_for_are_refused(tmp_path, start):
    with pytest.raises(WorkbenchError, match="problems = 9, but the validation split has 8"):
        train(load_profile("smoke", ["npr.validation.problems=9"]), tmp_path, start, 0)


@pytest.mark.parametrize("override", ["npr.validation.problems=9", "npr.validation.every=3"])
def test_a_call_that_fails_at_once_removes_nothing(tmp_path, start, override):
    folder = train(load_profile("smoke", ["npr.grpo.max_steps=2"]), tmp_path, start, 0)
    weights = (folder / "model.safetensors").read_bytes()
    wrong = ["npr.clip=dapo", "npr.grpo.steps_per_generation=2", override]
    with pytest.raises(WorkbenchError, match=r"middle of a rollout|split has 8"):
        train(load_profile("smoke", wrong), tmp_path, start, 0)
    with pytest.raises(WorkbenchError, match="is not a model folder"):
        train(load_profile("smoke"), tmp_path, tmp_path / "nothing", 0)
    assert (folder / "model.safetensors").read_bytes() == weights


def test_sft_goes_on_exactly(tmp_path, monkeypatch, start):
    response = (
        "<guideline><plan>1:B</plan><plan>2:A</plan></guideline><step>1:B=4+{}</step>"
        "<step>2:A=7-2+3</step><takeaway>B=5</takeaway>\\boxed{{13}}"
    )
    prompt = TOKENIZER.encode("A=1;", add_special_tokens=False)
    rows = [{"prompt_ids": prompt, "text": response.format(i)} for i in range(24)]
    options = ["sft.trl.max_steps=10", "sft.trl.save_steps=4", "sft.trl.learning_rate=0.01"]
    profile = load_profile("smoke", options)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        pd.DataFrame(rows).to_parquet(tmp_path / name / "rejection.parquet")
        shutil.copytree(start, tmp_path / name / "seed")
    sft.train(make_stage(profile, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt(patch, 10)
        with pytest.raises(KeyboardInterrupt):
            sft.train(make_stage(profile, tmp_path / "parts"))
    assert (tmp_path / "parts" / "npr_beta.training" / "checkpoint-8").exists()
    killed_before_the_end(monkeypatch, sft, sft.train, make_stage(profile, tmp_path / "parts"))
    sft.train(make_stage(profile, tmp_path / "parts"))
    assert_same(tmp_path / "whole" / "npr_beta", tmp_path / "parts" / "npr_beta")


def test_tensorboard_gets_what_the_log_has(tmp_path, start):
    """Any reporter of TRL's `report_to` does; this one writes files that can be read back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["npr.grpo.max_steps=2", "npr.grpo.report_to=tensorboard"]
    folder = train(load_profile("smoke", options), tmp_path, start, 0)
    (events,) = folder.rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events)).Reload()
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for name in ("reward", "kept_share", "blocks", "span", "grad_norm", "entropy/tags"):
        written = {e.step: e.value for e in board.Scalars(f"train/{name}")}
        assert written == pytest.approx({row["step"]: row[name] for row in log if name in row})
    assert [e.value for e in board.Scalars("eval/reward")] == pytest.approx(
        [row["eval_reward"] for row in log if "eval_reward" in row]
    )


def test_the_baseline_gets_the_same_problems_in_the_same_order(tmp_path, start):
    profile = load_profile("smoke", STEPS)
    shutil.copytree(start, tmp_path / "sr_beta")
    for mode in ("parallel", "sequential"):
        train(profile, tmp_path, start, 0, mode)
    npr, sr = (pd.read_parquet(tmp_path / "rollouts" / f"{n}.parquet") for n in ("npr", "sr"))
    assert npr["problem_id"].tolist() == sr["problem_id"].tolist()
    assert npr["step"].tolist() == sr["step"].tolist()
    assert set(npr["mode"]) == {"parallel"} and set(sr["mode"]) == {"sequential"}
    logs = [read(tmp_path / name)[0] for name in ("npr", "sr")]
    rates = [[row["learning_rate"] for row in log if "learning_rate" in row] for log in logs]
    assert len(rates[0]) == 6 and rates[0] == rates[1]
