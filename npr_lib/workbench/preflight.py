"""What a run's stages need, looked at before the first of them: what would stop a late stage, hours
from now, is said at once.

Only what the stages that are to run read of the profile is looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from trl import GRPOConfig

from npr_lib import WorkbenchError
from npr_lib.files import REPOSITORY
from npr_lib.profiles.sections import Profile
from npr_lib.tasks.problems import Split, build_prompt, load_problems, local_files
from npr_lib.train import dapo, papo, reinforce, sft
from npr_lib.workbench.shapes import disk

RL: dict[str, Callable[[Any], dict[str, Any]]] = {
    "npr_zero": lambda section: reinforce.fixed_fields("npr_zero", section, dapo.DAPO, "DAPO"),
    "npr": papo.grpo_fields,
}
"""The stages of reinforcement learning, and what makes GRPOConfig's fields of their sections."""
# What reads a split: sections of the profile. The rest of a split's size is asked below.
READERS: dict[Split, tuple[str, ...]] = {
    "train": ("npr_zero", "rejection", "npr"),
    "validation": ("npr_zero", "npr"),
    "test": ("evaluation",),
}


def faults(profile: Profile, sections: Collection[str], here: bool = False) -> list[str]:
    """What would stop a stage that reads these sections, in words; [] if nothing is seen.

    here: look only at what is on this machine already, and not at what it can compute.
    """
    found: list[str] = []
    counts: dict[str, int] = {}
    for split, readers in READERS.items():
        if "problems" in sections and set(readers) & set(sections) and not (here and _far(profile)):
            found += _said(partial(_count, profile, split, counts))
    for name in RL:
        if name in sections:
            found += _said(partial(_check_rl, profile, name, counts, here))
    found += _sections(profile, sections, counts)
    if "sft" in sections:
        fields = _on_cpu(profile.sft.trl)
        attempt = partial(sft.arguments, fields, Path("npr_beta"), profile.random_seed)
        found += _said(attempt, "sft.trl: ")
    return found


def check(profile: Profile, sections: Collection[str], run_dir: Path) -> None:
    """WorkbenchError with everything that would stop a stage."""
    found = faults(profile, sections) + _said(partial(_check_disk, profile, run_dir))
    if found:
        raise WorkbenchError("; ".join(found))


def _check_disk(profile: Profile, run_dir: Path) -> None:
    need = disk(profile) or 0
    there = next(path for path in (run_dir, *run_dir.resolve().parents) if path.exists())
    if (free := shutil.disk_usage(there).free) < need:
        raise WorkbenchError(
            f"the disk of {there} has {free / 1e9:.1f} GB left, and the run's models and "
            f"checkpoints take about {need / 1e9:.1f} GB"
        )


def rl_arguments(profile: Profile, name: str) -> GRPOConfig:
    """TRL's arguments of a stage; WorkbenchError if they contradict. No device is touched."""
    section = getattr(profile, name)
    fields = _on_cpu(RL[name](section))
    return reinforce.arguments(name, section, fields, profile.random_seed)


def processes(profile: Profile) -> int:
    """How many processes share a training."""
    return profile.launch.num_processes


def zero_stage(profile: Profile) -> int:
    """What accelerate's configuration shares out among the processes, as DeepSpeed counts; 0:
    nothing."""
    if profile.launch.config_file is None:
        return 0
    path = REPOSITORY / profile.launch.config_file  # relative to where notebooks run
    if not path.is_file():
        raise WorkbenchError(f"launch.config_file = {path}: there is no such file")
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    return int(said.get("deepspeed_config", {}).get("zero_stage", 0))


def _on_cpu(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that any machine takes: elsewhere bfloat16 is refused, and a GPU is taken hold of."""
    return {"bf16": False, **fields, "use_cpu": True}


def _said(attempt: Callable[[], Any], start: str = "") -> list[str]:
    try:
        attempt()
    except (WorkbenchError, ValueError, TypeError, OSError) as error:
        return [start + " ".join(str(error).split())]
    return []


def _far(profile: Profile) -> bool:
    """The problems are on the hub, as far as is known here."""
    return profile.problems["kind"] in ("hub", "benchmark") and not local_files(profile.problems)


def _count(profile: Profile, split: Split, counts: dict[str, int]) -> None:
    """Note how many problems a split has; WorkbenchError for none, or if they make no prompt."""
    problems = load_problems(profile.problems, split, profile.random_seed)
    if not problems:
        raise WorkbenchError(f"the {split} split has no problems (problems.{split})")
    counts[split] = len(problems)
    # the tokenizer, and with it a chat template, is there after stage 0
    for prompt in (profile.prompt, profile.cold_start.prompt):
        given = {"template": prompt} if isinstance(prompt, str) else prompt
        build_prompt(problems[0], {k: v for k, v in given.items() if k in ("template", "turns")})


def _check_rl(profile: Profile, name: str, counts: dict[str, int], here: bool) -> None:
    section, args = getattr(profile, name), rl_arguments(profile, name)
    args.generation_batch_size *= processes(profile)
    if {"train", "validation"} <= set(counts):
        reinforce.check_counts(name, section, args, counts)
    if not here and args.bf16 and "use_cpu" not in section.grpo and not torch.cuda.is_available():
        raise WorkbenchError(f"{name}.grpo.bf16 = true: no GPU is found; on a CPU use_cpu: true")


def _sections(profile: Profile, sections: Collection[str], counts: dict[str, int]) -> Iterator[str]:
    """What sections say that can't be."""
    asked, have = profile.rejection.problems, counts.get("train", profile.rejection.problems)
    if "rejection" in sections and asked > have:
        yield (
            f"rejection.problems = {asked}, but the train split has {have} (problems.train): "
            f"rejection.problems={have} takes them all"
        )
    for name in ("npr_zero", "rejection", "npr", "evaluation"):
        most = getattr(profile, name).sampling.max_tokens
        if name in sections and most >= profile.engine.num_slots:
            yield (
                f"{name}.sampling.max_tokens = {most}: with its prompt no response fits the pool, "
                f"engine.num_slots = {profile.engine.num_slots}"
            )
