"""Stage 1, NPR-Zero: the parallel format is discovered by RL (paper section 3.1; design 8).

The model decodes sequentially and learns from r = r_f where the format is violated, else r_a.
DAPO, written in TRL's terms: advantages scaled by the group's std, a few optimizer steps a rollout
batch (`steps_per_generation` over `gradient_accumulation_steps`) with clipping at 0.2 / 0.28,
token-mean loss, no KL, and dynamic sampling: groups whose rewards are all equal are replaced by
other problems, at most `resamples` times a step (what is left is logged as
`zero_variance_groups`).

    dapo.train(stage)
    dapo.train(stage, reward=reward, advantages=advantages)    # functions of one's own
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from npr_lib.identity import resolve
from npr_lib.profiles.sections import NPRZero
from npr_lib.profiles.stage import Stage
from npr_lib.rewards import stage1_reward
from npr_lib.tasks.problems import ProblemSet
from npr_lib.train import papo, reinforce
from npr_lib.train.launch import launched
from npr_lib.train.rollout import Advantages, Reward
from npr_lib.train.trainer import Recipe

# What DAPO is in TRL's terms; a profile may not contradict it.
DAPO: dict[str, Any] = {
    "loss_type": "dapo",
    "scale_rewards": "group",
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "num_iterations": 1,
    "beta": 0.0,
}
advantages = partial(papo.advantages, scale="group")


def reward_of(section: NPRZero) -> Reward:
    """The reward that a profile names; the stage's own with `partial_credit`."""
    named = resolve(section.reward)
    if named is not stage1_reward:
        return named
    return partial(named, partial_credit=section.partial_credit)


@launched
def train(
    stage: Stage,
    *,
    reward: Reward | None = None,
    advantages: Advantages | None = None,
    problems: Mapping[str, ProblemSet] | None = None,
) -> Path:
    """Train NPR-Zero from the seed (or an instruct model); returns the checkpoint's folder.

    Args:
        reward, advantages, problems: in the place of those that the profile names.
    """
    section = stage.profile.npr_zero
    recipe = Recipe(
        section,
        "sequential",
        reward or reward_of(section),
        advantages or resolve(section.advantages),
    )
    fields = reinforce.fixed_fields("npr_zero", section, DAPO, "DAPO")
    start = stage.checkpoint or stage.run_dir / "seed"
    return reinforce.train(stage, "npr_zero", start, recipe, fields, problems)
