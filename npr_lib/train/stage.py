"""One RL stage from a checkpoint to the next: load, roll out and train, validate, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from trl import GRPOConfig

from npr_lib import WorkbenchError
from npr_lib.files import digest
from npr_lib.tasks.problems import load_problems, local_files
from npr_lib.train import checkpoints
from npr_lib.train.checkpoints import begin_training, finished, load_trainable, save_checkpoint
from npr_lib.train.engines import rollout_engine
from npr_lib.train.logs import log_to
from npr_lib.train.rollouts import RolloutSettings, RolloutTrainer

# TRL's defaults that would bite here; a profile may set them.
DEFAULTS: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_total_limit": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": torch.cuda.is_available(),
}


def run_stage(
    profile: dict[str, Any],
    run_dir: Path,
    name: str,
    input_checkpoint: Path,
    section: dict[str, Any],
    fields: dict[str, Any],
    settings: RolloutSettings,
    seed: int,
) -> Path:
    """Train one RL stage; returns run_dir / name, a Hugging Face folder with log.jsonl.

    section: the stage's part of the profile; fields: GRPOConfig's. Every `section["validation"]
    ["every"]` optimizer steps the first `["problems"]` problems of the validation split are
    answered and a checkpoint is written; the result is the one with the best mean reward. Rollouts
    go to run_dir / "rollouts" / f"{name}.parquet".

    A run that was interrupted goes on from its last checkpoint, to the same result; one that was
    finished before, with the same settings, is not repeated.
    """
    folder = Path(run_dir) / name
    args = _arguments(name, folder, section["validation"]["every"], fields, settings, seed)
    validation = load_problems(profile["problems"], "validation", seed)
    if len(validation) < section["validation"]["problems"]:
        raise WorkbenchError(
            f"{name}.validation.problems = {section['validation']['problems']}, but the validation "
            f"split has {len(validation)} (problems.validation)"
        )
    task = {key: profile[key] for key in ("prompt", "problems", "engine")}
    files = {str(path): digest(path) for path in local_files(profile["problems"])}
    identity = {"task": task, "files": files, "section": section, "fields": fields, "seed": seed}
    resume = begin_training(folder, input_checkpoint, identity)
    if finished(folder):
        _gather_rollouts(folder, run_dir)
        return folder
    model, tokenizer = load_trainable(input_checkpoint)
    with rollout_engine(model, tokenizer, profile["engine"], input_checkpoint) as engine:
        trainer = RolloutTrainer(
            model,
            tokenizer,
            args,
            engine,
            load_problems(profile["problems"], "train", seed),
            validation[: section["validation"]["problems"]],
            profile["prompt"],
            settings,
        )
        log_to(trainer, folder)
        checkpoints.train(trainer, resume)
    _gather_rollouts(folder, run_dir)
    save_checkpoint(model, tokenizer, folder, settings.mode)
    return folder


def _arguments(
    name: str,
    folder: Path,
    every: int,
    fields: dict[str, Any],
    settings: RolloutSettings,
    seed: int,
) -> GRPOConfig:
    """TRL's arguments; WorkbenchError unless rollout batches begin and end with optimizer steps,
    and checkpoints with rollout batches."""
    args = GRPOConfig(
        **{
            **DEFAULTS,
            "mask_truncated_completions": False,
            "save_strategy": "steps",
            "save_steps": every,
            "eval_strategy": "steps",
            "eval_steps": every,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_reward",
            **fields,
            "output_dir": str(folder),
            "seed": seed,
            "temperature": settings.params.temperature,
            "max_completion_length": settings.params.max_tokens,
            "remove_unused_columns": False,
        }
    )
    updates, rest = divmod(args.steps_per_generation, args.gradient_accumulation_steps)
    if rest:
        raise WorkbenchError(
            f"{name}.grpo.steps_per_generation = {args.steps_per_generation} must be a multiple of "
            f"gradient_accumulation_steps = {args.gradient_accumulation_steps}: an optimizer step "
            "is made of whole parts of one rollout batch"
        )
    if every % updates:
        raise WorkbenchError(
            f"{name}: a checkpoint every {every} steps falls into the middle of a rollout batch, "
            f"which makes {updates} steps; validation.every must be a multiple of that"
        )
    return args


def _gather_rollouts(folder: Path, run_dir: Path) -> None:
    """All rollout batches of a training folder as one table."""
    if not PartialState().is_main_process:
        return
    path = Path(run_dir) / "rollouts" / f"{folder.name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = sorted((folder / "rollouts").glob("*.parquet"))
    pd.concat([pd.read_parquet(part) for part in parts]).to_parquet(path, index=False)
