"""Engine <-> TRL: a GRPOTrainer that rolls out with the NPR Engine and trains under its layout.

What it changes in TRL's trainer, and why:

- `rollout_func`: completions come from the engine, which decodes with the very weights that are
  being trained. Rewards are computed here, on trajectories, so that groups without any variance
  can be replaced before anything is trained on (dynamic sampling).
- `_generate_and_score_completions`: adds each row's layout and the engine's logprobs to the batch,
  and puts the recipe's advantages in the place of TRL's.
- `_prepare_inputs`: micro-batches of whole groups, which share their prompt.
- `_compute_loss`: remembers the micro-batch for
- `_get_per_token_logps_and_entropies`: the one call of the model (`forward.py`). Positions and
  visibility come from the layout the engine executed; a logprob that differs from the engine's
  stops the run.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from npr_lib import WorkbenchError
from npr_lib.engine import Engine
from npr_lib.engine.sampling import mix
from npr_lib.profiles.sections import NPRZero, Reinforcement
from npr_lib.reasoning.schema import TAGS
from npr_lib.reasoning.trajectory import Mode
from npr_lib.tasks.problems import ProblemSet, Prompt, build_prompt
from npr_lib.train.forward import logprobs_and_entropies, rows_of
from npr_lib.train.order import EpochOrder
from npr_lib.train.rollout import Advantages, Reward, Rollout, score, to_table

# `rollout_func` may change with TRL's next minor version, which pyproject.toml therefore excludes.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

# |trainer - engine| at most, by mixed precision, and what 99 % of the tokens may have of that.
# Measured at most: 3e-5 in float32, 0.3 in bfloat16 (docs/training.md, section Precision).
GAP_LIMITS = {"no": 1e-3, "fp16": 2.0, "bf16": 2.0}
NEARLY = 0.25


class TrainingStoppedError(WorkbenchError):
    """A training run that can't go on honestly: format collapse, or trainer and engine differ."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a stage learns: the profile's section, how it decodes, what a response earns and what
    that is worth beside the others of its batch.

    advantages: (rewards float32 [B] in runs of the group's size, that size) -> [B]; a reward of nan
        is a response that was filtered, whose advantage is taken for 0 whatever it gives.
    """

    section: Reinforcement
    mode: Mode
    reward: Reward
    advantages: Advantages


class RolloutTrainer(GRPOTrainer):
    """GRPO on trajectories of the engine.

    Every rollout batch is written to `output_dir`/rollouts, so that nothing is lost when a run is
    stopped and little is kept in memory.
    """

    control: TrainerControl  # transformers' own: `evaluate` keeps what its callbacks decide
    _buffered_inputs: list[dict[str, Any]] | None  # TRL's

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: GRPOConfig,
        engine: Engine,
        problems: ProblemSet,
        validation: ProblemSet,
        template: Prompt,
        recipe: Recipe,
    ) -> None:
        self.engine = engine
        self.problems = problems
        self.validation = validation
        self.recipe = recipe
        self.settings = recipe.section
        self.template = template
        vocabulary = tokenizer.get_vocab()  # in stage 1 of a pretrained model tags are no tokens
        self.tag_ids = torch.tensor([vocabulary[tag] for tag in TAGS if tag in vocabulary])
        self.prompts = [build_prompt(problem, template, tokenizer) for problem in problems]
        self.problem_of = dict(zip(self.prompts, problems, strict=True))
        for prompt, problem in zip(self.prompts, problems, strict=True):
            if self.problem_of[prompt].answer != problem.answer:
                raise WorkbenchError(f"two answers for the same prompt: {prompt!r}")
        self._batch: list[Rollout] = []
        self._flat = 0
        self._inputs: dict[str, Any] | None = None
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            reward_funcs=_given_reward,
            rollout_func=_roll_out,
            train_dataset=Dataset.from_dict({"prompt": self.prompts}),
            eval_dataset=Dataset.from_dict({"prompt": [p.problem for p in validation]}),
        )

    def roll_out(self, prompts: Sequence[str]) -> list[Rollout]:
        """G rollouts for each prompt; groups of equal rewards are replaced by other problems, the
        same ones however many processes there are."""
        self.engine.weights_changed()
        groups = self._groups(prompts, attempt=0)
        for attempt in range(1, self.settings.resamples + 1):
            dead = [i for i, group in enumerate(groups) if _equal(group)]
            counts = gather_object([len(dead)])
            if not any(counts):
                break
            seed = mix(self.args.seed, self.state.global_step, attempt)
            drawn = random.Random(seed).sample(self.prompts, sum(counts))
            first = sum(counts[: self.accelerator.process_index])
            own = self._groups(drawn[first : first + len(dead)], attempt)
            for i, group in zip(dead, own, strict=True):
                if not _equal(group):
                    groups[i] = group
        return [rollout for group in groups for rollout in group]

    def check_start(self) -> None:
        """Sample some responses before anything is trained, and say how they are.

        Raises:
            TrainingStoppedError: none is valid and no group has different rewards.
        """
        asked = max(1, self.settings.start_check // self.num_generations)
        self.engine.weights_changed()
        with self.accelerator.split_between_processes(self.prompts[:asked]) as own:
            groups = gather_object(self._groups(own, attempt=0))
        batch = [rollout for group in groups for rollout in group]
        valid, varied = sum(r.format_reward == 0 for r in batch), sum(not _equal(g) for g in groups)
        told = (
            f"{valid} of {len(batch)} responses are valid, {sum(r.correct for r in batch)} right; "
            f"{varied} of {len(groups)} groups have different rewards"
        )
        if self.accelerator.is_main_process:
            print(f"before training: {told}")
        if not valid and not varied:
            raise TrainingStoppedError(
                f"before training: {told}: this reward can't vary, so nothing could be learnt. "
                f"{_advice(self.settings)}"
            )

    def _groups(self, prompts: Sequence[str], attempt: int) -> list[list[Rollout]]:
        size = self.num_generations
        seed = mix(self.args.seed, self.state.global_step, attempt)
        params = replace(self.settings.sampling, seed=seed)
        trajectories = self.engine.generate(prompts, params, n=size, mode=self.recipe.mode)
        asked = [self.problem_of[prompt] for prompt in prompts for _ in range(size)]
        scored = score(trajectories, asked, self.problems, self.recipe.reward)
        return [scored[i : i + size] for i in range(0, len(scored), size)]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """One sampled response to every validation problem, the same draws each time: mean reward
        (a filtered response counts as -1), accuracy, format pass, work and span. Each process
        answers its share."""
        self.engine.weights_changed()
        with self.accelerator.split_between_processes(list(self.validation)) as asked:
            prompts = [build_prompt(p, self.template, self.processing_class) for p in asked]
            params = replace(self.settings.sampling, seed=self.args.seed)
            trajectories = self.engine.generate(prompts, params, mode=self.recipe.mode)
            own = score(trajectories, asked, self.validation, self.recipe.reward)
        scored = gather_object(own)
        rewards = np.nan_to_num([rollout.reward for rollout in scored], nan=-1.0)
        figures = {"reward": float(rewards.mean()), **summarize(scored)}
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        super(GRPOTrainer, self).log(metrics)  # GRPO's own would take the training metrics along
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log_batch(self, batch: Sequence[Rollout]) -> None:
        """Metrics of a rollout batch (of all processes)."""
        size = self.num_generations
        flat = [_equal(batch[i : i + size]) for i in range(0, len(batch), size)]
        self._flat = self._flat + 1 if all(flat) else 0
        self._log_metric("zero_variance_groups", float(np.mean(flat)))
        for name, value in summarize(batch).items():
            self._log_metric(name, value)
        self._log_metric("off_policy", float(not self.settings.sampling.on_policy))

    def _check(self, batch: Sequence[Rollout]) -> None:
        """TrainingStoppedError when training can't go on: too few responses are valid, or rollouts
        have taught nothing for a while."""
        step, valid = self.state.global_step, np.mean([r.format_reward == 0 for r in batch])
        if valid < self.settings.min_kept:
            raise TrainingStoppedError(
                f"step {step}: {valid:.0%} of the responses are valid, below the floor of "
                f"{self.settings.min_kept:.0%}: the format collapses. Lower the learning rate, or "
                f"use invalid='penalize'. {self._kept()}"
            )
        if self._flat >= self.settings.max_flat:
            rewards = ", ".join(sorted({f"{rollout.reward:g}" for rollout in batch}))
            raise TrainingStoppedError(
                f"step {step}: {self._flat} rollout batches in a row had no group with different "
                f"rewards (the last had {rewards}), so nothing can be learnt from them. All right: "
                "train for fewer steps or on harder problems. All wrong or filtered: start from a "
                "better model, lower the learning rate, or raise the samples a problem. "
                f"{self._kept()}"
            )

    def _kept(self) -> str:
        folder = self.args.output_dir
        if (last := get_last_checkpoint(folder)) is None:
            return "There is no checkpoint yet"
        return f"{last} is kept; training with other settings sets it aside"

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochOrder:
        return EpochOrder(super()._get_train_sampler(dataset), self)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._inputs = None
        output = super()._generate_and_score_completions(inputs)
        output |= self._engine_tensors(output["completion_ids"].shape[1])
        batch = gather_object(self._batch)
        advantages_B = self._advantages(batch)
        first = self.accelerator.process_index * len(self._batch)
        output["advantages"] = advantages_B[first : first + len(self._batch)]
        if self.accelerator.is_main_process:
            self._record(batch, advantages_B.tolist())
        self._check(batch)
        return output

    def _advantages(self, batch: Sequence[Rollout]) -> torch.Tensor:
        """float32 [B] over all processes, by the recipe, in the place of TRL's own."""
        rewards_B = np.array([rollout.reward for rollout in batch], np.float32)
        found = np.asarray(self.recipe.advantages(rewards_B, self.num_generations), np.float32)
        if found.shape != rewards_B.shape:
            raise WorkbenchError(
                f"advantages gave shape {found.shape} for {len(rewards_B)} rewards: one a response"
            )
        found = np.where(np.isnan(rewards_B), np.float32(0), found)
        if not np.isfinite(found).all():
            raise WorkbenchError(f"advantages of {rewards_B.tolist()} are not all finite")
        return torch.from_numpy(found).to(self.accelerator.device)

    def _engine_tensors(self, width: int) -> dict[str, Any]:
        """The layouts of the batch, and the engine's logprobs [B, width], nan where it has none."""
        trajectories = [rollout.trajectory for rollout in self._batch]
        logprobs = torch.full((len(trajectories), width), float("nan"))
        for row, trajectory in zip(logprobs, trajectories, strict=True):
            row[: trajectory.work] = torch.tensor(trajectory.logprobs)
        return {
            "layouts": [trajectory.layout for trajectory in trajectories],
            "engine_logprobs": logprobs.to(self.accelerator.device),
        }

    def _record(self, batch: Sequence[Rollout], advantages: Sequence[float]) -> None:
        size, step = self.num_generations, self.state.global_step
        path = Path(self.args.output_dir) / "rollouts" / f"{step:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = [i % size for i in range(len(batch))]
        table = to_table(batch, sample=samples, advantage=list(advantages), step=step)
        table.to_parquet(path, index=False)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's micro-batch, but of groups as they are: shuffled, a group would be scattered over
        the micro-batches, and its prompt computed in each."""
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(batch, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

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
        tensors = self._inputs or self._engine_tensors(logits_to_keep)
        layouts, silent = tensors["layouts"], self._silent(len(input_ids))
        rows = rows_of(input_ids, layouts, logits_to_keep, silent, self.accelerator)
        logprobs_BT, entropies_BT = logprobs_and_entropies(
            model,
            self.accelerator,
            input_ids,
            attention_mask,
            layouts,
            logits_to_keep,
            rows,
            silent,
        )
        if "old_per_token_logps" not in tensors:  # else the weights have moved on
            # `mask_truncated_completions` masks whole rows, whose logprobs are not computed
            masked_BT = attention_mask[:, -logits_to_keep:] == 0
            engine_BT = tensors["engine_logprobs"].masked_fill(masked_BT, math.nan)
            self._compare(logprobs_BT.detach(), engine_BT)
            ids_BT = input_ids[:, -logits_to_keep:]
            self._log_entropies(entropies_BT.detach(), ids_BT, engine_BT)
        return logprobs_BT, entropies_BT, None

    def _silent(self, rows: int) -> list[bool]:
        """Which rows have advantage 0, so no gradient, and need no backward pass.

        Only in one process: ranks that skip different parts would wait for each other.
        """
        if (
            self._inputs is None
            or self._entropy_bonus_enabled
            or self.accelerator.num_processes > 1
        ):
            return [False] * rows
        return (self._inputs["advantages"] == 0).tolist()

    def _log_entropies(
        self, entropies_BT: torch.Tensor, ids_BT: torch.Tensor, engine_BT: torch.Tensor
    ) -> None:
        """Mean entropies of sampled tokens: of tags, which carry the structure, and of others."""
        own_BT = ~engine_BT.isnan()
        tags_BT = torch.isin(ids_BT, self.tag_ids.to(ids_BT.device))
        for name, chosen_BT in (("tags", own_BT & tags_BT), ("others", own_BT & ~tags_BT)):
            own = torch.stack([entropies_BT[chosen_BT].sum(), chosen_BT.sum()])
            total, count = self.accelerator.gather(own[None]).sum(dim=0).tolist()
            if count:
                self._metrics["train"][f"entropy/{name}"].append(total / count)

    def _compare(self, logprobs_BT: torch.Tensor, engine_BT: torch.Tensor) -> None:
        gaps = (logprobs_BT - engine_BT).abs()[~engine_BT.isnan()]
        # a micro-batch may hold nothing but truncated responses that are masked
        told = (gaps.max(), gaps.quantile(0.99)) if len(gaps) else (gaps.sum(), gaps.sum())
        own = torch.stack(told)
        most, nearly = self.accelerator.gather(own[None]).amax(dim=0).tolist()
        # not _log_metric: that is for reward functions, and is flushed before the loss. TRL logs
        # the mean of what is in the list, which is to be the largest gap of all micro-batches
        for name, gap in (("max", most), ("p99", nearly)):
            seen = self._metrics["train"][f"sampling/sampling_logp_difference/{name}"]
            seen[:] = [float(np.max([*seen, gap]))]
        precision = self.accelerator.mixed_precision
        limit = self.settings.max_logprob_gap or GAP_LIMITS[precision]
        if not (most <= limit and nearly <= limit * NEARLY):  # nan is no agreement
            raise TrainingStoppedError(
                f"step {self.state.global_step}: a trainer's logprob differs from the engine's by "
                f"{most:.2g} (limit {limit:g}), 99 % of them by up to {nearly:.2g} (limit "
                f"{limit * NEARLY:g}), at mixed precision {precision}: they don't see the same "
                "context, or compute otherwise. Where that is only precision, set max_logprob_gap "
                f"= {2 * max(most, nearly / NEARLY):.2g} in this stage's section (docs/training.md)"
            )


def _roll_out(prompts: Sequence[str], trainer: RolloutTrainer) -> dict[str, list[Any] | None]:
    """TRL's `rollout_func`: prompts come in runs of `num_generations` equal ones."""
    size = trainer.num_generations
    if any(prompts[i] != prompts[i - i % size] for i in range(len(prompts))) or len(prompts) % size:
        raise ValueError("each process needs whole groups: make its batch a multiple of the group")
    batch = trainer._batch = trainer.roll_out(prompts[::size])
    trainer.log_batch(gather_object(batch))
    kept = [not math.isnan(rollout.reward) for rollout in batch]
    everything = trainer.settings.engine_tokens
    return {
        "prompt_ids": [rollout.trajectory.prompt_ids for rollout in batch],
        "completion_ids": [rollout.trajectory.completion_ids for rollout in batch],
        "logprobs": None,
        "env_mask": [
            [int(keep and (own or everything)) for own in rollout.trajectory.sampled]
            for rollout, keep in zip(batch, kept, strict=True)
        ],
        "given_reward": [
            rollout.reward if keep else None for rollout, keep in zip(batch, kept, strict=True)
        ],
    }


def _advice(section: Reinforcement) -> str:
    """What helps a model that never writes the format."""
    if not isinstance(section, NPRZero):
        return (
            "Stage 2 has not taught the format: train it for longer (sft.trl.num_train_epochs, "
            ".learning_rate), or on more responses (rejection.problems, rejection.k)"
        )
    reward = "" if section.partial_credit else ", or reward what comes near (partial_credit)"
    return (
        "Show the format in the prompt (prompt.system, prompt.turns), or begin with a cold start "
        f"(cold_start.source){reward}"
    )


def summarize(batch: Sequence[Rollout]) -> dict[str, float]:
    """Figures of a batch of scored rollouts, shares in [0, 1], lengths in tokens."""
    trajectories = [rollout.trajectory for rollout in batch]
    branches = [k for t in trajectories for k in t.num_branches]
    figures = {
        "accuracy": np.mean([rollout.correct for rollout in batch]),
        "format": np.mean([rollout.format_reward == 0 for rollout in batch]),
        "kept_share": np.mean([not math.isnan(rollout.reward) for rollout in batch]),
        "trigger_rate": np.mean([t.triggered for t in trajectories]),
        "branches": np.mean(branches) if branches else 0.0,
        "blocks": np.mean([len(t.num_branches) for t in trajectories]),
        "work": np.mean([t.work for t in trajectories]),
        "span": np.mean([t.span for t in trajectories]),
    }
    return {name: float(value) for name, value in figures.items()}


def _given_reward(given_reward: Sequence[float | None], **_: Any) -> Sequence[float | None]:
    return given_reward


def _equal(group: Sequence[Rollout]) -> bool:
    """All rewards of a group are the same (or filtered): it teaches nothing."""
    return len({r.reward for r in group if not math.isnan(r.reward)}) <= 1
