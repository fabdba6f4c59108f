"""Stage 3, native parallel RL: Parallel-Aware Policy Optimization (paper section 3.3; design 8).

Rollouts fork and join for real in the engine; the loss is computed under the layout each of them
was decoded with. For G samples of each of N prompts, over the kept responses:

    A_i = (r_i - mean of its group) / (std over the batch + 1e-4)
    J   = E[ 1 / sum|y_i| * sum_i sum_t  pi(y_it) / sg[pi(y_it)] * A_i ]

What is left out of PPO/GRPO, and why:

- the ratio: one optimizer step a rollout batch, so old and new policy are the same and the
  gradient is REINFORCE's. Nothing else to correct for.
- the clipping: with a ratio of 1 nothing could be clipped, and the gradient of the tag tokens,
  which carry the branching decisions, must never be cut.
- the KL term and the reference model: format is held by the reward instead (`invalid`).
- the group's standard deviation: groups that are nearly unanimous would be blown up; the batch's
  is steadier.

`invalid` says what becomes of responses with violations. `filter` (the paper) keeps them out of
loss and statistics; `penalize` (our default) gives them r = -1 and keeps them, since the engine
executed them and their tokens are on-policy: filtering leaves nothing that pushes back against
format drift (runs that filtered collapsed). The sequential baseline SR is the same call with
mode="sequential".

    papo.train(profile, run_dir, run_dir / "npr_beta", seed=0)                      # NPR
    papo.train(profile, run_dir, run_dir / "sr_beta", seed=0, mode="sequential")    # SR
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from npr_lib import WorkbenchError
from npr_lib.engine import SamplingParams
from npr_lib.rewards import stage3_reward
from npr_lib.train.rollouts import RolloutSettings, run_stage
from npr_lib.trajectory import Mode


def advantages(rewards: np.ndarray, group_size: int) -> np.ndarray:
    """The advantages above. rewards: float [B], in runs of `group_size`; nan marks a filtered
    response, which is in no statistic and gets 0. A batch whose rewards are all equal gives 0.

    Raises ValueError if B is not a multiple of `group_size`. Sample std (n - 1).
    """
    rewards = np.asarray(rewards, np.float64)
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(f"rewards of shape {rewards.shape} are not groups of {group_size}")
    kept = ~np.isnan(rewards)
    if kept.sum() < 2:
        return np.zeros_like(rewards)
    counts = kept.reshape(-1, group_size).sum(axis=1)
    sums = np.where(kept, rewards, 0.0).reshape(-1, group_size).sum(axis=1)
    means = np.repeat(sums / np.maximum(counts, 1), group_size)
    return np.where(kept, (rewards - means) / (rewards[kept].std(ddof=1) + 1e-4), 0.0)


# What PAPO is in TRL's terms; a profile may not contradict it.
PAPO: dict[str, Any] = {
    "loss_type": "dapo",  # token mean over the batch
    "scale_rewards": "batch",
    "num_iterations": 1,
    "beta": 0.0,
}


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
        reward=partial(stage3_reward, invalid=section["invalid"]),
        min_kept=section["min_kept"],
        max_logprob_gap=section["max_logprob_gap"],
    )
    name = "npr" if mode == "parallel" else "sr"
    fields = {**section["grpo"], **PAPO}
    for key, value in section["grpo"].items():
        if fields[key] != value:
            raise WorkbenchError(f"npr.grpo.{key} = {value}: PAPO has {key} = {fields[key]}")
    steps = fields.get("gradient_accumulation_steps", 1)
    if fields.get("steps_per_generation", steps) != steps:
        raise WorkbenchError("npr.grpo.steps_per_generation: PAPO makes one step a rollout batch")
    return run_stage(profile, run_dir, name, input_checkpoint, fields, settings, seed)
