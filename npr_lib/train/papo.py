"""Stage 3, native parallel RL: Parallel-Aware Policy Optimization (paper section 3.3; design 8).

Rollouts fork and join for real in the engine; the loss is computed under the layout each of them
was decoded with. For G samples of each of N prompts, over the kept responses:

    A_i = (r_i - mean of its group) / (std over the batch + 1e-4)
    J   = E[ 1 / sum|y_i| * sum_i sum_t  pi(y_it) / sg[pi(y_it)] * A_i ]

What is left out of PPO/GRPO, and why:

- the ratio: one optimizer step a rollout batch, so old and new policy are the same and the
  gradient is REINFORCE's. Nothing else to correct for.
- the clipping: with a ratio of 1 nothing could be clipped, and the gradient of the tag tokens,
  which carry the branching decisions, must never be cut. (The trainer's bound of 1 on the norm of
  the whole gradient stays; norms of the tiny profile are 0.02 to 0.11, it has never acted.)
- the KL term and the reference model: format is held by the reward instead (`invalid`).
- the group's standard deviation: groups that are nearly unanimous would be blown up; the batch's
  is steadier.

Each choice is a setting of the profile's section `npr`, so that it can be tested and ablated:

    advantage      batch (the formula above) | group (each group's own std) | none (r - mean)
    invalid        penalize: responses with violations get r = -1 and are kept; the engine executed
                   them, so their tokens are on-policy | filter (the paper): out of loss and
                   statistics, which leaves nothing that pushes back against format drift
    engine_tokens  whether tokens the engine wrote (`<step>`, "i:", `<takeaway>`) are in the loss
    clip           none (the formula above) | dapo: ratio and clipping at 0.2 / 0.28, and then a
                   rollout batch may make several steps (`grpo.steps_per_generation`)
    span_bonus     rho: a right answer earns 1 + rho * (1 - span / work)

The defaults of the tiny profile against the others, accuracy at T = 1 after 40 steps in points, on
400 validation problems, three seeds (95 % intervals resample seeds and problems; notebook 12):

    advantage: group 0.0 [-1.8, 2.2], none -0.7 [-2.8, 1.2]    no difference seen: the paper's
    invalid: filter -5.5 [-10.6, -1.6]    93.4 % of the responses are valid then, not 98.4 %
    engine_tokens: true -1.0 [-4.2, 2.3]    none seen: what the policy didn't choose stays out
    clip: dapo, two steps a batch -1.3 [-4.6, 2.4]    none seen: the simpler
    span_bonus: 0.5 -1.0 [-2.2, 0.2]    the span is no shorter: none

All with a constant learning rate. One that falls to zero (`grpo.lr_scheduler_type: linear`) makes
no better mean, but nearer seeds (95.4 to 95.9, not 93.5 to 96.9), and less drift: a run that had
come to open a second block where all parts are independent (33 % of them) leaves it (4 %; none
after 64 steps). The tiny profile has it. More responses help, more updates don't: 95.9 after 40
steps, 96.8 after 64, 98.5 after 128, but 97.0 after 128 of half the batch (seed 0). It makes 96,
which `make report` has the time for.

The sequential baseline SR is the same call with mode="sequential".

    papo.train(stage)                                          # NPR, from NPR-Beta
    papo.train(stage, mode="sequential")                       # SR, from SR-Beta
    papo.train(stage, reward=reward, advantages=advantages)    # functions of one's own
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from npr_lib import WorkbenchError
from npr_lib.identity import resolve
from npr_lib.profiles.sections import NPR
from npr_lib.profiles.stage import Stage
from npr_lib.reasoning.trajectory import Mode
from npr_lib.rewards import stage3_reward
from npr_lib.tasks.problems import ProblemSet
from npr_lib.train import reinforce
from npr_lib.train.launch import launched
from npr_lib.train.rollout import Advantages, Reward
from npr_lib.train.trainer import Recipe

Scale = Literal["batch", "group", "none"]


def advantages(rewards: Any, group_size: int, scale: Scale = "batch") -> np.ndarray:
    """The advantages above, as the trainer uses them, in the precision of the rewards.

    Args:
        rewards: float [B], in runs of `group_size`; nan marks a filtered response, which is in no
            statistic and gets 0. Equal rewards (in the batch, in a group) and a group of one kept
            response give 0.
        scale: what the difference to the group's mean is divided by (+ 1e-4): the sample std
            (n - 1) of the batch or of the group, or nothing.

    Raises:
        ValueError: B is not a multiple of `group_size`, or there is no such scale.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale is one of {', '.join(get_args(Scale))}, not {scale!r}")
    rewards_B = torch.as_tensor(np.asarray(rewards))
    if rewards_B.ndim != 1 or len(rewards_B) % group_size:
        shape = tuple(rewards_B.shape)
        raise ValueError(f"rewards of shape {shape} are not groups of {group_size}")
    precise = rewards_B if rewards_B.is_floating_point() else rewards_B.double()
    groups_NG = precise.view(-1, group_size)
    centred_NG = groups_NG - groups_NG.nanmean(dim=1, keepdim=True)
    if scale == "group":
        centred_NG = centred_NG / (_std(groups_NG) + 1e-4)
    elif scale == "batch":
        centred_NG = centred_NG / (_std(groups_NG.view(1, -1)) + 1e-4)
    return centred_NG.nan_to_num(0.0).flatten().numpy()


def _std(values_NG: torch.Tensor) -> torch.Tensor:
    """[N, 1]: sample standard deviation of what is not nan in each row; nan for fewer than two."""
    count = (~values_NG.isnan()).sum(dim=1, keepdim=True)
    centred = values_NG - values_NG.nanmean(dim=1, keepdim=True)
    variance = (centred**2).nanmean(dim=1, keepdim=True)
    return (variance * torch.where(count > 1, count / (count - 1), torch.nan)).sqrt()


# What PAPO is in TRL's terms; a profile may not contradict it.
PAPO: dict[str, Any] = {
    "loss_type": "dapo",  # token mean over the batch
    "num_iterations": 1,
    "beta": 0.0,
}
CLIPS: dict[str, dict[str, float]] = {"none": {}, "dapo": {"epsilon": 0.2, "epsilon_high": 0.28}}


def grpo_fields(section: NPR) -> dict[str, Any]:
    """The GRPOConfig fields of the section `npr`; WorkbenchError where they contradict."""
    fixed = {**PAPO, **CLIPS[section.clip], "scale_rewards": section.advantage}
    fields = reinforce.fixed_fields("npr", section, fixed, "PAPO")
    steps = fields.get("gradient_accumulation_steps", 1)
    if section.clip == "none" and fields.get("steps_per_generation", steps) != steps:
        raise WorkbenchError(
            "npr.grpo.steps_per_generation: PAPO makes one step a rollout batch (several need the "
            "ratio to the old policy: npr.clip=dapo)"
        )
    return fields


def reward_of(section: NPR) -> Reward:
    """The reward that a profile names; the stage's own with `invalid` and `span_bonus`."""
    named = resolve(section.reward)
    if named is not stage3_reward:
        return named
    return partial(named, invalid=section.invalid, span_bonus=section.span_bonus)


def advantages_of(section: NPR) -> Advantages:
    """The advantages that a profile names; PAPO's own at the scale `advantage`."""
    named = resolve(section.advantages)
    return partial(named, scale=section.advantage) if named is advantages else named


@launched
def train(
    stage: Stage,
    mode: Mode = "parallel",
    *,
    reward: Reward | None = None,
    advantages: Advantages | None = None,
    problems: Mapping[str, ProblemSet] | None = None,
) -> Path:
    """Train NPR from NPR-Beta (or SR from SR-Beta); returns the checkpoint's folder.

    Args:
        stage: NPR starts from its checkpoint (None: npr_beta), SR from sr_beta in its run.
        reward, advantages, problems: in the place of those that the profile names.
    """
    section = stage.profile.npr
    recipe = Recipe(
        section, mode, reward or reward_of(section), advantages or advantages_of(section)
    )
    if mode == "parallel":
        name, start = "npr", stage.checkpoint or stage.run_dir / "npr_beta"
    else:
        name, start = "sr", stage.run_dir / "sr_beta"
    return reinforce.train(stage, name, start, recipe, grpo_fields(section), problems)
