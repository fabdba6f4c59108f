"""The paper's three tables, ours beside the paper's rows, from what `benchmark.evaluate` found.

A row of ours is `value [low, high]` with a 95 % interval; the paper gives none.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from npr_lib.analysis import paper
from npr_lib.analysis.bootstrap import Estimate
from npr_lib.analysis.quantities import QUANTITIES, interval_text, quantity
from npr_lib.analysis.tables import PAPER_SPEED
from npr_lib.tasks.benchmarks import BENCHMARKS

MEAN = "mean"
SOURCE = "from"
OURS, PAPER = "here", "paper"


def frame(result: Mapping[str, Any], part: str = "numbers") -> pd.DataFrame:
    """The rows of a part of the result; undefined numbers are nan."""
    rows = pd.DataFrame(result[part])
    return rows.astype(dict.fromkeys(("value", "low", "high"), float)) if len(rows) else rows


def accuracy(result: Mapping[str, Any]) -> pd.DataFrame:
    """Table 1: accuracy avg@k in %, a row a model (two, where a protocol graded too), a column a
    set and their mean."""
    own, sets = frame(result), result["sets"]
    headings = {name: f"{name} (avg@{one['k']})" for name, one in sets.items()}
    rows = []
    protocol = result["settings"]["protocol"]
    gradings = {"avg": OURS} | ({"avg_protocol": f"{OURS}, {protocol}"} if protocol else {})
    for model, (metric, source) in itertools.product(result["models"], gradings.items()):
        of = own[own["model"] == model]
        cells = {
            headings[name]: _cell(of[of["set"] == name], f"{metric}@{one['k']}")
            for name, one in sets.items()
        }
        cells[MEAN] = _cell(of[of["set"] == MEAN], metric)
        rows.append({"model": model, SOURCE: source, **cells})
    rows += _paper_rows(paper.ACCURACY, sets, headings)
    return pd.DataFrame(rows).fillna("–").set_index(["model", SOURCE])


def _paper_rows(
    table: pd.DataFrame, sets: Mapping[str, Any], headings: Mapping[str, str]
) -> list[dict[str, str]]:
    """The paper's rows in our columns; its mean where its eight sets, and no others, are here."""
    columns = {one["paper"]: headings[name] for name, one in sets.items() if one["paper"]}
    if not columns:
        return []
    if MEAN in table and set(paper.COLUMNS) == set(columns) and len(sets) == len(columns):
        columns = {**columns, MEAN: MEAN}
    return [
        {"model": name, SOURCE: PAPER}
        | {heading: f"{row[column]:.1f}" for column, heading in columns.items() if column in row}
        for name, row in table.iterrows()
    ]


def _cell(rows: pd.DataFrame, metric: str) -> str:
    """A metric of one model on one set as text, a dash where it is missing."""
    found = rows[rows["metric"] == metric]
    return "–" if found.empty else quantity(metric).text(found.iloc[0])


def sampling(result: Mapping[str, Any]) -> pd.DataFrame:
    """best@k over k and maj@k in %, of sets with several samples; what was cut off, and what could
    not be compared."""
    own = frame(result)
    rows = []
    for model, name in _pairs(result):
        k, of = result["sets"][name]["k"], own[(own["model"] == model) & (own["set"] == name)]
        best = sorted(int(m.split("@")[1]) for m in of["metric"] if m.startswith("best@"))
        cells = {f"best@{i}": _cell(of, f"best@{i}") for i in best}
        cells["maj@k"] = _cell(of, f"maj@{k}")
        for metric in ("cut_off", "undecided"):
            cells[QUANTITIES[metric].title()] = _cell(of, metric)
        rows.append({"model": model, "set": name, "k": k, **cells})
    return pd.DataFrame(rows).fillna("–").set_index(["model", "set"])


PARALLEL = (
    *("trigger_rate", "format_pass", "wide_block_share", "branches_per_block", "balance"),
    *("work", "span", "ideal_speedup"),
)


def parallel(result: Mapping[str, Any]) -> pd.DataFrame:
    """Table 2: how often and how widely responses branch, and what that is worth at best."""
    own = frame(result)
    rows = []
    for model, name in _pairs(result):
        of = own[(own["model"] == model) & (own["set"] == name)]
        cells = {QUANTITIES[metric].title(): _cell(of, metric) for metric in PARALLEL}
        rows.append({"model": model, "set": name, SOURCE: OURS, **cells})
    heading = QUANTITIES["trigger_rate"].title()
    rows += [
        {"model": model, "set": name, SOURCE: PAPER, heading: f"{row[one['paper']]:.1f}"}
        for model, row in paper.TRIGGER_RATE.iterrows()
        for name, one in result["sets"].items()
        if one["paper"]
    ]
    return pd.DataFrame(rows).fillna("–").set_index(["model", "set", SOURCE])


SPEED = {
    "parallel_tokens_per_second": "tokens/s, parallel",
    "sequential_tokens_per_second": "tokens/s, the same tokens in sequence",
    "parallel_seconds": "seconds a response, parallel",
    "sequential_seconds": "seconds a response, in sequence",
    "replay_speedup": "speed-up, one in flight",
    "replay_batch_speedup": "speed-up, all in flight",
    "timed_ideal": "ideal (work/span)",
}


def speed(result: Mapping[str, Any]) -> pd.DataFrame:
    """Table 3: tokens/s and latency, in parallel and the same tokens in sequence."""
    own = frame(result)
    rows = []
    for model, name in _pairs(result):
        of = own[(own["model"] == model) & (own["set"] == name)].set_index("metric")
        if not any(metric in of.index for metric in SPEED):
            continue
        cells = {
            heading: interval_text(of.loc[metric], digits=3 if "seconds" in heading else 2)
            if metric in of.index
            else "–"
            for metric, heading in SPEED.items()
        }
        rows.append({"model": model, "set": name, SOURCE: OURS, **cells})
    if not rows:
        return pd.DataFrame()
    for name, one in result["sets"].items():
        if one["paper"] in PAPER_SPEED.index:
            tokens = f"{PAPER_SPEED.loc[one['paper'], 'NPR, tokens/s']:.1f}"
            paper_row = {"model": "NPR", "set": name, SOURCE: PAPER}
            rows.append({**paper_row, SPEED["parallel_tokens_per_second"]: tokens})
    return pd.DataFrame(rows).fillna("–").set_index(["model", "set", SOURCE])


def against(result: Mapping[str, Any]) -> pd.DataFrame:
    """Table 3, second half: each model's speed over another's, on the same problems."""
    ratios = frame(result, "speed_ratios")
    if ratios.empty:
        return pd.DataFrame()
    headings = {
        "tokens_per_second_ratio": "tokens/s (the paper's measure)",
        "time_ratio": "time of a response",
    }
    rows = [
        {"models": f"{after} over {before}", "set": name, SOURCE: OURS}
        | {headings[row.metric]: f"{interval_text(row)}" for row in group.itertuples()}
        for (before, after, name), group in ratios.groupby(["before", "after", "set"], sort=False)
    ]
    rows += [
        {"models": models, "set": name, SOURCE: PAPER}
        | {headings["tokens_per_second_ratio"]: f"{PAPER_SPEED.loc[one['paper'], column]:.1f}"}
        for name, one in result["sets"].items()
        if one["paper"] in PAPER_SPEED.index
        for models, column in (
            ("NPR over SR", "over SR"),
            ("Multiverse over SR", "Multiverse over SR"),
        )
    ]
    return pd.DataFrame(rows).fillna("–").set_index(["models", "set", SOURCE])


def differences(result: Mapping[str, Any]) -> dict[str, Estimate]:
    """What each model's accuracy is above another's, on the same problems."""
    rows = frame(result, "differences")
    return {
        f"{row.after} − {row.before}, {row.set}": Estimate(row.value, row.low, row.high)
        for row in rows.itertuples()
    }


def comparability(result: Mapping[str, Any]) -> list[str]:
    """What stands between our numbers and the paper's, for this very evaluation."""
    settings, sets = result["settings"], result["sets"]
    sampling = settings["sampling"]
    notes = []
    own = (sampling["temperature"], sampling["top_p"], sampling["max_tokens"])
    if own != (1.0, 0.7, 40_000):
        notes.append(
            "The paper samples at T = 1, top-p 0.7, up to 40,000 tokens; here it was T = {:g}, "
            "top-p {:g}, up to {:,} tokens.".format(*own)
        )
    cut = [
        f"{n} ({s['problems']} of {s['whole']})"
        for n, s in sets.items()
        if s["problems"] < s["whole"]
    ]
    if cut:
        notes.append(f"Not the whole set: {', '.join(cut)}.")
    foreign = [name for name, one in sets.items() if not one["paper"]]
    if foreign:
        notes.append(f"Not in the paper, and so in no row of it: {', '.join(foreign)}.")
    k_of_paper = {one.paper: one.k for one in BENCHMARKS}
    other_k = [
        f"{name} (k = {one['k']}, there {k_of_paper[one['paper']]})"
        for name, one in sets.items()
        if one["paper"] and one["k"] != k_of_paper[one["paper"]]
    ]
    if other_k:
        notes.append(
            "Another k than the paper's changes the noise of avg@k, not what it estimates: "
            f"{', '.join(other_k)}."
        )
    for row in result["not_timed"]:
        notes.append(
            "{responses} responses of {model} on {set} could not be timed: in sequence they don't "
            "fit the model's context.".format(**row)
        )
    if settings["protocol"]:
        notes.append(f"Rows that name {settings['protocol']} grade the same responses by it.")
    prompts = sorted({json.dumps(one["prompt"]) for one in result["models"].values()})
    return [*notes, f"Prompts are ours: {'; '.join(prompts)}.", *ALWAYS]


ALWAYS = (
    "The paper's prompts aren't told, nor the copies of the sets that it used.",
    "Answers are graded by the set's verifier, which is stricter than the paper's release: an "
    "answer must stand in a box.",
    "Shares of responses that branched mean the same as the paper's trigger rate. They say nothing "
    "of quality: look at the format pass and the accuracy beside them.",
    "Tokens/s depend on the machine, and are not comparable. The ratio to another model is, as far "
    "as both decode with engines of a kind; the speed-up on the same tokens is what branching "
    "itself gains, and the paper has no number like it.",
)
"""What stands between our numbers and the paper's, whatever is evaluated."""


def _pairs(result: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    return [(model, name) for model in result["models"] for name in result["sets"]]
