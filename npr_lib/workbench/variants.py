"""Stages 2 and 3 again, from the seed and NPR-Zero of a finished run: other settings, other seeds.

    variant = Variant("filter", ("npr.invalid=filter",), first="papo")
    frames = run_variant(variant, "reports/tiny", "reports/ablations", seed=1)

A variant's folder is `out/<name>/seed<seed>`. What is finished there is not done again, and what
was interrupted goes on, as everywhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from npr_lib import WorkbenchError
from npr_lib.analysis.evaluate import evaluate
from npr_lib.analysis.ladder import BASELINES
from npr_lib.engine.adapter import point
from npr_lib.files import base_of, model_digest
from npr_lib.profiles.profile import load_profile
from npr_lib.profiles.stage import Stage
from npr_lib.reasoning.trajectory import Mode, read_rollouts, rollouts_path
from npr_lib.tasks.problems import Split
from npr_lib.train import papo, rejection, sft

Frames = Mapping[str, pd.DataFrame]  # checkpoint -> rollouts


@dataclass(frozen=True, slots=True)
class Variant:
    """overrides: of the run's profile. first: where it leaves the run: "papo" starts from the run's
    SFT models, "sft" trains its own on the run's data, "rejection" samples its own data too.
    writer: the checkpoint that data are sampled from. learner: the one that SFT starts from.
    baseline: whether the sequential twins (SR-Beta, SR) are trained as well."""

    name: str
    overrides: tuple[str, ...] = ()
    first: Literal["rejection", "sft", "papo"] = "papo"
    writer: Literal["seed", "npr_zero"] = "npr_zero"
    learner: Literal["seed", "npr_zero"] = "seed"
    baseline: bool = False


ABLATIONS = (
    Variant("PAPO"),
    Variant("advantage: group", ("npr.advantage=group",)),
    Variant("advantage: none", ("npr.advantage=none",)),
    Variant("invalid: filter", ("npr.invalid=filter",)),
    Variant("engine tokens in the loss", ("npr.engine_tokens=true",)),
    Variant("clip: dapo, 2 steps a batch", ("npr.clip=dapo", "npr.grpo.steps_per_generation=8")),
    Variant("span bonus 0.5", ("npr.span_bonus=0.5",)),
    Variant("at most 2 branches", ("engine.max_branches=2",)),
    Variant("warm-up: 50 steps", ("sft.trl.max_steps=50",), first="sft"),
    Variant("warm-up: 100 steps", ("sft.trl.max_steps=100",), first="sft"),
    Variant("data: first right sample", ("rejection.keep=first",), first="rejection"),
    Variant("data from the seed", first="rejection", writer="seed"),
    Variant("SFT of NPR-Zero", first="sft", learner="npr_zero"),
)
"""Each changes one thing against the first."""


def chosen(names: Sequence[str] | None) -> list[Variant]:
    """The ablations of these names (None: all), in their order. WorkbenchError for another name."""
    known = [variant.name for variant in ABLATIONS]
    if unknown := sorted(set(names or ()) - set(known)):
        raise WorkbenchError(f"no ablation is called {', '.join(unknown)}; there are: {known}")
    return [variant for variant in ABLATIONS if names is None or variant.name in names]


def run_variant(
    variant: Variant, base: Path | str, out: Path | str, seed: int, split: Split = "validation"
) -> Frames:
    """Train and evaluate a variant; returns checkpoint -> rollouts on `split`.

    Raises WorkbenchError when `base` is not a finished run.
    """
    base = Path(base)
    if not (base / "npr_beta" / "npr.json").exists():
        raise WorkbenchError(f"{base} has no NPR-Beta; make one with: python -m npr_lib run")
    folder = Path(out) / variant.name.replace(" ", "_").replace(":", "") / f"seed{seed}"
    profile = load_profile(base / "profile.yaml", variant.overrides)
    stage = Stage("variant", profile, folder, seed)
    names = ["npr_beta", "npr", *(BASELINES if variant.baseline else ())]
    _train(variant, stage, base)
    asked = replace(stage, seed=profile.random_seed)
    return {name: evaluate(asked, name, split) for name in names}


def whole_run(run_dir: Path | str, baselines: bool = True) -> Frames:
    """The test rollouts of a finished run, as `run_variant` returns those of a variant with its
    baseline, or without. WorkbenchError where one is missing."""
    names = ("npr_beta", "npr", *(BASELINES if baselines else ()))
    paths = {name: rollouts_path(run_dir, name) for name in names}
    if missing := [str(path) for path in paths.values() if not path.exists()]:
        raise WorkbenchError(f"{run_dir} is no finished run; missing: {', '.join(missing)}")
    return {name: read_rollouts(path) for name, path in paths.items()}


def _train(variant: Variant, stage: Stage, base: Path) -> None:
    """Whatever of it is not there yet: each training knows what it was made of."""
    folder = stage.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    modes: tuple[Mode, ...] = ("parallel", "sequential") if variant.baseline else ("parallel",)
    if variant.first == "rejection":
        rejection.collect(replace(stage, checkpoint=base / variant.writer))
    else:
        _bring(base / "rejection.parquet", folder)
    if variant.first != "papo":
        _bring(base / variant.learner, folder / "seed")
    for mode in modes:
        if variant.first != "papo":
            sft.train(stage, mode)
        else:
            beta = "npr_beta" if mode == "parallel" else "sr_beta"
            _bring(base / beta, folder / beta)
        papo.train(stage, mode)


def _bring(source: Path, target: Path) -> None:
    """Copy a file or a model folder, unless it is there."""
    if source.is_file():
        shutil.copy(source, target)
    elif model_digest(source) != model_digest(target):  # not copied, in part, or another's
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        if (base := base_of(source)) is not None:
            point(target, base)  # the way to it is another from here
