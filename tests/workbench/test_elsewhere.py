"""Fields of TRL's that would have no effect here are refused when the profile is read."""

import dataclasses

import pytest

from npr_lib.identity import resolve
from npr_lib.profiles.elsewhere import ELSEWHERE, elsewhere
from npr_lib.profiles.profile import HANDED_ON, ProfileError, load_profile
from npr_lib.train import reinforce


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("npr.grpo.temperature", "npr.sampling.temperature does"),
        ("npr_zero.grpo.max_completion_length", "npr_zero.sampling.max_tokens does"),
        ("npr.grpo.seed", "random_seed"),
        ("npr_zero.grpo.top_p", "npr_zero.sampling.top_p does"),
        ("npr.grpo.vllm_max_model_length", "NPR Engine"),
        ("npr.grpo.router_aux_loss_coef", "no load-balancing term"),
        ("sft.trl.max_length", "never cut"),
        ("sft.trl.eos_token", "model.eos_token does"),
    ],
)
def test_a_setting_without_effect_is_refused_and_the_one_that_has_it_named(key, where):
    value = {"eos_token": "a"}.get(key.split(".")[-1], 1)
    with pytest.raises(ProfileError, match=rf"{key} = .* would have no effect: .*{where}"):
        load_profile("smoke", [f"{key}={value}"])


def test_what_the_stages_overwrite_is_refused():
    """Every field of TRL's that does not arrive as it was given, asked of the code itself."""
    section = load_profile("smoke").npr
    given = {"seed": 7, "temperature": 0.5, "max_completion_length": 3}
    given |= {"remove_unused_columns": True, "router_aux_loss_coef": 0.5}
    args = reinforce.arguments("npr", section, {**section.grpo, **given}, seed=0)
    assert all(getattr(args, field) != value for field, value in given.items())
    assert all(elsewhere(f"npr.grpo.{field}") for field in given)


def test_only_fields_that_exist_are_refused_and_not_all():
    for mapping, named in HANDED_ON.items():
        fields = {field.name for field in dataclasses.fields(resolve(named))}
        refused = ELSEWHERE.get(mapping, {})
        assert refused.keys() <= fields, mapping
        assert not {"learning_rate", "max_steps", "bf16", "optim", "loss_type"} & refused.keys()
