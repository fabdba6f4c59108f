"""What a profile or a notebook says of a recipe is what trains."""

import json
import random
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from oracles import random_model
from policies import random_policy
from stages_for_tests import make_stage

from npr_lib import WorkbenchError
from npr_lib.analysis import evaluate
from npr_lib.engine.branch import Response
from npr_lib.profiles.profile import load_profile
from npr_lib.rewards import stage1_reward
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.tasks.problems import Problem, ProblemSet
from npr_lib.train import dapo, papo, reinforce, rejection, seed
from npr_lib.train.trainer import Recipe

TOKENIZER = tiny_tokenizer()
OTHER = {  # of every setting another value than the smoke profile's
    "sampling": "{max_tokens: 33, temperature: 0.9}",
    "validation": "{every: 1, problems: 3}",
    "resamples": 2,
    "max_flat": 7,
    "max_logprob_gap": 0.25,
    "min_kept": 0.125,
    "engine_tokens": True,
}
NPR = {"advantage": "group", "invalid": "filter", "clip": "dapo", "span_bonus": 0.5}


def captured(monkeypatch, module, section, settings):
    """The recipe and the fields with which an algorithm calls the trainer."""
    seen = {}
    monkeypatch.setattr(
        reinforce, "train", lambda *given: seen.update(recipe=given[3], fields=given[4])
    )
    overrides = [f"{section}.{key}={value}" for key, value in settings.items()]
    profile = load_profile("smoke", overrides)
    module.train(make_stage(profile, "nowhere", "start"))
    return seen["recipe"], seen["fields"], getattr(profile, section)


@pytest.mark.parametrize(
    ("module", "section", "own"), [(papo, "npr", NPR), (dapo, "npr_zero", {})], ids=["papo", "dapo"]
)
def test_every_setting_reaches_the_trainer(monkeypatch, module, section, own):
    recipe, fields, given = captured(monkeypatch, module, section, OTHER | own)
    assert recipe.section == given
    plain = asdict(recipe.section)
    default = asdict(getattr(load_profile("smoke"), section))
    for key in OTHER | own:
        assert plain[key] != default[key], key
    assert fields["num_iterations"] == 1 and fields["beta"] == 0.0
    assert fields["learning_rate"] == given.grpo["learning_rate"]


def scored(format_reward, correct, span):
    response = SimpleNamespace(span=span, work=100, text="<guideline>")
    return SimpleNamespace(trajectory=response, format_reward=format_reward, correct=correct)


def test_papo_rewards_as_its_settings_say(monkeypatch):
    recipe, _, _ = captured(monkeypatch, papo, "npr", NPR)
    assert recipe.reward(scored(0.0, True, 60)) == pytest.approx(1.2)
    assert np.isnan(recipe.reward(scored(-0.4, True, 60)))
    recipe, _, _ = captured(monkeypatch, papo, "npr", {"invalid": "penalize"})
    assert recipe.reward(scored(0.0, True, 60)) == 1.0
    assert recipe.reward(scored(-0.4, True, 60)) == -1.0


def test_papo_scales_as_its_settings_say(monkeypatch):
    rewards = [1.0, -1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 1.0]
    for scale in ("batch", "group", "none"):
        recipe, _, _ = captured(monkeypatch, papo, "npr", {"advantage": scale})
        expected = papo.advantages(rewards, 4, scale)
        assert np.allclose(recipe.advantages(rewards, 4), expected)
    assert not np.allclose(papo.advantages(rewards, 4, "none"), papo.advantages(rewards, 4))


def test_stage_1_rewards_and_scales_as_dapo_does(monkeypatch):
    recipe, _, _ = captured(monkeypatch, dapo, "npr_zero", {})  # half of -0.4, half of 1/7 - 1
    assert recipe.reward(scored(-0.4, True, 60)) == pytest.approx(-0.2 - 6 / 7)
    recipe, fields, _ = captured(monkeypatch, dapo, "npr_zero", {"partial_credit": False})
    assert recipe.reward(scored(-0.4, True, 60)) == -0.4
    assert recipe.reward(scored(0, False, 60)) == -1
    rewards = [1.0, -1.0, 1.0, 1.0, 0.5, 0.25, -1.0, 1.0]
    assert np.allclose(recipe.advantages(rewards, 4), papo.advantages(rewards, 4, "group"))
    assert (fields["epsilon"], fields["epsilon_high"]) == (0.2, 0.28)


@pytest.mark.parametrize("override", ["beta=0.1", "loss_type=grpo", "epsilon=0.3"])
def test_stage_1_refuses_what_contradicts_it(override):
    profile = load_profile("smoke", [f"npr_zero.grpo.{override}"])
    with pytest.raises(
        WorkbenchError, match=rf"npr_zero\.grpo\.{override.split('=')[0]}.*DAPO has"
    ):
        dapo.train(make_stage(profile, "nowhere", "start"))


def leaves(section, start=""):
    """Every dotted setting of a section, with its value."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def another(value):
    """Some other value of the same type, as YAML."""
    if isinstance(value, bool):
        return str(not value).lower()
    return {int: lambda: value + 2, float: lambda: value / 2 + 1e-3}[type(value)]()


CHOICES = {"npr.advantage": "none", "npr.invalid": "filter", "npr.clip": "dapo"}
CHOICES |= {"rejection.keep": "first"}


@pytest.mark.parametrize(
    ("section", "identity"),
    [
        ("npr", lambda stage: reinforce._identity(stage, recipe_of(stage, papo), {}, None)),
        ("npr_zero", lambda stage: reinforce._identity(stage, recipe_of(stage, dapo), {}, None)),
        ("engine", lambda stage: reinforce._identity(stage, recipe_of(stage, papo), {}, None)),
        ("rejection", rejection._identity),
        ("engine", rejection._identity),
        ("engine", lambda stage: evaluate._identity(stage, "npr", "test")),
        ("evaluation", lambda stage: evaluate._identity(stage, "npr", "test")),
        ("seed", lambda stage: seed._identity(stage.profile, stage.seed)),
    ],
)
def test_every_setting_is_a_part_of_the_identity(section, identity, tmp_path):
    """Change one at a time: what it decides is not the same any more."""
    profile = load_profile("smoke")
    before = json.dumps(identity(make_stage(profile, tmp_path)), sort_keys=True)
    apart = {"metrics", "speed_problems", "speed_rounds"}  # not of the responses
    tried = 0
    for key, value in leaves(asdict(getattr(profile, section))):
        name = f"{section}.{key}"
        plain = isinstance(value, int | float) and key not in apart
        if not plain and name not in CHOICES:
            continue
        changed = load_profile("smoke", [f"{name}={CHOICES.get(name) or another(value)}"])
        assert json.dumps(identity(make_stage(changed, tmp_path)), sort_keys=True) != before, name
        tried += 1
    assert tried >= 2
    seeded = replace(make_stage(profile, tmp_path), seed=1)
    assert json.dumps(identity(seeded), sort_keys=True) != before


def recipe_of(stage, module):
    section = stage.profile.npr if module is papo else stage.profile.npr_zero
    reward = papo.reward_of(section) if module is papo else stage1_reward
    return Recipe(section, "parallel", reward, papo.advantages)


# -- functions of one's own ------------------------------------------------------------------


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A random model whose tokens a random writer chooses."""
    policy = random_policy(TOKENIZER, broken=0.0)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    random_model(random.Random(3), TOKENIZER).save_pretrained(tmp_path / "start")
    TOKENIZER.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


PROFILE = load_profile("smoke", ["npr.min_kept=0", "npr.grpo.max_steps=2"])


def width(rollout, scale=1.0):
    return scale * max(rollout.trajectory.num_branches, default=0)


def signs(rewards, group_size):
    """Not the trainer's own, in any part."""
    centred = rewards.reshape(-1, group_size) - np.median(rewards)
    return np.sign(centred).reshape(-1) * 0.5


def test_ones_own_reward_and_advantages_are_what_trains(tmp_path, start):
    stage = make_stage(PROFILE, tmp_path, start)
    papo.train(stage, reward=width, advantages=signs)
    rows = pd.read_parquet(tmp_path / "rollouts" / "npr.parquet")
    widest = [max(map(int, row), default=0) for row in rows["num_branches"]]
    assert rows["reward"].tolist() == widest and len(set(widest)) > 1
    for _, step in rows.groupby("step"):
        expected = signs(step["reward"].to_numpy(), PROFILE.npr.grpo["num_generations"])
        assert step["advantage"].tolist() == expected.tolist()


def test_another_reward_is_another_training_and_the_old_one_is_kept(tmp_path, start, capsys):
    stage = make_stage(PROFILE, tmp_path, start)
    folder = papo.train(stage, reward=width, advantages=signs)
    weights = (folder / "model.safetensors").read_bytes()
    papo.train(stage, reward=width, advantages=signs)
    assert "nothing to do" in capsys.readouterr().out
    papo.train(stage, reward=partial(width, scale=-1.0), advantages=signs)
    assert (folder / "model.safetensors").read_bytes() != weights
    (kept,) = (tmp_path / "aside").glob("npr-*")
    assert (kept / "model.safetensors").read_bytes() == weights


def test_advantages_of_the_wrong_shape_or_without_a_value_are_told(tmp_path, start):
    stage = make_stage(PROFILE, tmp_path, start)
    with pytest.raises(WorkbenchError, match=r"advantages gave shape \(1,\) for \d+ rewards"):
        papo.train(stage, reward=width, advantages=lambda rewards, group_size: rewards[:1])
    with pytest.raises(WorkbenchError, match="not all finite"):
        papo.train(stage, reward=width, advantages=lambda rewards, group_size: rewards * np.inf)


def test_problems_of_ones_own_with_a_verifier_of_ones_own(tmp_path, start):
    def even(predicted, problem):
        return problem.meta["even"]

    problems = [Problem(f"mine-{i}", f"A={i};", "?", {"even": i % 2 == 0}) for i in range(16)]
    sets = {"train": ProblemSet(problems[:8], even), "validation": ProblemSet(problems[8:], even)}
    papo.train(make_stage(PROFILE, tmp_path, start), reward=width, advantages=signs, problems=sets)
    rows = pd.read_parquet(tmp_path / "rollouts" / "npr.parquet")
    assert set(rows["problem_id"]) <= {p.id for p in problems[:8]}
    boxed = rows["text"].str.contains(r"\\boxed\{.+\}", regex=True)
    right = [int(name.split("-")[1]) % 2 == 0 for name in rows["problem_id"]]
    assert rows["accuracy"].tolist() == [float(r and b) for r, b in zip(right, boxed, strict=True)]


def test_a_profile_may_name_functions(monkeypatch, tmp_path):
    (tmp_path / "named_rewards.py").write_text("def brevity(rollout):\n    return 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    recipe, _, _ = captured(monkeypatch, papo, "npr", {"reward": "named_rewards:brevity"})
    assert recipe.reward(None) == 0.25
    with pytest.raises(WorkbenchError, match="'named_rewards:levity' can't be found"):
        captured(monkeypatch, papo, "npr", {"reward": "named_rewards:levity"})


def test_filtered_responses_have_no_advantage_whatever_the_function_gives(tmp_path, start):
    def odd(rollout):
        return 1.0 if rollout.trajectory.work % 2 else float("nan")

    def ones(rewards, group_size):
        return np.ones(len(rewards))

    papo.train(make_stage(PROFILE, tmp_path, start), reward=odd, advantages=ones)
    rows = pd.read_parquet(tmp_path / "rollouts" / "npr.parquet")
    assert rows["reward"].isna().any() and rows["reward"].notna().any()
    assert rows["advantage"].tolist() == rows["reward"].notna().astype(float).tolist()
