"""What the notebooks put into tables, and the files that hold them.

Drawing is `npr_lib.viz`, numbers are `metrics`, pages are `npr_lib.workbench.pages`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from npr_lib.analysis import paper
from npr_lib.analysis.ladder import CHANGES, COMPARISONS, NAMES
from npr_lib.analysis.metrics import Estimate, efficiency, paired_difference
from npr_lib.analysis.quantities import QUANTITIES, interval_text, quantity
from npr_lib.analysis.reading import decoded, decodings
from npr_lib.files import write_json

Pair = tuple[str, str]  # (before, after)
_LADDER = ["Qwen3-4B-Instruct", "SR-Beta", "NPR-Beta", "SR", "NPR"]
PAPER = pd.DataFrame(
    {
        "accuracy, mean of 8 benchmarks (%)": paper.ACCURACY["mean"],
        "parallel trigger rate (%)": paper.TRIGGER_RATE.mean(axis=1),
    }
).loc[_LADDER]
"""arXiv 2512.07461: accuracy and trigger rate of its ladder."""

PAPER_SPEED = pd.DataFrame(
    {
        "NPR, tokens/s": [2979.8, 2768.5, 2784.1, 1986.3, 2245.5],
        "over SR": [4.6, 4.1, 4.1, 2.9, 3.5],
        "Multiverse over SR": [2.4, 1.6, 2.1, 1.7, 1.3],
    },
    index=["AIME25", "AIME24", "HMMT25", "AMC23", "ZebraLogic"],
)
"""arXiv 2512.07461: throughput and its ratio to sequential decoding with SR."""


def differences(frames: Mapping[str, pd.DataFrame]) -> dict[str, Estimate]:
    """Accuracy of `after` minus `before` for each of `COMPARISONS` that there is, sampled and
    greedy."""
    found = {}
    for before, after in _there(COMPARISONS, frames):
        old, new = frames[NAMES[before]], frames[NAMES[after]]
        for label, greedy in decodings(new):
            pair = [decoded(frame, greedy) for frame in (old, new)]
            found[f"{NAMES[after]} − {NAMES[before]}, {label}"] = paired_difference(*pair)
    return found


def _there(pairs: Iterable[Pair], frames: Mapping[str, pd.DataFrame]) -> list[Pair]:
    """The pairs of checkpoints that were both evaluated."""
    return [pair for pair in pairs if all(NAMES[name] in frames for name in pair)]


def changes(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What each stage changed: paired differences on the same problems, `CHANGES` as rows."""
    pairs = _there(CHANGES, frames)
    table = pd.DataFrame(index=pd.Index([CHANGES[pair] for pair in pairs]))
    (sampled, _), (greedy, _) = decodings(frames[NAMES["npr"]])
    for metric, column, decoding in (
        ("avg", "avg", sampled),
        ("avg", "avg", greedy),
        ("format_pass", "valid", sampled),
        ("work", "work", sampled),
        ("span", "span", sampled),
    ):
        shown, cells = QUANTITIES[metric], []
        for pair in pairs:
            old, new = (decoded(frames[NAMES[name]], decoding == greedy) for name in pair)
            cells.append(shown.text(paired_difference(old, new, column)))
        table[shown.difference(decoding)] = cells
    return table


HEADLINE = ("format_pass", "trigger_rate", "branches_per_block", "work", "span", "ideal_speedup")
"""What stands behind the accuracies in the report's first table."""


def headline(ladder: pd.DataFrame) -> pd.DataFrame:
    """The report's first table: a row a checkpoint, cells `67.7 [64.1, 71.2]`.

    Args:
        ladder: what `metrics.ladder` returns; sampled, but for the greedy accuracy. Metrics of
            one's own come last.
    """
    kind = ladder["metric"].str.split("@").str[0]
    own = ladder["metric"][~kind.isin(QUANTITIES)].unique()
    columns = [("avg", *decoding) for decoding in decodings(ladder)]
    columns += [(metric, "", False) for metric in (*HEADLINE, *own)]
    table = pd.DataFrame(index=pd.Index(ladder["checkpoint"].unique()))
    for metric, decoding, greedy in columns:
        chosen = (kind if metric in QUANTITIES else ladder["metric"]) == metric
        rows = ladder[chosen & ((ladder["temperature"] == 0) == greedy)]
        cells = [quantity(metric).text(row) for row in rows.itertuples()]
        table[quantity(metric).title(decoding)] = pd.Series(cells, index=rows["checkpoint"])
    return table.fillna("–")


def estimates_table(estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """Named estimates in points of 100, one a row."""
    cells = {name: interval_text(estimate, 100, 1) for name, estimate in estimates.items()}
    return pd.Series(cells, name="points [95 % interval]").to_frame()


def speed_table(speed: Mapping[str, Any]) -> pd.DataFrame:
    """What `evaluate.speed` measured: a row a way of decoding, seconds and tokens/s."""
    rows = {
        "npr": "NPR, parallel",
        "sr": "SR, sequential",
        "replay_parallel": "NPR's responses again, parallel",
        "replay_sequential": "NPR's responses again, sequential",
    }
    rows = {name: title for name, title in rows.items() if name in speed["latency"]}
    table = pd.DataFrame(index=pd.Index(rows.values()))
    for setting, batch in (("latency", 1), ("throughput", speed["problems"])):
        for unit, digits in (("seconds_per_response", 4), ("tokens_per_second", 0)):
            title = f"{unit.replace('_per_', '/')}, batch {batch}"
            values = [speed[setting][name][unit] for name in rows]
            table[title] = [f"{value:.{digits}f}" for value in values]
    return table


def speedup_table(speed: Mapping[str, Any]) -> pd.DataFrame:
    """Measured speed-ups beside the ideal one, and how much of it was reached."""
    questions = {
        "replay": "the same tokens: sequential time / parallel time",
        "npr_over_sr_time": "against SR: time of a response",
        "npr_over_sr_tokens": "against SR: tokens/s (the paper's measure)",
    }
    questions = {name: q for name, q in questions.items() if name in speed["latency_ratios"]}
    table = pd.DataFrame(index=pd.Index(questions.values()))
    for setting, batch in (("latency", 1), ("throughput", speed["problems"])):
        ratios = [speed[f"{setting}_ratios"][name] for name in questions]
        table[f"batch {batch}"] = [f"{ratio:.2f}×" for ratio in ratios]
    others = ["–"] * (len(questions) - 1)
    table["ideal (work/span)"] = [f"{speed['ideal']:.2f}×", *others]
    reached = efficiency(speed["latency_ratios"]["replay"], speed["ideal"])
    table["reached at batch 1"] = [f"{reached:.0%}", *others]
    return table


def measured(speed: Mapping[str, Any], ratio: str = "replay") -> dict[str, float]:
    """One measured speed-up at both batch sizes, for `viz.speed`."""
    return {
        "batch 1": speed["latency_ratios"][ratio],
        f"batch {speed['problems']}": speed["throughput_ratios"][ratio],
    }


def save_tables(path: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables with their titles, for the run's index."""
    split = {title: json.loads(table.to_json(orient="split")) for title, table in tables.items()}
    write_json(path, split)


def save_metrics(path: Path, **parts: Any) -> None:
    """Write metrics as JSON: frames become lists of records, undefined numbers null."""
    write_json(path, {name: _plain(value) for name, value in parts.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return json.loads(value.to_json(orient="records"))
    if isinstance(value, Estimate):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
