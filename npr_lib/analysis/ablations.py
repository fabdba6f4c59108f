"""Tables of several runs: other seeds, other settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from npr_lib.analysis.branching import span_ratio, split_gain, wrong_part_rate
from npr_lib.analysis.ladder import NAMES
from npr_lib.analysis.metrics import Estimate, format_pass, pooled_difference, trigger_rate
from npr_lib.analysis.quantities import QUANTITIES, share
from npr_lib.analysis.reading import decoded, decodings, sampled
from npr_lib.tasks.parts.divisions import divisions

Frames = Mapping[str, pd.DataFrame]  # checkpoint -> rollouts


def replicates_table(runs: Mapping[str, Frames]) -> pd.DataFrame:
    """Accuracy (%) of every checkpoint of every run: "T = 1 (greedy)"."""
    rows = {
        label: {
            NAMES[name]: "{} ({})".format(*_accuracies(frame)) for name, frame in frames.items()
        }
        for label, frames in runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def divided(runs: Mapping[str, Frames]) -> dict[str, Frames]:
    """How the sampled responses of NPR-Beta, NPR and SR divide their problems, run by run: what
    `decomposition.divisions` returns. "parts" problems only."""
    return {
        label: {
            name: divisions(sampled(frames[name]))
            for name in ("npr_beta", "npr", "sr")
            if name in frames
        }
        for label, frames in runs.items()
    }


def behaviour_table(divided: Mapping[str, Frames]) -> pd.DataFrame:
    """What the sampled responses of every run are like, before and after stage 3, with intervals.

    Args:
        divided: run -> checkpoint -> divisions, as `divided` returns them.
    """
    beta_name, npr_name = NAMES["npr_beta"], NAMES["npr"]
    valid, forked, wrong, blind, ratio = (
        QUANTITIES[name]
        for name in ("format_pass", "trigger_rate", "wrong_parts", "blind", "span_ratio")
    )
    rows = {}
    for label, frames in divided.items():
        beta, npr = frames["npr_beta"], frames["npr"]
        blinds = (blind.number((frame["kind"] == "blind").mean()) for frame in (beta, npr))
        rows[label] = {
            valid.title(beta_name): valid.text(format_pass(beta)),
            forked.title(beta_name): forked.text(trigger_rate(beta)),
            wrong.title(beta_name): wrong.text(wrong_part_rate(beta)),
            valid.title(npr_name): valid.text(format_pass(npr)),
            blind.title(): " → ".join(blinds),
            **{
                share(name).difference(): share(name).text(gain)
                for name, gain in split_gain(beta, npr).items()
            },
        }
        if "sr" in frames:
            rows[label][ratio.title()] = ratio.text(span_ratio(npr, frames["sr"]))
    return pd.DataFrame.from_dict(rows, orient="index")


def _accuracies(frame: pd.DataFrame) -> list[str]:
    means = (decoded(frame, greedy)["accuracy"].mean() for _, greedy in decodings(frame))
    return list(map(QUANTITIES["avg"].number, means))


def pooled_differences(runs: Sequence[Frames]) -> dict[str, Estimate]:
    """NPR - NPR-Beta and, where there are baselines, SR - SR-Beta and NPR - SR over all seeds,
    sampled and greedy."""
    found = {}
    every = (("npr_beta", "npr"), ("sr_beta", "sr"), ("sr", "npr"))
    for before, after in [pair for pair in every if set(pair) <= set(runs[0])]:
        for label, greedy in decodings(runs[0][after]):
            pairs = [(decoded(run[before], greedy), decoded(run[after], greedy)) for run in runs]
            name = f"{NAMES[after]} − {NAMES[before]}, {label}"
            found[name] = pooled_difference(pairs)
    return found


def ablation_table(results: Mapping[str, Sequence[Frames]]) -> pd.DataFrame:
    """A row a variant, figures of NPR over its seeds; differences are to the first variant."""
    first, accuracy = next(iter(results.values())), QUANTITIES["avg"]
    columns = {"format_pass": "valid", "blocks": "num_blocks", "work": "work", "span": "span"}
    rows = {}
    for name, runs in results.items():
        frame = sampled(pd.concat([run["npr"] for run in runs]))
        found = zip(*(_accuracies(run["npr"]) for run in runs), strict=True)
        row = {
            accuracy.title(label): " / ".join(means)
            for (label, _), means in zip(decodings(frame), found, strict=True)
        }
        for metric, column in columns.items():
            row[QUANTITIES[metric].title()] = QUANTITIES[metric].number(frame[column].mean())
        for label, greedy in decodings(frame):
            pairs = [
                (decoded(old["npr"], greedy), decoded(new["npr"], greedy))
                for old, new in zip(first, runs, strict=True)
            ]
            row[f"Δ {accuracy.difference(label)}"] = accuracy.text(pooled_difference(pairs))
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")
