"""PAPO against the formulas of design section 8, in float64 and with plain dense forwards."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import brute_force_mask, dense_logits, random_model, trajectory_paths
from policies import random_policy
from transformers import TrainerCallback
from trl import GRPOConfig

from npr_lib import WorkbenchError
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.problems import Problem, ProblemSet
from npr_lib.profile import load_profile
from npr_lib.tokenizer import tiny_tokenizer
from npr_lib.train import papo, rollouts
from npr_lib.train.papo import PAPO, advantages
from npr_lib.train.rollouts import RolloutSettings, RolloutTrainer, TrainingStoppedError

TOKENIZER = tiny_tokenizer()
NAN = float("nan")


def reference_advantages(rewards, group_size):
    """The formula, one response at a time."""
    kept = [r for r in rewards if r == r]
    if len(kept) < 2:
        return [0.0] * len(rewards)
    mean = sum(kept) / len(kept)
    std = (sum((r - mean) ** 2 for r in kept) / (len(kept) - 1)) ** 0.5
    out = []
    for i, r in enumerate(rewards):
        group = rewards[i // group_size * group_size :][:group_size]
        group = [x for x in group if x == x]
        out.append((r - sum(group) / len(group)) / (std + 1e-4) if r == r else 0.0)
    return out


@pytest.mark.parametrize("seed", range(20))
def test_advantages_equal_the_formula(seed):
    rng = random.Random(seed)
    size = rng.choice([2, 4, 8])
    rewards = [rng.choice([1.0, -1.0, -1.0, 0.3, NAN]) for _ in range(size * 5)]
    assert np.allclose(advantages(rewards, size), reference_advantages(rewards, size), atol=1e-12)


@pytest.mark.parametrize(
    "rewards", [[1.0] * 8, [NAN] * 8, [NAN] * 7 + [1.0], [1.0, 1.0, NAN, NAN] * 2]
)
def test_no_variance_gives_no_advantage(rewards):
    assert advantages(rewards, 4).tolist() == [0.0] * 8


def test_advantages_refuse_broken_groups():
    with pytest.raises(ValueError, match="groups of 4"):
        advantages(np.zeros(6), 4)


class Capture(TrainerCallback):
    """The gradient as the optimizer would see it."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.gradient = {
            name: p.grad.clone().double()
            for name, p in model.named_parameters()
            if p.grad is not None
        }


def make_trainer(tmp_path, monkeypatch, rewards, mode="parallel", **grpo):
    """A random model whose responses a random writer chooses and whose rewards are given."""
    policy = random_policy(TOKENIZER, broken=0.05)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    model = random_model(random.Random(3), TOKENIZER)
    engine = TorchEngine(model, TOKENIZER, EngineConfig(num_slots=4096))
    problems = ProblemSet(
        [Problem(str(i), f"A={i}", "0", {}) for i in range(6)], lambda predicted, problem: False
    )
    queue = iter(rewards)
    settings = RolloutSettings(
        SamplingParams(max_tokens=60), mode, lambda r_f, r_a: next(queue), max_logprob_gap=1e-3
    )
    args = GRPOConfig(
        **{
            **rollouts.DEFAULTS,
            **PAPO,
            "output_dir": str(tmp_path),
            "num_generations": 4,
            "per_device_train_batch_size": 12,
            "max_completion_length": 60,
            "max_steps": 1,
            "max_grad_norm": 0.0,
            "learning_rate": 0.0,
            "use_cpu": True,
            **grpo,
        }
    )
    return RolloutTrainer(model, TOKENIZER, args, engine, problems, "{problem};", settings)


@pytest.mark.parametrize(
    "split", [{}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}]
)
@pytest.mark.parametrize("filtered", [False, True])
def test_gradient_is_reinforce_on_sampled_tokens(tmp_path, monkeypatch, filtered, split):
    """Whole batch or accumulated micro-batches, with and without filtered responses."""
    rewards = [
        1.0,
        -1,
        -1,
        1,
        -1,
        -1,
        NAN if filtered else -1,
        0.5,
        1,
        1,
        NAN if filtered else 0,
        -1,
    ]
    trainer = make_trainer(tmp_path, monkeypatch, rewards, **split)
    capture = Capture()
    trainer.add_callback(capture)
    trainer.train()
    batch = trainer._batch
    expected = reference_advantages(rewards, 4)
    assert np.allclose(trainer.rollouts[0]["advantage"], expected, atol=1e-5)
    assert np.allclose(advantages(rewards, 4), trainer.rollouts[0]["advantage"], atol=1e-5)

    model = copy.deepcopy(random_model(random.Random(3), TOKENIZER)).double()
    kept = [r for r in batch if r.reward == r.reward]
    total = sum(sum(r.trajectory.sampled) for r in kept)
    assert any(r.trajectory.num_branches and max(r.trajectory.num_branches) > 1 for r in kept)
    objective = 0.0
    for rollout, advantage in zip(batch, expected, strict=True):
        t = rollout.trajectory
        if rollout.reward != rollout.reward:
            continue
        ids = t.prompt_ids + t.completion_ids
        mask = brute_force_mask(trajectory_paths(t))
        bias = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -1e300)
        model.set_attn_implementation("eager")
        logits = model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.as_tensor(t.position_ids)[None],
            attention_mask=bias[None, None],
            use_cache=False,
        ).logits[0]
        logprobs = torch.log_softmax(logits, -1)
        start = len(t.prompt_ids)
        for i, (token, own) in enumerate(zip(t.completion_ids, t.sampled, strict=True)):
            if own:
                objective = objective + advantage * logprobs[start + i - 1, token] / total
    (-objective).backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().clamp(min=1e-3)
        assert torch.allclose(capture.gradient[name], parameter.grad, atol=2e-4 * scale.item()), (
            name
        )


def test_sequential_mode_trains_on_every_token(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6, mode="sequential")
    trainer.train()
    for rollout in trainer._batch:
        assert all(rollout.trajectory.sampled)
        n = len(rollout.trajectory.position_ids)
        assert rollout.trajectory.position_ids.tolist() == list(range(n))
    log = trainer.state.log_history[0]
    assert log["sampling/sampling_logp_difference/max"] <= 1e-4
    assert log["trigger_rate"] == 0


def test_a_mismatch_between_trainer_and_engine_stops(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6)
    roll_out = trainer.roll_out

    def tampered(prompts):
        batch = roll_out(prompts)
        batch[5].trajectory.logprobs[0] += 0.01
        return batch

    trainer.roll_out = tampered
    with pytest.raises(TrainingStoppedError, match=r"differs from the engine's by 0\.01"):
        trainer.train()


def test_a_logprob_that_is_no_number_stops(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6)
    with pytest.raises(TrainingStoppedError, match="by nan"):
        trainer._compare(torch.tensor([[-1.0, NAN]]), torch.tensor([[-1.0, -2.0]]))
    trainer._compare(torch.tensor([[-1.0, NAN]]), torch.tensor([[-1.0, NAN]]))


def test_autocast_rolls_out_and_trains(tmp_path, monkeypatch):
    """bf16: the pool stays float32, the products don't; the gap is that of the precision."""
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6, bf16=True)
    trainer.settings = replace(trainer.settings, max_logprob_gap=0.5)
    trainer.train()
    log = trainer.state.log_history[0]
    assert 0 < log["sampling/sampling_logp_difference/max"] < 0.5
    assert np.isfinite(log["grad_norm"])


@pytest.mark.parametrize(
    "override, message",
    [
        ("npr.grpo.beta=0.1", "PAPO has beta = 0"),
        ("npr.grpo.steps_per_generation=3", "one step a rollout batch"),
    ],
)
def test_a_profile_may_not_contradict_papo(tmp_path, override, message):
    with pytest.raises(WorkbenchError, match=message):
        papo.train(load_profile("smoke", [override]), tmp_path, tmp_path, 0)


def test_one_prompt_with_two_answers_is_refused(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, monkeypatch, [])
    twice = ProblemSet([Problem("a", "x", "1", {}), Problem("b", "x", "2", {})], lambda p, q: True)
    with pytest.raises(WorkbenchError, match="two answers for the same prompt"):
        RolloutTrainer(
            trainer.model, TOKENIZER, trainer.args, trainer.engine, twice, "{problem}", None
        )


def test_a_collapsing_format_stops(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6)
    trainer.settings = RolloutSettings(
        trainer.settings.params, "parallel", trainer.settings.reward, min_kept=0.9
    )
    with pytest.raises(TrainingStoppedError, match="below the floor of 90%"):
        trainer.train()


def test_groups_without_variance_are_replaced(tmp_path, monkeypatch):
    """Dynamic sampling: the first draw is all equal, the next problems are not."""
    rewards = [1.0] * 12 + [1.0, -1, 0, 0] * 2 + [1.0] * 4 + [-1.0, 1, 1, 1]
    trainer = make_trainer(tmp_path, monkeypatch, rewards)
    trainer.settings = RolloutSettings(
        trainer.settings.params, "parallel", trainer.settings.reward, resamples=2
    )
    trainer.train()
    assert [r.reward for r in trainer._batch] == [1, -1, 0, 0, 1, -1, 0, 0, -1, 1, 1, 1]
    assert trainer.state.log_history[0]["zero_variance_groups"] == 0
    recorded = trainer.rollouts[0]
    assert recorded["reward"].tolist() == [r.reward for r in trainer._batch]
    for rollout, problem in zip(trainer._batch, recorded["problem"], strict=True):
        assert TOKENIZER.decode(rollout.trajectory.prompt_ids) == f"{problem};"


def test_several_steps_a_batch_use_the_engines_logprobs_as_the_old_policy(tmp_path, monkeypatch):
    """DAPO: what the ratio is taken against is what the rollouts were sampled with."""
    split = dict(steps_per_generation=3, gradient_accumulation_steps=1, max_steps=3)
    options = dict(per_device_train_batch_size=4, learning_rate=1e-2, **split)
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1, 0, 1] * 3, **options)
    compute, seen = trainer._compute_loss, []

    def spy(model, inputs):
        own = ~inputs["engine_logprobs"].isnan()
        gap = (inputs["old_per_token_logps"] - inputs["engine_logprobs"])[own].abs().max().item()
        logprobs = trainer._metrics["train"]
        loss = compute(model, inputs)
        seen.append((gap, logprobs["clip_ratio/region_mean"][-1]))
        return loss

    trainer._compute_loss = spy
    trainer.train()
    assert len(seen) == 3 and max(gap for gap, _ in seen) < 1e-4
    assert seen[0][1] == 0 and seen[2][1] > 0, "the policy moves away from the old one"


def test_the_model_keeps_its_mode_and_dense_oracle_agrees(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6)
    trainer.train()
    t = trainer._batch[0].trajectory
    ids = t.prompt_ids + t.completion_ids
    mask = brute_force_mask(trajectory_paths(t))
    logits = dense_logits(trainer.model, ids, t.position_ids, mask).double()
    start = len(t.prompt_ids)
    first = torch.log_softmax(logits[start - 1], -1)[t.completion_ids[0]].item()
    assert abs(first - t.logprobs[0]) < 1e-4
