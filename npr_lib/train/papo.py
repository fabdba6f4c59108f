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

    papo.train(profile, run_dir, run_dir / "npr_beta", seed=0)                      # NPR
    papo.train(profile, run_dir, run_dir / "sr_beta", seed=0, mode="sequential")    # SR
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from npr_lib import WorkbenchError
from npr_lib.engine import SamplingParams
from npr_lib.reasoning.trajectory import Mode
from npr_lib.rewards import Invalid, stage3_reward
from npr_lib.train.rollouts import RolloutSettings
from npr_lib.train.stage import run_stage

Scale = Literal["batch", "group", "none"]


def advantages(rewards: np.ndarray, group_size: int, scale: Scale = "batch") -> np.ndarray:
    """The advantages above. rewards: float [B], in runs of `group_size`; nan marks a filtered
    response, which is in no statistic and gets 0. Equal rewards (in the batch, in a group) and a
    group of one kept response give 0.

    scale: what the difference to the group's mean is divided by (+ 1e-4): the sample std (n - 1)
    of the batch or of the group, or nothing. Raises ValueError if B is not a multiple of
    `group_size`, or for another scale.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale is one of {', '.join(get_args(Scale))}, not {scale!r}")
    rewards = np.asarray(rewards, np.float64)
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(f"rewards of shape {rewards.shape} are not groups of {group_size}")
    groups = rewards.reshape(-1, group_size)
    kept = ~np.isnan(groups)
    counts = kept.sum(axis=1, keepdims=True)
    filled = np.where(kept, groups, 0.0)
    centred = np.where(kept, groups - filled.sum(axis=1, keepdims=True) / np.maximum(counts, 1), 0)
    if scale == "group":
        std = np.sqrt((centred**2).sum(axis=1, keepdims=True) / np.maximum(counts - 1, 1))
        centred /= std + 1e-4
    elif scale == "batch" and kept.sum() > 1:
        centred /= groups[kept].std(ddof=1) + 1e-4
    return centred.reshape(-1)


# What PAPO is in TRL's terms; a profile may not contradict it.
PAPO: dict[str, Any] = {
    "loss_type": "dapo",  # token mean over the batch
    "num_iterations": 1,
    "beta": 0.0,
}
CLIPS: dict[str, dict[str, float]] = {"none": {}, "dapo": {"epsilon": 0.2, "epsilon_high": 0.28}}


def grpo_fields(section: dict[str, Any]) -> dict[str, Any]:
    """The GRPOConfig fields of a profile's section `npr`; WorkbenchError where they contradict."""
    choices = {"clip": CLIPS, "advantage": get_args(Scale), "invalid": get_args(Invalid)}
    for key, known in choices.items():
        if section[key] not in known:
            raise WorkbenchError(f"npr.{key} = {section[key]!r}; it is one of {', '.join(known)}")
    fixed = {**PAPO, **CLIPS[section["clip"]], "scale_rewards": section["advantage"]}
    for key, value in section["grpo"].items():
        if fixed.get(key, value) != value:
            raise WorkbenchError(f"npr.grpo.{key} = {value}: PAPO has {key} = {fixed[key]}")
    fields = {**section["grpo"], **fixed}
    steps = fields.get("gradient_accumulation_steps", 1)
    if section["clip"] == "none" and fields.get("steps_per_generation", steps) != steps:
        raise WorkbenchError(
            "npr.grpo.steps_per_generation: PAPO makes one step a rollout batch (several need the "
            "ratio to the old policy: npr.clip=dapo)"
        )
    return fields


def train(
    profile: dict[str, Any],
    run_dir: Path,
    input_checkpoint: Path,
    seed: int,
    mode: Mode = "parallel",
) -> Path:
    """Train NPR from NPR-Beta (or SR from SR-Beta); returns the checkpoint's folder."""
    section = profile["npr"]
    settings = RolloutSettings(
        params=SamplingParams(**section["sampling"]),
        mode=mode,
        reward=partial(stage3_reward, invalid=section["invalid"], span_bonus=section["span_bonus"]),
        engine_tokens=section["engine_tokens"],
        min_kept=section["min_kept"],
        max_flat=section["max_flat"],
        max_logprob_gap=section["max_logprob_gap"],
    )
    name = "npr" if mode == "parallel" else "sr"
    fields = grpo_fields(section)
    return run_stage(profile, run_dir, name, input_checkpoint, section, fields, settings, seed)
