"""Reinforcement learning from one checkpoint to the next: roll out, train, validate, save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from trl import GRPOConfig

from npr_lib import WorkbenchError
from npr_lib.engine.checkpoint import style_for
from npr_lib.identity import closure, describe
from npr_lib.profiles.sections import Reinforcement
from npr_lib.profiles.stage import Stage
from npr_lib.tasks import problems as tasks
from npr_lib.tasks.problems import ProblemSet, load_problems
from npr_lib.train import checkpoints, launch
from npr_lib.train.checkpoints import begin_training, finish_training
from npr_lib.train.engines import rollout_engine
from npr_lib.train.logs import log_to
from npr_lib.train.lora import add_adapter, load_trainable
from npr_lib.train.trainer import Recipe, RolloutTrainer

GENERATIONS = GRPOConfig.num_generations  # a group, where a profile does not say
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


def train(
    stage: Stage,
    name: str,
    start: Path,
    recipe: Recipe,
    fields: dict[str, Any],
    problems: Mapping[str, ProblemSet] | None = None,
) -> Path:
    """Train run_dir / name, a Hugging Face folder with log.jsonl, from the model in `start`.

    Every `validation.every` optimizer steps the first `validation.problems` problems of the
    validation split are answered and a checkpoint is written; the result is the one with the best
    mean reward. Rollouts go to run_dir / "rollouts" / f"{name}.parquet". A run that was interrupted
    goes on from its last checkpoint, to the same result; one that was finished before, with the
    same identity, is not repeated.

    Args:
        fields: GRPOConfig's.
        problems: "train" and "validation" sets; None: the profile's.
    """
    profile, section, folder = stage.profile, recipe.section, stage.run_dir / name
    sets = problems or {
        split: load_problems(profile.problems, split, stage.seed)
        for split in ("train", "validation")
    }
    args = arguments(name, section, fields, stage.seed)  # before anything is begun
    check_counts(name, section, args, {split: len(found) for split, found in sets.items()})
    training = begin_training(folder, start, _identity(stage, recipe, fields, problems))
    if training.done:
        _gather_rollouts(folder, stage.run_dir)
        return folder
    args.output_dir = str(training.work)
    model, tokenizer = load_trainable(start, profile.lora)
    model = add_adapter(model, tokenizer, profile.lora, stage.seed)
    switch_dropout_off(model)
    with rollout_engine(model, tokenizer, profile.engine, start) as engine:
        trainer = RolloutTrainer(
            model,
            tokenizer,
            args,
            engine,
            sets["train"],
            sets["validation"][: section.validation.problems],
            profile.prompt,
            recipe,
        )
        if training.resume is None and section.start_check:
            trainer.check_start()
        log_to(trainer, training.work, name)
        checkpoints.train(trainer, training.resume)
    _gather_rollouts(training.work, stage.run_dir, name)
    style = style_for(tokenizer, profile.engine)
    return finish_training(training, model, tokenizer, recipe.mode, style)


def _identity(
    stage: Stage,
    recipe: Recipe,
    fields: dict[str, Any],
    problems: Mapping[str, ProblemSet] | None,
) -> dict[str, Any]:
    """All that decides what is trained, but for the model that it starts from."""
    profile = stage.profile
    task = {"prompt": profile.prompt, "engine": asdict(profile.engine)}
    if problems is None:
        task |= {"problems": profile.problems, "kind": tasks.identity(profile.problems)}
    else:
        task |= {name: tasks.contents(given) for name, given in problems.items()}
    return {
        "task": task,
        "section": asdict(recipe.section),
        "mode": recipe.mode,
        "reward": describe(recipe.reward),
        "advantages": describe(recipe.advantages),
        "fields": fields,
        "lora": profile.lora,
        "seed": stage.seed,
        "launch": launch.identity(profile.launch),
        "code": closure(__name__),
    }


def fixed_fields(
    name: str, section: Reinforcement, fixed: Mapping[str, Any], whose: str
) -> dict[str, Any]:
    """The GRPOConfig fields of a section with those that make the algorithm what it is.

    Raises:
        WorkbenchError: the section sets one of them to something else.
    """
    for key, value in section.grpo.items():
        if fixed.get(key, value) != value:
            raise WorkbenchError(f"{name}.grpo.{key} = {value}: {whose} has {key} = {fixed[key]}")
    return {**section.grpo, **fixed}


def arguments(name: str, section: Reinforcement, fields: dict[str, Any], seed: int) -> GRPOConfig:
    """TRL's arguments, but for where to write; WorkbenchError unless rollout batches begin and end
    with optimizer steps, and checkpoints with rollout batches."""
    every = section.validation.every
    for key in ("save_strategy", "eval_strategy"):
        if (value := fields.get(key, "steps")) != "steps":
            raise WorkbenchError(
                f"{name}.grpo.{key} = {value}: a checkpoint is written and validated every so many "
                f"steps, and the best is kept; {name}.validation.every says how many"
            )
    if section.sampling.temperature == 0:
        raise WorkbenchError(
            f"{name}.sampling.temperature = 0: greedy responses to a problem are all the same, so "
            "nothing can be learnt from them (the paper: 1)"
        )
    try:
        args = GRPOConfig(
            **{
                **DEFAULTS,
                "mask_truncated_completions": False,
                # TRL's own evaluation, which has to divide by it, is replaced by `evaluate`
                "per_device_eval_batch_size": fields.get("num_generations", GENERATIONS),
                "save_strategy": "steps",
                "save_steps": every,
                "eval_strategy": "steps",
                "eval_steps": every,
                "load_best_model_at_end": True,
                "metric_for_best_model": "eval_reward",
                **fields,
                "seed": seed,
                "temperature": section.sampling.temperature,
                "max_completion_length": section.sampling.max_tokens,
                "remove_unused_columns": False,
                "router_aux_loss_coef": 0.0,
            }
        )
    except (TypeError, ValueError) as error:
        raise WorkbenchError(f"{name}.grpo: {error}") from error
    updates, rest = divmod(args.steps_per_generation, args.gradient_accumulation_steps)
    if rest:
        raise WorkbenchError(
            f"{name}.grpo.steps_per_generation = {args.steps_per_generation} must be a multiple of "
            f"gradient_accumulation_steps = {args.gradient_accumulation_steps}: an optimizer step "
            "is made of whole parts of one rollout batch"
        )
    own = args.per_device_train_batch_size * args.steps_per_generation
    if own % args.num_generations:
        raise WorkbenchError(
            f"{name}.grpo: a process rolls out per_device_train_batch_size * steps_per_generation "
            f"= {own} responses, which must be whole groups of num_generations = "
            f"{args.num_generations}"
        )
    if every % updates:
        raise WorkbenchError(
            f"{name}: a checkpoint every {every} steps falls into the middle of a rollout batch, "
            f"which makes {updates} steps; validation.every must be a multiple of that"
        )
    return args


def switch_dropout_off(model: torch.nn.Module) -> None:
    """Dropout of every kind to 0, said where there was some: the trainer must compute what the
    engine sampled from. Attention layers hold theirs as a number, GPT-2's as a module."""
    found = set()
    for module in model.modules():
        numbers = {n: v for n, v in vars(module).items() if "drop" in n and isinstance(v, float)}
        numbers |= {"p": module.p} if isinstance(module, torch.nn.Dropout) else {}
        for name, value in numbers.items():
            found.add(value)
            setattr(module, name, 0.0)
    if found := found - {0.0}:
        print(f"dropout of {', '.join(map(str, sorted(found)))} is off: engine and trainer agree")


def check_counts(
    name: str, section: Reinforcement, args: GRPOConfig, counts: Mapping[str, int]
) -> None:
    """WorkbenchError if a split ("train", "validation") has fewer problems than the stage takes."""
    batch = args.generation_batch_size // args.num_generations
    if counts["train"] < batch:
        raise WorkbenchError(
            f"{name}: a rollout batch is of {batch} problems, {args.generation_batch_size} "
            f"responses in groups of {args.num_generations} ({name}.grpo), but the train split "
            f"has {counts['train']} (problems.train)"
        )
    if counts["validation"] < section.validation.problems:
        raise WorkbenchError(
            f"{name}: validation.problems = {section.validation.problems}, but the validation "
            f"split has {counts['validation']} (problems.validation)"
        )


def _gather_rollouts(folder: Path, run_dir: Path, name: str | None = None) -> None:
    """All rollout batches of a training folder as one table."""
    if not PartialState().is_main_process:
        return
    path = run_dir / "rollouts" / f"{name or folder.name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = sorted((folder / "rollouts").glob("*.parquet"))
    pd.concat([pd.read_parquet(part) for part in parts]).to_parquet(path, index=False)
