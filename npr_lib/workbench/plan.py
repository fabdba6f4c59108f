"""What a run would take, before anything is loaded: `run --dry-run`. Arithmetic, no measurement.

Memory of a device, for N parameters in P processes:

    weights, gradients, Adam    4 N + 4 N + 8 N bytes, float32; the last over P in ZeRO stage 1, the
                                last two in stage 2 (the engine needs the weights whole)
    activations                 of a micro-batch of B responses at the full budget L: with gradient
                                checkpointing B L h a layer and what one layer keeps, else that of
                                every layer; B L (8 h + 4 i) for hidden size h, intermediate size i.
                                Logits are made chunk by chunk and count nothing
    rollouts                    SGLang: its own weights; both engines: a pool of num_slots tokens,
                                2 * KV heads * head size numbers a layer and token

Time, at the full budget of every response (one that ends early costs in proportion): decoding reads
the weights and the KV of what is in flight once a token, training does 6 N operations a token, 8 N
with checkpointing. How fast that goes is assumed (`GPU`, `CPU`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from transformers import PreTrainedConfig

from npr_lib import WorkbenchError
from npr_lib.analysis.ladder import rungs
from npr_lib.profiles.sections import Profile
from npr_lib.workbench import preflight
from npr_lib.workbench.shapes import config, disk, kv_bytes, parameters


@dataclass(frozen=True, slots=True)
class Device:
    """flops: that training reaches; bandwidth: bytes/s that decoding reaches; most: tokens/s."""

    name: str
    flops: float
    bandwidth: float
    most: float


GPU = Device("an H100 at 30 % of its 989 TFLOP/s and half of its 3.35 TB/s", 3e14, 1.7e12, 5e4)
CPU = Device("two CPU cores at 0.1 TFLOP/s and 10 GB/s, at most 10,000 tokens/s", 1e11, 1e10, 1e4)
ALONE = ("rejection", "evaluation")  # one engine answers; only trainings are launched
UNVERIFIED = (
    "no run of this size was made: allocators, communication and what a chunk of logits takes come "
    "on top of the memory (10 to 20 % as a rule); times are no better than the assumed speed"
)


def plan(profile: Profile, sections: Collection[str], name: str) -> str:
    """The plan as text. sections: what the stages that would run read of the profile."""
    lines = [f"plan of {name}", f"  command     python -m npr_lib run --profile {name}"]
    shape, count = config(profile), preflight.processes(profile)
    lines += [f"  processes   {launch(profile)}", *_batches(profile, sections, count)]
    if shape is None:
        lines += [f"  model       {profile.model['path']}: its size isn't known here"]
    else:
        lines += _model(profile, shape, count)
        lines += _times(profile, sections, shape, count)
    lines += [f"  stops       {fault}" for fault in preflight.faults(profile, sections, here=True)]
    return "\n".join([*lines, *(f"  unverified  {text}" for text in _unverified(profile, count))])


def launch(profile: Profile) -> str:
    """How the trainings are started."""
    count = preflight.processes(profile)
    if count == 1:
        return "1"
    file = profile.launch.config_file
    given = f" --config_file {file}" if file else ""
    return f"{count} a training: accelerate launch --num_processes {count}{given}, by the notebooks"


def _batches(profile: Profile, sections: Collection[str], count: int) -> Iterator[str]:
    for name in preflight.RL:
        if name not in sections:
            continue
        try:
            args = preflight.rl_arguments(profile, name)
        except WorkbenchError:
            continue  # among what stops it
        each = args.per_device_train_batch_size * args.steps_per_generation
        groups = each * count // args.num_generations
        updates = args.steps_per_generation // args.gradient_accumulation_steps
        yield (
            f"  batch       {name}: {groups} problems x {args.num_generations} = {each * count} "
            f"responses ({each} a process, {args.per_device_train_batch_size} at a time), "
            f"{updates} optimizer step{'s' * (updates > 1)} each"
        )


def _model(profile: Profile, shape: PreTrainedConfig, count: int) -> Iterator[str]:
    total = parameters(shape)
    yield (
        f"  model       {total / 1e6:,.1f} M parameters: {shape.num_hidden_layers} layers of "
        f"{shape.hidden_size}, vocabulary {shape.vocab_size:,}"
    )
    parts = memory(profile, shape, count, preflight.zero_stage(profile))
    told = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in parts.items() if size)
    yield f"  memory      {sum(parts.values()) / 1e9:.1f} GB a device: {told}"
    yield f"  disk        {(disk(profile) or 0) / 1e9:.1f} GB of models and checkpoints at most"


def memory(
    profile: Profile, shape: PreTrainedConfig, count: int = 1, zero: int = 0
) -> dict[str, float]:
    """Bytes of a device in reinforcement learning, the larger of its two stages, by what for."""
    total, layers = parameters(shape), shape.num_hidden_layers
    grpo, wide, deep = profile.npr.grpo, shape.hidden_size, shape.intermediate_size
    width = 2 if grpo.get("bf16") else 4
    tokens = max(s.sampling.max_tokens for s in (profile.npr_zero, profile.npr))
    tokens *= grpo.get("per_device_train_batch_size", 8)
    kept = tokens * (8 * wide + 4 * deep) * width
    checkpointed = tokens * wide * width * layers + kept
    sglang = profile.engine.backend != "torch"
    pool = profile.engine.num_slots * kv_bytes(shape, 2 if sglang else 4)
    return {
        "weights": 4 * total,
        "gradients": 4 * total / (count if zero >= 2 else 1),
        "Adam": 8 * total / (count if zero >= 1 else 1),
        "activations": checkpointed if grpo.get("gradient_checkpointing") else kept * layers,
        "rollout weights": 2 * total if sglang else 0,
        "KV pool": pool,
    }


def _times(
    profile: Profile, sections: Collection[str], shape: PreTrainedConfig, count: int
) -> Iterator[str]:
    device = GPU if profile.npr.grpo.get("bf16") else CPU
    total = parameters(shape)
    # every pass computes a layer twice with checkpointing
    work = (8 if profile.npr.grpo.get("gradient_checkpointing") else 6) * total
    for name, (responses, budget, trained) in responses_of(profile, sections, count).items():
        devices = 1 if name in ALONE else count
        flying = max(1, min(responses / devices, profile.engine.num_slots // budget))
        read = 2 * total + flying * budget / 2 * kv_bytes(shape, 2)
        decoding = min(device.most, flying * device.bandwidth / read) * devices
        sampled = responses * budget
        seconds = sampled / decoding + trained / min(device.most, device.flops / work) / devices
        yield (
            f"  stage       {name}: {responses:,} responses, at most {sampled / 1e6:,.1f} M tokens "
            f"sampled and {trained / 1e6:,.1f} M trained on, {_time(seconds)} on {devices}"
        )
    yield f"  assumed     of each device: {device.name}"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{math.ceil(seconds / 60)} min"


def responses_of(
    profile: Profile, sections: Collection[str], count: int
) -> dict[str, tuple[int, int, int]]:
    """Stage -> (responses, budget of one in tokens, tokens trained on at most), as far as the
    profile tells how many."""
    found: dict[str, tuple[int, int, int]] = {}
    train = profile.problems.get("train")
    for name in preflight.RL:
        try:
            args = preflight.rl_arguments(profile, name)
        except WorkbenchError:
            continue
        batch = args.per_device_train_batch_size * args.steps_per_generation * count
        updates = args.steps_per_generation // args.gradient_accumulation_steps
        epoch = (train or 0) // (batch // args.num_generations)
        batches = args.max_steps / updates if args.max_steps > 0 else args.num_train_epochs * epoch
        budget = getattr(profile, name).sampling.max_tokens
        arms = 2 if name == "npr" and profile.baselines else 1
        responses = arms * math.ceil(batches) * batch
        found[name] = (responses, budget, responses * budget)
    rejection, evaluation = profile.rejection, profile.evaluation
    problems, budget = rejection.problems, rejection.sampling.max_tokens
    found["rejection"] = (problems * rejection.k, budget, 0)
    rows = problems * profile.sft.trl.get("num_train_epochs", 3)
    if (steps := profile.sft.trl.get("max_steps", -1)) > 0:
        rows = steps * count * profile.sft.trl.get("per_device_train_batch_size", 8)
        rows *= profile.sft.trl.get("gradient_accumulation_steps", 1)
    found["sft"] = (0, budget, int(rows * budget) * (1 + profile.baselines))
    answers = profile.problems.get("test", 0) * (evaluation.samples + 1)
    answers *= len(rungs(profile.baselines))
    found["evaluation"] = (answers, evaluation.sampling.max_tokens, 0)
    return {name: amount for name, amount in found.items() if name in sections}


def _unverified(profile: Profile, count: int) -> Iterator[str]:
    yield UNVERIFIED
    if count > 1:
        yield f"{count} devices and how they talk: a training is tested with CPU processes only"
    if preflight.zero_stage(profile):
        yield "DeepSpeed, which is not among the dependencies: how it holds weights is its own"
    if profile.lora:
        yield "adapters: gradients and Adam are of them only, and less than is said"
    if profile.problems["kind"] in ("hub", "benchmark"):
        yield "the problems: they are on the hub unless a file of theirs lies here"
