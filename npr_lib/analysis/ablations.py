"""Stages 2 and 3 again, from the seed and NPR-Zero of a finished run: other settings, other seeds.

    variant = Variant("filter", ("npr.invalid=filter",), first="papo")
    frames = run_variant(variant, "reports/tiny", "reports/ablations", seed=1)

A variant's folder is `out/<name>/seed<seed>`. What is finished there is not done again, and what
was interrupted goes on, as everywhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from npr_lib import WorkbenchError
from npr_lib.analysis.branching import span_ratio, split_gain, wrong_part_rate
from npr_lib.analysis.evaluate import evaluate
from npr_lib.analysis.ladder import NAMES
from npr_lib.analysis.metrics import Estimate, format_pass, pooled_difference, trigger_rate
from npr_lib.analysis.tables import DECODINGS, decoded, interval_text, sampled
from npr_lib.files import digest, source_digest, write_json
from npr_lib.profiles.profile import load_profile
from npr_lib.reasoning.trajectory import read_rollouts, rollouts_path
from npr_lib.tasks.parts.divisions import divisions
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
    names = ["npr_beta", "npr", *(["sr_beta", "sr"] if variant.baseline else [])]
    sources = {name: digest(base / name) for name in ("seed", "npr_zero", "npr_beta")}
    identity = json.loads(json.dumps(asdict(variant) | {"split": split, "profile": profile}))
    identity |= {"base": sources, "npr_lib": source_digest()}
    done = folder / "variant.json"
    if not (done.exists() and json.loads(done.read_text(encoding="utf-8")) == identity):
        _train(variant, profile, base, folder, seed)
        for name in names:
            frame = evaluate(profile, folder, name, profile["random_seed"], split)
            if split != "test":
                frame.to_parquet(rollouts_path(folder, name, split), index=False)
        write_json(done, identity)
    return {name: read_rollouts(rollouts_path(folder, name, split)) for name in names}


def whole_run(run_dir: Path | str) -> Frames:
    """The test rollouts of a finished run, as `run_variant` returns those of a variant with its
    baseline. WorkbenchError where one is missing."""
    names = ("npr_beta", "npr", "sr_beta", "sr")
    paths = {name: rollouts_path(run_dir, name) for name in names}
    if missing := [str(path) for path in paths.values() if not path.exists()]:
        raise WorkbenchError(f"{run_dir} is no finished run; missing: {', '.join(missing)}")
    return {name: read_rollouts(path) for name, path in paths.items()}


def _train(variant: Variant, profile: dict, base: Path, folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    modes = ("parallel", "sequential") if variant.baseline else ("parallel",)
    if variant.first == "rejection":
        rejection.collect(profile, folder, base / variant.writer, seed)
    else:
        shutil.copy(base / "rejection.parquet", folder)
    for mode in modes:
        beta = folder / ("npr_beta" if mode == "parallel" else "sr_beta")
        if variant.first != "papo":
            sft.train(profile, folder, base / variant.learner, seed, mode)
        elif digest(beta) != digest(base / beta.name):  # not copied, copied in part, or another's
            shutil.rmtree(beta, ignore_errors=True)
            shutil.copytree(base / beta.name, beta)
        papo.train(profile, folder, beta, seed, mode)


def replicates_table(runs: Mapping[str, Frames]) -> pd.DataFrame:
    """Accuracy (%) of every checkpoint of every run: "T = 1 (greedy)"."""
    rows = {
        label: {
            NAMES[name]: "{:.1f} ({:.1f})".format(*_accuracies(frame))
            for name, frame in frames.items()
        }
        for label, frames in runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def divided(runs: Mapping[str, Frames]) -> dict[str, Frames]:
    """How the sampled responses of NPR-Beta, NPR and SR divide their problems, run by run: what
    `decomposition.divisions` returns. "parts" problems only."""
    return {
        label: {name: divisions(sampled(frames[name])) for name in ("npr_beta", "npr", "sr")}
        for label, frames in runs.items()
    }


def behaviour_table(divided: Mapping[str, Frames]) -> pd.DataFrame:
    """What the sampled responses of every run are like, before and after stage 3, with intervals.

    Args:
        divided: run -> checkpoint -> divisions, as `divided` returns them.
    """
    rows = {}
    for label, frames in divided.items():
        beta, npr = frames["npr_beta"], frames["npr"]
        blind = (100 * (frame["kind"] == "blind").mean() for frame in (beta, npr))
        gains = split_gain(beta, npr)
        rows[label] = {
            "format, NPR-Beta (%)": interval_text(format_pass(beta), 100, 1),
            "trigger, NPR-Beta (%)": interval_text(trigger_rate(beta), 100, 1),
            "wrong parts, NPR-Beta (%)": interval_text(wrong_part_rate(beta), 100, 1),
            "format, NPR (%)": interval_text(format_pass(npr), 100, 1),
            "blind divisions (%)": "{:.1f} → {:.1f}".format(*blind),
            **{f"{name} (points)": interval_text(gain, 100, 1) for name, gain in gains.items()},
            "span / SR's length, ≥ 3 independent parts": interval_text(
                span_ratio(npr, frames["sr"])
            ),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _accuracies(frame: pd.DataFrame) -> tuple[float, float]:
    return tuple(100 * decoded(frame, greedy)["accuracy"].mean() for _, greedy in DECODINGS)


def pooled_differences(runs: Sequence[Frames]) -> dict[str, Estimate]:
    """NPR - NPR-Beta, SR - SR-Beta and NPR - SR over all seeds, T = 1 and greedy."""
    found = {}
    for before, after in (("npr_beta", "npr"), ("sr_beta", "sr"), ("sr", "npr")):
        for label, greedy in DECODINGS:
            pairs = [(decoded(run[before], greedy), decoded(run[after], greedy)) for run in runs]
            name = f"{NAMES[after]} − {NAMES[before]}, {label}"
            found[name] = pooled_difference(pairs)
    return found


def ablation_table(results: Mapping[str, Sequence[Frames]]) -> pd.DataFrame:
    """A row a variant, figures of NPR over its seeds; differences are to the first variant."""
    first = next(iter(results.values()))
    rows = {}
    for name, runs in results.items():
        frame = sampled(pd.concat([run["npr"] for run in runs]))
        row = {
            f"accuracy {label} (%)": " / ".join(f"{_accuracies(run['npr'])[i]:.1f}" for run in runs)
            for i, (label, _) in enumerate(DECODINGS)
        }
        row |= {
            "format pass (%)": f"{100 * frame['valid'].mean():.1f}",
            "blocks": f"{frame['num_blocks'].mean():.2f}",
            "work": f"{frame['work'].mean():.0f}",
            "span": f"{frame['span'].mean():.0f}",
        }
        for label, greedy in DECODINGS:
            pairs = [
                (decoded(old["npr"], greedy), decoded(new["npr"], greedy))
                for old, new in zip(first, runs, strict=True)
            ]
            row[f"Δ {label}"] = interval_text(pooled_difference(pairs), 100, 1)
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")
