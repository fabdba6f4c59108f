"""Engine <-> TRL: a GRPOTrainer that rolls out with the NPR Engine and trains under its layout.

What it changes in TRL's trainer, and why:

- `rollout_func`: completions come from the engine, which decodes with the very weights that are
  being trained. Rewards are computed here, on trajectories, so that groups without any variance
  can be replaced before anything is trained on (dynamic sampling).
- `_generate_and_score_completions`: adds each row's layout and the engine's logprobs to the batch.
- `_compute_loss`: remembers the micro-batch for
- `_get_per_token_logps_and_entropies`: the one call of the model. Positions and visibility come
  from the layout the engine executed; a logprob that differs from the engine's stops the run.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from npr_lib import WorkbenchError
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.sampling import mix
from npr_lib.layout import BatchLayout, stack_layouts
from npr_lib.problems import Problem, ProblemSet, build_prompt, load_problems
from npr_lib.progress import report_progress
from npr_lib.rewards import format_reward
from npr_lib.trajectory import Mode, Trajectory, to_rows

# `rollout_func` may change with TRL's next minor version, which pyproject.toml therefore excludes.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

# (format reward, accuracy reward) -> reward, nan: keep the response out of loss and statistics
RewardRule = Callable[[float, float], float]
LAYOUT_FIELDS = ("position_ids", "hidden", "start", "end")


class TrainingStoppedError(WorkbenchError):
    """A training run that can't go on honestly: format collapse, or trainer and engine differ."""


@dataclass(slots=True)
class Rollout:
    """A trajectory with its problem and what it earned."""

    trajectory: Trajectory
    problem: Problem
    format_reward: float
    accuracy_reward: float
    reward: float


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How a stage rolls out: sampling, decoding mode, reward, and its two safety nets.

    resamples: how often groups whose rewards are all equal are replaced by other problems
        (DAPO's dynamic sampling; 0: never). min_kept: the share of valid responses below which
        training stops. max_logprob_gap: the same for |trainer - engine| logprobs.
    """

    params: SamplingParams
    mode: Mode
    reward: RewardRule
    resamples: int = 0
    min_kept: float = 0.0
    max_logprob_gap: float = 1e-3


def load_checkpoint(path: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Hugging Face folder as (model, tokenizer); WorkbenchError if it is none."""
    if not (Path(path) / "config.json").is_file():
        raise WorkbenchError(f"{path} is not a model folder: it has no config.json")
    model = AutoModelForCausalLM.from_pretrained(path)
    # before an engine is made over it: the KV pool lies where the model is
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, AutoTokenizer.from_pretrained(path)


class RolloutTrainer(GRPOTrainer):
    """GRPO on trajectories of the engine. `rollouts` collects every row trained on."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: GRPOConfig,
        engine: TorchEngine,
        problems: ProblemSet,
        template: str,
        settings: RolloutSettings,
    ) -> None:
        self.engine = engine
        self.problems = problems
        self.settings = settings
        self.prompts = [build_prompt(problem, template, tokenizer) for problem in problems]
        self.problem_of = dict(zip(self.prompts, problems, strict=True))
        for prompt, problem in zip(self.prompts, problems, strict=True):
            if self.problem_of[prompt].answer != problem.answer:
                raise WorkbenchError(f"two answers for the same prompt: {prompt!r}")
        self.rollouts: list[pd.DataFrame] = []
        self._batch: list[Rollout] = []
        self._inputs: dict[str, torch.Tensor] | None = None
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            reward_funcs=_given_reward,
            rollout_func=_roll_out,
            train_dataset=Dataset.from_dict({"prompt": self.prompts}),
        )
        log_to(self, Path(args.output_dir))

    def roll_out(self, prompts: Sequence[str]) -> list[Rollout]:
        """G rollouts for each prompt; groups of equal rewards are replaced by other problems."""
        self.engine.weights_changed()
        groups = self._groups(prompts, attempt=0)
        for attempt in range(1, self.settings.resamples + 1):
            dead = [i for i, group in enumerate(groups) if _equal(group)]
            if not dead:
                break
            process = self.accelerator.process_index
            seed = mix(self.args.seed, self.state.global_step, attempt, process)
            drawn = random.Random(seed).sample(self.prompts, len(dead))
            for i, group in zip(dead, self._groups(drawn, attempt), strict=True):
                if not _equal(group):
                    groups[i] = group
        self._log_metric("zero_variance_groups", float(np.mean([_equal(g) for g in groups])))
        return [rollout for group in groups for rollout in group]

    def _groups(self, prompts: Sequence[str], attempt: int) -> list[list[Rollout]]:
        size, settings = self.num_generations, self.settings
        seed = mix(self.args.seed, self.state.global_step, attempt)
        params = replace(settings.params, seed=seed)
        trajectories = self.engine.generate(prompts, params, n=size, mode=settings.mode)
        groups = []
        for i, prompt in enumerate(prompts):
            group = trajectories[i * size : (i + 1) * size]
            groups.append([self._score(t, self.problem_of[prompt]) for t in group])
        return groups

    def _score(self, trajectory: Trajectory, problem: Problem) -> Rollout:
        r_f = format_reward(trajectory.graph)
        r_a = 1.0 if self.problems.verify(trajectory.graph.boxed, problem) else -1.0
        return Rollout(trajectory, problem, r_f, r_a, self.settings.reward(r_f, r_a))

    def log_batch(self, batch: Sequence[Rollout]) -> None:
        """Metrics of a rollout batch; TrainingStoppedError when too few responses are valid."""
        trajectories = [rollout.trajectory for rollout in batch]
        valid = np.array([rollout.format_reward == 0 for rollout in batch])
        branches = [k for t in trajectories for k in t.num_branches]
        metrics = {
            "accuracy": np.mean([rollout.accuracy_reward > 0 for rollout in batch]),
            "format": valid.mean(),
            "kept_share": np.mean([not math.isnan(rollout.reward) for rollout in batch]),
            "trigger_rate": np.mean([t.triggered for t in trajectories]),
            "branches": np.mean(branches) if branches else 0.0,
            "work": np.mean([t.work for t in trajectories]),
            "span": np.mean([t.span for t in trajectories]),
            "off_policy": float(not self.settings.params.on_policy),
        }
        for name, value in metrics.items():
            self._log_metric(name, float(value))
        if valid.mean() < self.settings.min_kept:
            raise TrainingStoppedError(
                f"step {self.state.global_step}: {valid.mean():.0%} of the responses are valid, "
                f"below the floor of {self.settings.min_kept:.0%}: the format collapses. Lower the "
                "learning rate, or use invalid='penalize'"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._inputs = None
        output = super()._generate_and_score_completions(inputs)
        widths = output["prompt_ids"].shape[1], output["completion_ids"].shape[1]
        output |= self._engine_tensors(*widths)
        self._record(output["advantages"].tolist())
        return output

    def _engine_tensors(self, prompt_width: int, width: int) -> dict[str, torch.Tensor]:
        """The layouts and logprobs of the batch, padded as TRL pads: prompts on the left."""
        trajectories = [rollout.trajectory for rollout in self._batch]
        starts = [prompt_width - len(t.prompt_ids) for t in trajectories]
        layouts = stack_layouts([t.layout for t in trajectories], prompt_width + width, starts)
        logprobs = torch.full((len(trajectories), width), float("nan"))
        for row, trajectory in zip(logprobs, trajectories, strict=True):
            row[: trajectory.work] = torch.tensor(trajectory.logprobs)
        tensors = {f"layout_{field}": getattr(layouts, field) for field in LAYOUT_FIELDS}
        tensors["engine_logprobs"] = logprobs
        return {name: tensor.to(self.accelerator.device) for name, tensor in tensors.items()}

    def _record(self, advantages: Sequence[float]) -> None:
        batch, size = self._batch, self.num_generations
        self.rollouts.append(
            to_rows(
                [rollout.trajectory for rollout in batch],
                problem_id=[rollout.problem.id for rollout in batch],
                problem=[rollout.problem.problem for rollout in batch],
                answer=[rollout.problem.answer for rollout in batch],
                sample=[i % size for i in range(len(batch))],
                reward=[rollout.reward for rollout in batch],
                accuracy=[float(rollout.accuracy_reward > 0) for rollout in batch],
                format_reward=[rollout.format_reward for rollout in batch],
                advantage=list(advantages),
                step=self.state.global_step,
            )
        )

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        self._inputs = inputs
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """logprobs and entropies [B, completion width] under the executed layouts.

        TRL calls this for the loss, and, when a rollout batch makes several optimizer steps, once
        before the first for the old policy's logprobs.
        """
        tensors = self._inputs
        if tensors is None:
            tensors = self._engine_tensors(input_ids.shape[1] - logits_to_keep, logits_to_keep)
        layout = BatchLayout(*(tensors[f"layout_{field}"] for field in LAYOUT_FIELDS))
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, :-logits_to_keep] = -100
        logprobs, entropies = [], []
        for start in range(0, len(input_ids), batch_size or len(input_ids)):
            rows = slice(start, start + (batch_size or len(input_ids)))
            part = layout[rows]
            with self.accelerator.autocast():
                output = model(
                    input_ids=input_ids[rows],
                    attention_mask=attention_mask[rows],
                    position_ids=part.position_ids,
                    npr_layout=part,
                    labels=labels[rows],
                    fused_lm_head=True,
                )
            logprobs.append(output.log_probs[:, -logits_to_keep:])
            entropies.append(output.entropy[:, -logits_to_keep:])
        logprobs_BT = torch.cat(logprobs)
        if "old_per_token_logps" not in tensors:  # else the weights have moved on
            self._compare(logprobs_BT.detach(), tensors["engine_logprobs"])
        return logprobs_BT, torch.cat(entropies), None

    def _compare(self, logprobs_BT: torch.Tensor, engine_BT: torch.Tensor) -> None:
        gaps = (logprobs_BT - engine_BT).abs()
        gap = gaps[~engine_BT.isnan()].max().item()
        # not _log_metric: that is for reward functions, and is flushed before the loss
        self._metrics["train"]["sampling/sampling_logp_difference/max"].append(gap)
        if not gap <= self.settings.max_logprob_gap:  # nan is no agreement
            raise TrainingStoppedError(
                f"step {self.state.global_step}: a trainer's logprob differs from the engine's by "
                f"{gap:.2g} (limit {self.settings.max_logprob_gap:g}): they don't see the same "
                "context, or compute in another precision"
            )


def _roll_out(prompts: Sequence[str], trainer: RolloutTrainer) -> dict[str, list[Any]]:
    """TRL's `rollout_func`: prompts come in runs of `num_generations` equal ones."""
    size = trainer.num_generations
    if any(prompts[i] != prompts[i - i % size] for i in range(len(prompts))) or len(prompts) % size:
        raise ValueError("each process needs whole groups: make its batch a multiple of the group")
    batch = trainer._batch = trainer.roll_out(prompts[::size])
    trainer.log_batch(batch)
    kept = [not math.isnan(rollout.reward) for rollout in batch]
    return {
        "prompt_ids": [rollout.trajectory.prompt_ids for rollout in batch],
        "completion_ids": [rollout.trajectory.completion_ids for rollout in batch],
        "logprobs": None,
        "env_mask": [
            [int(own and keep) for own in rollout.trajectory.sampled]
            for rollout, keep in zip(batch, kept, strict=True)
        ],
        "given_reward": [
            rollout.reward if keep else None for rollout, keep in zip(batch, kept, strict=True)
        ],
    }


def _given_reward(given_reward: Sequence[float | None], **_: Any) -> Sequence[float | None]:
    return given_reward


def _equal(group: Sequence[Rollout]) -> bool:
    """All rewards of a group are the same (or filtered): it teaches nothing."""
    return len({r.reward for r in group if not math.isnan(r.reward)}) <= 1


def log_to(trainer: Trainer, folder: Path) -> None:
    """Let a trainer log to `folder`/log.jsonl and as progress, instead of printing."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogWriter(folder))


class LogWriter(TrainerCallback):
    """Every logged step as a line of `log.jsonl`, and as progress."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "train_runtime" in logs:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        shown = {k: logs[k] for k in ("reward", "accuracy", "format", "loss") if k in logs}
        report_progress(state.global_step, state.max_steps, part=self.path.parent.name, **shown)


# TRL's defaults that would bite here; a profile may set them.
DEFAULTS: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": torch.cuda.is_available(),
    "mask_truncated_completions": False,
}


def run_stage(
    profile: dict[str, Any],
    run_dir: Path,
    name: str,
    input_checkpoint: Path,
    fields: dict[str, Any],
    settings: RolloutSettings,
    seed: int,
) -> Path:
    """Train one RL stage: load, roll out and train, save the checkpoint and the rollouts.

    fields: GRPOConfig's. Returns run_dir / name, a Hugging Face folder with log.jsonl; the
    rollouts go to run_dir / "rollouts" / f"{name}.parquet".
    """
    folder = Path(run_dir) / name
    model, tokenizer = load_checkpoint(input_checkpoint)
    engine = TorchEngine(model, tokenizer, EngineConfig(**profile["engine"]))
    args = GRPOConfig(
        **{
            **DEFAULTS,
            **fields,
            "output_dir": str(folder),
            "seed": seed,
            "temperature": settings.params.temperature,
            "max_completion_length": settings.params.max_tokens,
            "remove_unused_columns": False,
        }
    )
    problems = load_problems(profile["problems"], "train", seed)
    trainer = RolloutTrainer(model, tokenizer, args, engine, problems, profile["prompt"], settings)
    trainer.train()
    save_checkpoint(model, tokenizer, folder, settings.mode)
    path = Path(run_dir) / "rollouts" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(trainer.rollouts, ignore_index=True).to_parquet(path, index=False)
    return folder


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, mode: Mode
) -> None:
    """A Hugging Face folder, and `npr.json` that says in which mode the model was trained."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "npr.json").write_text(json.dumps({"mode": mode}) + "\n")


def checkpoint_mode(folder: Path | str) -> Mode:
    """The mode a checkpoint was trained for; sequential where it doesn't say."""
    path = Path(folder) / "npr.json"
    return json.loads(path.read_text())["mode"] if path.exists() else "sequential"
