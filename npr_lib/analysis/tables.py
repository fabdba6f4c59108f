"""What the notebooks read from a run's folder and put into tables.

Drawing is `npr_lib.viz`, numbers are `metrics`, pages are `npr_lib.workbench.pages`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from npr_lib import WorkbenchError
from npr_lib.analysis.ladder import CHANGES, COMPARISONS, LADDER, NAMES
from npr_lib.analysis.metrics import Estimate, efficiency, paired_difference
from npr_lib.files import write_json
from npr_lib.reasoning.trajectory import Trajectory, from_row, read_rollouts, rollouts_path

PAPER = pd.DataFrame(
    {
        "accuracy, mean of 8 benchmarks (%)": [63.7, 58.2, 59.0, 62.0, 65.0],
        "parallel trigger rate (%)": [None, None, None, None, 100.0],
    },
    index=["Qwen3-4B-Instruct", "SR-Beta", "NPR-Beta", "SR", "NPR"],
)
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


def read_log(run_dir: Path, name: str) -> pd.DataFrame:
    """The training log of a checkpoint, one row a logged step."""
    return pd.read_json(Path(run_dir) / name / "log.jsonl", lines=True)


def read_evaluations(run_dir: Path, names: Sequence[str] = LADDER) -> dict[str, pd.DataFrame]:
    """The paper's name of each checkpoint -> its evaluation rollouts, in the ladder's order."""
    return {NAMES[name]: read_rollouts(rollouts_path(run_dir, name)) for name in names}


def read_responses(
    run_dir: Path, pattern: str = "rollouts/eval_*.parquet", where: str = ""
) -> pd.DataFrame:
    """Rollouts of every file that matches, in the ladder's order; the file names a missing stage.

    Args:
        pattern: files in the run's folder.
        where: which rows, in the language of `DataFrame.query`; empty: all.

    Raises:
        WorkbenchError: no such file, or `where` can't be read or leaves no row.
    """
    order = {f"eval_{name}": i for i, name in enumerate(LADDER)}
    paths = sorted(Path(run_dir).glob(pattern), key=lambda p: (order.get(p.stem, 99), p.name))
    if not paths:
        raise WorkbenchError(f"no file {pattern} in {run_dir}")
    frames = [read_rollouts(path) for path in paths]
    named = [
        frame if "stage" in frame else frame.assign(stage=path.stem)
        for frame, path in zip(frames, paths, strict=True)
    ]
    frame = pd.concat(named, ignore_index=True)
    try:
        frame = frame.query(where) if where else frame
    except (KeyError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise WorkbenchError(f"{where!r} does not choose rows: {error}") from error
    if frame.empty:
        raise WorkbenchError(f"no response in {pattern}" + (f" where {where}" if where else ""))
    return frame


def read_tokenizer(run_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the run's last checkpoint; those before know no token that it does not."""
    made = [name for name in LADDER if (Path(run_dir) / name / "tokenizer_config.json").exists()]
    if not made:
        raise WorkbenchError(f"no checkpoint in {run_dir}")
    return AutoTokenizer.from_pretrained(Path(run_dir) / made[-1])


DECODINGS = (("T = 1", False), ("greedy", True))
"""What a decoding is called, and whether it is greedy."""


def decoded(frame: pd.DataFrame, greedy: bool) -> pd.DataFrame:
    """The rows that were decoded greedily (T = 0), or the others."""
    return frame[(frame["temperature"] == 0) == greedy]


def sampled(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that were sampled (T > 0), without the greedy ones."""
    return decoded(frame, greedy=False)


def differences(frames: Mapping[str, pd.DataFrame]) -> dict[str, Estimate]:
    """Accuracy of `after` minus `before` for each of `COMPARISONS`, T = 1 and greedy."""
    found = {}
    for before, after in COMPARISONS:
        old, new = frames[NAMES[before]], frames[NAMES[after]]
        for label, greedy in DECODINGS:
            pair = [decoded(frame, greedy) for frame in (old, new)]
            found[f"{NAMES[after]} − {NAMES[before]}, {label}"] = paired_difference(*pair)
    return found


def changes(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What each stage changed: paired differences on the same problems, `CHANGES` as rows."""
    columns = {
        "accuracy, T = 1 (points)": ("avg", False, 100, 1),
        "accuracy, greedy (points)": ("avg", True, 100, 1),
        "format pass, T = 1 (points)": ("valid", False, 100, 1),
        "work, T = 1 (tokens)": ("work", False, 1, 1),
        "span, T = 1 (tokens)": ("span", False, 1, 1),
    }
    table = pd.DataFrame(index=pd.Index(CHANGES.values()))
    for title, (metric, greedy, scale, digits) in columns.items():
        cells = []
        for pair in CHANGES:
            sides = [decoded(frames[NAMES[name]], greedy) for name in pair]
            cells.append(interval_text(paired_difference(*sides, metric), scale, digits))
        table[title] = cells
    return table


def headline(ladder: pd.DataFrame) -> pd.DataFrame:
    """The report's first table: a row a checkpoint, cells `67.7 [64.1, 71.2]`.

    Args:
        ladder: what `metrics.ladder` returns; T = 1 for all but the greedy accuracy.
    """
    kind = ladder["metric"].str.split("@").str[0]
    greedy = ladder["temperature"] == 0
    columns = {
        "accuracy, T = 1 (%)": ("avg", ~greedy, 100, 1),
        "accuracy, greedy (%)": ("avg", greedy, 100, 1),
        "format pass (%)": ("format_pass", ~greedy, 100, 1),
        "parallel trigger rate (%)": ("trigger_rate", ~greedy, 100, 1),
        "branches a block": ("branches_per_block", ~greedy, 1, 2),
        "work": ("work", ~greedy, 1, 1),
        "span": ("span", ~greedy, 1, 1),
        "work/span": ("ideal_speedup", ~greedy, 1, 2),
    }
    table = pd.DataFrame(index=pd.Index(ladder["checkpoint"].unique()))
    for title, (metric, rows, scale, digits) in columns.items():
        chosen = ladder[rows & (kind == metric)].set_index("checkpoint")
        cells = [interval_text(row, scale, digits) for row in chosen.itertuples()]
        table[title] = pd.Series(cells, index=chosen.index)
    return table.fillna("–")


def estimates_table(estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """Named estimates in points of 100, one a row."""
    cells = {name: interval_text(estimate, 100, 1) for name, estimate in estimates.items()}
    return pd.Series(cells, name="points [95 % interval]").to_frame()


def interval_text(estimate: Any, scale: float = 1, digits: int = 2) -> str:
    """`value [low, high]`, or a dash when undefined."""
    if pd.isna(estimate.value):
        return "–"
    numbers = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return "{} [{}, {}]".format(*numbers)


def speed_table(speed: Mapping[str, Any]) -> pd.DataFrame:
    """What `evaluate.speed` measured: a row a way of decoding, seconds and tokens/s."""
    rows = {
        "npr": "NPR, parallel",
        "sr": "SR, sequential",
        "replay_parallel": "NPR's responses again, parallel",
        "replay_sequential": "NPR's responses again, sequential",
    }
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
    table = pd.DataFrame(index=pd.Index(questions.values()))
    for setting, batch in (("latency", 1), ("throughput", speed["problems"])):
        ratios = [speed[f"{setting}_ratios"][name] for name in questions]
        table[f"batch {batch}"] = [f"{ratio:.2f}×" for ratio in ratios]
    table["ideal (work/span)"] = [f"{speed['ideal']:.2f}×", "–", "–"]
    reached = efficiency(speed["latency_ratios"]["replay"], speed["ideal"])
    table["reached at batch 1"] = [f"{reached:.0%}", "–", "–"]
    return table


def measured(speed: Mapping[str, Any], ratio: str = "replay") -> dict[str, float]:
    """One measured speed-up at both batch sizes, for `viz.speed`."""
    return {
        "batch 1": speed["latency_ratios"][ratio],
        f"batch {speed['problems']}": speed["throughput_ratios"][ratio],
    }


def examples(frame: pd.DataFrame, count: int = 3) -> list[tuple[Trajectory, pd.Series]]:
    """Responses worth drawing: correct and valid first, each with another shape if possible.

    A shape is the number of branches of every block; wider shapes come first. The choice is a
    function of the frame. Fewer than `count` only if the frame has fewer rows.
    """
    ranked = frame.assign(
        shape=[tuple(int(k) for k in row) for row in frame["num_branches"]],
        good=(frame["valid"] & (frame["accuracy"] == 1)).astype(int),
    )
    ranked["again"] = ranked.sort_values("good", ascending=False).groupby("shape").cumcount()
    ranked["width"] = [max(shape, default=0) for shape in ranked["shape"]]
    best = ranked.sort_values(
        ["triggered", "good", "again", "width"],
        ascending=[False, False, True, False],
        kind="stable",
    )
    return [(from_row(row), row) for _, row in best.head(count).iterrows()]


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
