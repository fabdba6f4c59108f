"""What a rollout batch may be: its sizes, refused in words before anything is loaded, and rows that
are left out of the loss."""

import copy
import random

import pytest
import torch
from stages_for_tests import make_stage
from test_papo import (
    REWARDS,
    SPLITS,
    TOKENIZER,
    Capture,
    assert_same_gradient,
    exact_logprobs,
    make_trainer,
    random_model,
    reference_advantages,
)

from npr_lib import WorkbenchError
from npr_lib.engine import SamplingParams
from npr_lib.profiles.profile import load_profile
from npr_lib.train import dapo, papo, reinforce

SHORT = {"mask_truncated_completions": True}


@pytest.mark.parametrize("split", [*SPLITS, {"steps_per_generation": 1}])
def test_truncated_responses_may_be_left_out_of_the_loss(tmp_path, monkeypatch, split):
    """Their logprobs are not computed, so there is nothing to compare with the engine's."""
    settings = {"sampling": SamplingParams(max_tokens=40)}
    trainer = make_trainer(tmp_path, monkeypatch, REWARDS, settings=settings, **SHORT, **split)
    capture = Capture()
    trainer.add_callback(capture)
    trainer.train()
    model = copy.deepcopy(random_model(random.Random(3), TOKENIZER)).double()
    advantages = reference_advantages(REWARDS, 4, "batch")  # of all responses
    terms, total = [], 0
    for rollout, advantage in zip(trainer._batch, advantages, strict=True):
        t = rollout.trajectory
        if t.completion_ids[-1] == TOKENIZER.eos_token_id:
            own = torch.tensor(t.sampled)
            terms.append(advantage * exact_logprobs(model, t)[own].sum())
            total += int(own.sum())
    assert 0 < len(terms) < len(REWARDS)
    (-sum(terms) / total).backward()
    assert_same_gradient(capture.gradient, model)
    assert trainer.state.log_history[0]["sampling/sampling_logp_difference/max"] < 1e-4


def test_a_batch_of_truncated_responses_teaches_nothing_and_goes_on(tmp_path, monkeypatch):
    settings = {"sampling": SamplingParams(max_tokens=3)}
    trainer = make_trainer(tmp_path, monkeypatch, REWARDS, settings=settings, **SHORT)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == 0 and log["grad_norm"] == 0


@pytest.mark.parametrize("count", [2, 16])
def test_any_size_of_a_group_will_do(count):
    """Also the paper's 16, which TRL's evaluation batch of 8, used by nobody, can't be cut into."""
    section = load_profile("smoke", [f"npr.grpo.num_generations={count}"]).npr
    fields = {**papo.grpo_fields(section), "per_device_train_batch_size": 32}
    args = reinforce.arguments("npr", section, fields, seed=0)
    assert args.num_generations == count and args.generation_batch_size == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.temperature=0", r"sampling\.temperature = 0: greedy .* are all the same"),
        ("grpo.save_strategy='no'", r"grpo\.save_strategy = no: .*every says how many"),
        ("grpo.save_strategy=epoch", r"grpo\.save_strategy = epoch"),
        ("grpo.eval_strategy='no'", r"grpo\.eval_strategy = no"),
        ("grpo.num_generations=3", "must be divisible by num_generations|whole groups"),
        ("validation.problems=9", r"validation\.problems = 9, but the validation split has 8"),
        ("grpo.per_device_train_batch_size=256", r"batch is of 128 problems.* 64"),
    ],
)
@pytest.mark.parametrize("stage", ["npr_zero", "npr"])
def test_what_can_not_be_trained_is_said_before_a_model_is_loaded(
    tmp_path, stage, override, message
):
    profile = load_profile("smoke", [f"{stage}.{override}"])
    train = {"npr_zero": dapo.train, "npr": papo.train}[stage]
    with pytest.raises(WorkbenchError, match=message) as caught:
        train(make_stage(profile, tmp_path))  # there is no model either
    assert stage in str(caught.value)


def test_every_process_rolls_out_whole_groups(monkeypatch):
    """Two of them make a batch that TRL would take, with half a group each."""
    monkeypatch.setattr("trl.GRPOConfig.world_size", 2, raising=False)
    section = load_profile("smoke", ["npr.grpo.num_generations=8"]).npr
    with pytest.raises(WorkbenchError, match=r"= 4 responses, which must be whole groups of .*= 8"):
        reinforce.arguments("npr", section, papo.grpo_fields(section), seed=0)
