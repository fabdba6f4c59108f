"""Tables of several runs: other seeds, other settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from npr_lib.analysis.branching import span_ratio, split_gain, wrong_part_rate
from npr_lib.analysis.ladder import NAMES
from npr_lib.analysis.metrics import Estimate, format_pass, pooled_difference, trigger_rate
from npr_lib.analysis.tables import DECODINGS, decoded, interval_text, sampled
from npr_lib.tasks.parts.divisions import divisions

Frames = Mapping[str, pd.DataFrame]  # checkpoint -> rollouts


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
