"""PAPO against the formulas of design section 8, in float64 and with plain dense forwards."""

import copy
import json
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from oracles import brute_force_mask, dense_logits, random_model, trajectory_paths
from policies import random_policy
from stages_for_tests import make_stage
from transformers import TrainerCallback
from trl import GRPOConfig

from npr_lib import WorkbenchError
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.profiles.profile import load_profile
from npr_lib.profiles.sections import NPR
from npr_lib.reasoning.tokens import TagIds
from npr_lib.reasoning.trajectory import read_rollouts
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.tasks.problems import Problem, ProblemSet
from npr_lib.train import papo
from npr_lib.train.logs import log_to
from npr_lib.train.papo import PAPO, advantages, grpo_fields
from npr_lib.train.reinforce import DEFAULTS
from npr_lib.train.trainer import Recipe, RolloutTrainer, TrainingStoppedError

TOKENIZER = tiny_tokenizer()
NAN = float("nan")


def sample_std(values):
    mean = sum(values) / len(values)
    return (sum((x - mean) ** 2 for x in values) / (len(values) - 1)) ** 0.5


def reference_advantages(rewards, group_size, scale="batch"):
    """The formula, one response at a time."""
    kept = [r for r in rewards if r == r]
    out = []
    for i, r in enumerate(rewards):
        group = rewards[i // group_size * group_size :][:group_size]
        group = [x for x in group if x == x]
        pool = {"batch": kept, "group": group, "none": []}[scale]
        if r != r or len(set(group)) == 1:
            out.append(0.0)
        else:
            centred = r - sum(group) / len(group)
            out.append(centred if scale == "none" else centred / (sample_std(pool) + 1e-4))
    return out


@pytest.mark.parametrize("scale", ["batch", "group", "none"])
@pytest.mark.parametrize("seed", range(10))
def test_advantages_equal_the_formula(seed, scale):
    rng = random.Random(seed)
    size = rng.choice([2, 4, 8])
    rewards = [rng.choice([1.0, -1.0, -1.0, 0.3, NAN]) for _ in range(size * 5)]
    expected = reference_advantages(rewards, size, scale)
    assert np.allclose(advantages(rewards, size, scale), expected, atol=1e-12)


@pytest.mark.parametrize(
    "rewards", [[1.0] * 8, [NAN] * 8, [NAN] * 7 + [1.0], [1.0, 1.0, NAN, NAN] * 2]
)
@pytest.mark.parametrize("scale", ["batch", "group", "none"])
def test_no_variance_gives_no_advantage(rewards, scale):
    assert advantages(rewards, 4, scale).tolist() == [0.0] * 8


def test_advantages_refuse_broken_groups():
    with pytest.raises(ValueError, match="groups of 4"):
        advantages(np.zeros(6), 4)
    with pytest.raises(ValueError, match="batch, group, none, not 'groups'"):
        advantages(np.zeros(4), 4, "groups")


class Capture(TrainerCallback):
    """The gradient as the optimizer would see it."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.gradient = {
            name: p.grad.clone().double()
            for name, p in model.named_parameters()
            if p.grad is not None
        }


def make_trainer(
    tmp_path, monkeypatch, rewards, mode="parallel", settings=(), style="compact", **grpo
):
    """A random model whose responses a random writer chooses and whose rewards are given."""
    policy = random_policy(TOKENIZER, broken=0.05)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    model = random_model(random.Random(3), TOKENIZER)
    engine = TorchEngine(model, TOKENIZER, EngineConfig(num_slots=4096, style=style))
    problems = ProblemSet(
        [Problem(str(i), f"A={i}", "0", {}) for i in range(6)], lambda predicted, problem: False
    )
    queue = iter(rewards)
    given = {"sampling": SamplingParams(max_tokens=60), "min_kept": 0.0, **dict(settings)}
    scale = grpo.get("scale_rewards", "batch")
    recipe = Recipe(
        NPR(**given), mode, lambda rollout: next(queue), partial(advantages, scale=scale)
    )
    args = GRPOConfig(
        **{
            **DEFAULTS,
            **PAPO,
            "scale_rewards": "batch",
            "save_strategy": "no",
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
    validation, template = problems[:2], "{problem};"
    return RolloutTrainer(model, TOKENIZER, args, engine, problems, validation, template, recipe)


def recorded(trainer, step=0):
    return read_rollouts(f"{trainer.args.output_dir}/rollouts/{step:06d}.parquet")


def exact_logprobs(model, t):
    """float64 logprobs [completion] of a trajectory by a plain dense forward."""
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
    start = len(t.prompt_ids)
    logprobs = torch.log_softmax(logits[start - 1 : -1], -1)
    return logprobs.gather(1, torch.tensor(t.completion_ids)[:, None])[:, 0]


def assert_same_gradient(found, model):
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().clamp(min=1e-3)
        assert torch.allclose(found[name], parameter.grad, atol=2e-4 * scale.item()), name


SPLITS = [{}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}]
REWARDS = [1.0, -1, -1, 1, -1, -1, -1, 0.5, 1, 1, 0, -1]


@pytest.mark.parametrize(
    "split, filtered, scale, engine_tokens, style",
    [
        (SPLITS[0], False, "batch", False, "lines"),
        (SPLITS[1], True, "batch", True, "lines"),
        (SPLITS[0], False, "batch", False, "compact"),
        (SPLITS[1], False, "batch", False, "compact"),
        (SPLITS[0], True, "batch", False, "compact"),
        (SPLITS[1], True, "batch", False, "compact"),
        (SPLITS[1], True, "group", False, "compact"),
        (SPLITS[1], True, "none", False, "compact"),
        (SPLITS[1], True, "batch", True, "compact"),
        (SPLITS[0], "flat", "batch", False, "compact"),
        (SPLITS[1], "flat", "batch", False, "compact"),
    ],
)
def test_gradient_is_reinforce_on_sampled_tokens(
    tmp_path, monkeypatch, split, filtered, scale, engine_tokens, style
):
    """Whole batch or accumulated micro-batches, with and without filtered responses."""
    rewards = [NAN if filtered and i in (6, 10) else r for i, r in enumerate(REWARDS)]
    if filtered == "flat":  # a group of equal rewards: rows that need no backward pass
        rewards[:4] = [1.0] * 4
    settings = {"engine_tokens": engine_tokens}
    trainer = make_trainer(
        tmp_path, monkeypatch, rewards, "parallel", settings, style, scale_rewards=scale, **split
    )
    capture = Capture()
    trainer.add_callback(capture)
    trainer.train()
    batch = trainer._batch
    expected = reference_advantages(rewards, 4, scale)
    assert np.allclose(recorded(trainer)["advantage"], expected, atol=1e-5)
    assert np.allclose(advantages(rewards, 4, scale), recorded(trainer)["advantage"], atol=1e-5)

    model = copy.deepcopy(random_model(random.Random(3), TOKENIZER)).double()
    kept = [(r.trajectory, a) for r, a in zip(batch, expected, strict=True) if r.reward == r.reward]
    assert any(t.num_branches and max(t.num_branches) > 1 for t, _ in kept)
    masks = [torch.tensor(t.sampled) | engine_tokens for t, _ in kept]
    assert not all(mask.all() for mask in masks) or engine_tokens
    total = sum(int(mask.sum()) for mask in masks)
    terms = [a * exact_logprobs(model, t)[m].sum() for (t, a), m in zip(kept, masks, strict=True)]
    (-sum(terms) / total).backward()
    assert_same_gradient(capture.gradient, model)


def test_the_gradient_has_the_recipes_advantages_and_no_others(tmp_path, monkeypatch):
    """Weights that follow no formula, in micro-batches that TRL shuffles."""
    chosen = np.array([0.5, -2, 0.25, 1, 0, 3, -1, -0.5, 2, 0.75, -0.125, 1.5], np.float32)
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6, **SPLITS[1])
    trainer.recipe = replace(trainer.recipe, advantages=lambda rewards, group_size: chosen)
    capture = Capture()
    trainer.add_callback(capture)
    trainer.train()
    assert recorded(trainer)["advantage"].tolist() == chosen.tolist()
    model = copy.deepcopy(random_model(random.Random(3), TOKENIZER)).double()
    terms, total = [], 0
    for rollout, advantage in zip(trainer._batch, chosen.tolist(), strict=True):
        own = torch.tensor(rollout.trajectory.sampled)
        terms.append(advantage * exact_logprobs(model, rollout.trajectory)[own].sum())
        total += int(own.sum())
    (-sum(terms) / total).backward()
    assert_same_gradient(capture.gradient, model)


def test_clipped_steps_follow_the_formula(tmp_path, monkeypatch):
    """clip="dapo": the third step of a batch, ratio to the policy that sampled, clipped."""
    section = load_profile("smoke", ["npr.clip=dapo"]).npr
    clip = {k: grpo_fields(section)[k] for k in ("epsilon", "epsilon_high")}
    assert clip == {"epsilon": 0.2, "epsilon_high": 0.28}
    split = dict(per_device_train_batch_size=4, steps_per_generation=3, max_steps=3)
    options = dict(gradient_accumulation_steps=1, learning_rate=1e-2, **split, **clip)
    trainer = make_trainer(tmp_path, monkeypatch, REWARDS, **options)
    capture, compute, seen = Capture(), trainer._compute_loss, []
    trainer.add_callback(capture)

    def spy(model, inputs):
        seen.append((copy.deepcopy(model.state_dict()), inputs))
        return compute(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    weights, inputs = seen[2]
    model = random_model(random.Random(3), TOKENIZER)
    model.load_state_dict(weights)
    model = model.double()
    of_text = {tuple(r.trajectory.completion_ids): r.trajectory for r in trainer._batch}
    total = sum(sum(r.trajectory.sampled) for r in trainer._batch)
    objective, clipped = 0.0, 0
    rows = zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    for (ids, mask), advantage in zip(rows, inputs["advantages"].double(), strict=True):
        t = of_text[tuple(ids[mask.bool()].tolist())]
        own = torch.tensor(t.sampled)
        ratio = (exact_logprobs(model, t)[own] - torch.tensor(t.logprobs).double()[own]).exp()
        bounded = ratio.clamp(1 - 0.2, 1 + 0.28)
        clipped += int((ratio != bounded).sum())
        objective = objective + torch.minimum(ratio * advantage, bounded * advantage).sum()
    assert clipped > 0
    # the token mean is over the whole rollout batch, of which a step sees a third
    (-objective / (total / 3)).backward()
    assert_same_gradient(capture.gradient, model)


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


def test_the_largest_gap_of_all_micro_batches_is_logged(tmp_path, monkeypatch):
    """Not the mean of three largest ones."""
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6, **SPLITS[1])
    roll_out = trainer.roll_out

    def tampered(prompts):
        batch = roll_out(prompts)
        batch[5].trajectory.logprobs[0] += 9e-4
        return batch

    trainer.roll_out = tampered
    trainer.train()
    logged = trainer.state.log_history[0]["sampling/sampling_logp_difference/max"]
    assert logged == pytest.approx(9e-4, abs=5e-5)


def test_a_logprob_that_is_no_number_stops(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6)
    with pytest.raises(TrainingStoppedError, match="by nan"):
        trainer._compare(torch.tensor([[-1.0, NAN]]), torch.tensor([[-1.0, -2.0]]))
    trainer._compare(torch.tensor([[-1.0, NAN]]), torch.tensor([[-1.0, NAN]]))


def test_autocast_rolls_out_and_trains(tmp_path, monkeypatch):
    """bf16: the pool stays float32, the products don't; the gap is that of the precision."""
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6, bf16=True)
    trainer.train()
    log = trainer.state.log_history[0]
    assert 1e-4 < log["sampling/sampling_logp_difference/max"] < 0.1  # 0.3 if the engine attends
    assert log["sampling/sampling_logp_difference/p99"] < 0.05  # in float32
    assert np.isfinite(log["grad_norm"])


@pytest.mark.parametrize("bf16, limit", [(False, 1e-3), (True, 2.0)])
def test_the_limit_follows_the_precision_and_judges_a_quantile_too(
    tmp_path, monkeypatch, bf16, limit
):
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1] * 6, bf16=bf16)
    engine = torch.zeros(1, 1000)
    outlier, many = engine.clone(), engine.clone()
    outlier[0, 0] = 0.9 * limit
    trainer._compare(outlier, engine)
    many[0, :20] = 0.3 * limit
    with pytest.raises(TrainingStoppedError, match=r"99 % of them .*max_logprob_gap = "):
        trainer._compare(many, engine)
    trainer.settings = replace(trainer.settings, max_logprob_gap=2 * limit)  # the profile's own
    trainer._compare(many, engine)
    with pytest.raises(TrainingStoppedError, match=rf"limit {limit:g}"):
        trainer.settings = replace(trainer.settings, max_logprob_gap=None)
        trainer._compare(outlier * 2, engine)


@pytest.mark.parametrize(
    "override, message",
    [
        ("npr.grpo.beta=0.1", "PAPO has beta = 0"),
        ("npr.grpo.steps_per_generation=3", "one step a rollout batch"),
        ("npr.grpo.scale_rewards=group", "PAPO has scale_rewards = batch"),
        ("npr.clip=ppo", "'none' or 'dapo'"),
        ("npr.advantage=std", "'batch', 'group' or 'none'"),
        ("npr.invalid=drop", "'filter' or 'penalize'"),
    ],
)
def test_a_profile_may_not_contradict_papo(tmp_path, override, message):
    with pytest.raises(WorkbenchError, match=message):
        papo.train(make_stage(load_profile("smoke", [override]), tmp_path, tmp_path))


def test_one_prompt_with_two_answers_is_refused(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, monkeypatch, [])
    twice = ProblemSet([Problem("a", "x", "1", {}), Problem("b", "x", "2", {})], lambda p, q: True)
    with pytest.raises(WorkbenchError, match="two answers for the same prompt"):
        RolloutTrainer(
            trainer.model,
            TOKENIZER,
            trainer.args,
            trainer.engine,
            twice,
            twice,
            "{problem}",
            trainer.recipe,
        )


@pytest.mark.parametrize(
    "rewards, settings, message",
    [
        ([1.0, -1] * 6, {"min_kept": 0.9}, "below the floor of 90%.*Lower the learning rate"),
        ([NAN] * 12, {"min_kept": 0.9}, "below the floor of 90%"),
        ([NAN] * 12, {"max_flat": 1}, "no group with different rewards.*start from a better"),
        ([1.0] * 12, {"max_flat": 1}, "no group with different rewards.*harder problems"),
    ],
)
def test_a_collapsed_batch_stops_and_keeps_its_checkpoint(
    tmp_path, monkeypatch, rewards, settings, message
):
    """The second batch collapses; the checkpoint of the first is there to go on from, and the batch
    itself to be looked at."""
    queue = [1.0, -1] * 6 + list(rewards)
    options = dict(max_steps=3, save_strategy="steps", save_steps=1)
    trainer = make_trainer(tmp_path, monkeypatch, queue, **options)
    roll_out = trainer.roll_out

    def collapsing(prompts):
        if trainer.state.global_step == 1:
            trainer.settings = replace(trainer.settings, **settings)
        return roll_out(prompts)

    trainer.roll_out = collapsing
    with pytest.raises(
        TrainingStoppedError, match=f"(?s)step 1: .*{message}.*checkpoint-1 is kept"
    ):
        trainer.train()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").exists()
    assert np.array_equal(recorded(trainer, 1)["reward"], rewards, equal_nan=True)


def test_every_step_logs_what_one_needs_to_see(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, monkeypatch, [1.0, -1, 0, 0] * 3)
    log_to(trainer, tmp_path, "npr")
    trainer.train()
    (log,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    batch = [r.trajectory for r in trainer._batch]
    blocks = [k for t in batch for k in t.num_branches]
    assert log["blocks"] == pytest.approx(len(blocks) / len(batch))
    assert log["branches"] == pytest.approx(np.mean(blocks))
    assert log["zero_variance_groups"] == 0 and log["kept_share"] == 1
    assert log["span"] == pytest.approx(np.mean([t.span for t in batch]))
    assert log["sampling/sampling_logp_difference/max"] <= 1e-3
    # a random model: entropies near log(vocabulary); tags and other tokens weigh up to the whole
    own = sum(sum(t.sampled) for t in batch)
    tags = TagIds.from_tokenizer(TOKENIZER).ids
    structural = sum(
        i in tags for t in batch for i, s in zip(t.completion_ids, t.sampled, strict=True) if s
    )
    mean = structural * log["entropy/tags"] + (own - structural) * log["entropy/others"]
    assert mean / own == pytest.approx(log["entropy"], abs=1e-4)
    names = {"reward", "accuracy", "format", "trigger_rate", "work", "grad_norm", "reward_std"}
    assert names <= log.keys()


def test_groups_without_variance_are_replaced(tmp_path, monkeypatch):
    """Dynamic sampling: the first draw is all equal, the next problems are not."""
    rewards = [1.0] * 12 + [1.0, -1, 0, 0] * 2 + [1.0] * 4 + [-1.0, 1, 1, 1]
    trainer = make_trainer(tmp_path, monkeypatch, rewards)
    trainer.settings = replace(trainer.settings, resamples=2)
    trainer.train()
    assert [r.reward for r in trainer._batch] == [1, -1, 0, 0, 1, -1, 0, 0, -1, 1, 1, 1]
    assert trainer.state.log_history[0]["zero_variance_groups"] == 0
    rows = recorded(trainer)
    assert rows["reward"].tolist() == [r.reward for r in trainer._batch]
    for rollout, problem in zip(trainer._batch, rows["problem"], strict=True):
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
