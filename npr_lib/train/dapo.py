"""Stage 1, NPR-Zero: the parallel format is discovered by RL (paper section 3.1; design 8).

The model decodes sequentially and learns from r = r_f where the format is violated, else r_a.
DAPO, written in TRL's terms: advantages scaled by the group's std, a few optimizer steps a rollout
batch (`steps_per_generation` over `gradient_accumulation_steps`) with clipping at 0.2 / 0.28,
token-mean loss, no KL, and dynamic sampling: groups whose rewards are all equal are replaced by
other problems, at most `resamples` times a step (what is left is logged as
`zero_variance_groups`).

    dapo.train(profile, run_dir, run_dir / "seed", seed=0)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npr_lib.engine import SamplingParams
from npr_lib.rewards import stage1_reward
from npr_lib.train.rollouts import RolloutSettings
from npr_lib.train.stage import run_stage

DAPO: dict[str, Any] = {
    "loss_type": "dapo",
    "scale_rewards": "group",
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "num_iterations": 1,
    "beta": 0.0,
}


def train(profile: dict[str, Any], run_dir: Path, input_checkpoint: Path, seed: int) -> Path:
    """Train NPR-Zero from the seed (or an instruct model); returns the checkpoint's folder."""
    section = profile["npr_zero"]
    settings = RolloutSettings(
        params=SamplingParams(**section["sampling"]),
        mode="sequential",
        reward=lambda r_f, r_a, _: stage1_reward(r_f, r_a),
        resamples=section["resamples"],
        max_flat=section["max_flat"],
        max_logprob_gap=section["max_logprob_gap"],
    )
    fields = {**section["grpo"], **DAPO}
    return run_stage(
        profile, run_dir, "npr_zero", input_checkpoint, section, fields, settings, seed
    )
