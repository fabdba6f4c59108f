"""The sections of the benchmark: what its tables make of the rows that were measured.

A row is one measurement: section, model, arm, the sizes that it was taken at (`branches`, `length`,
...), round, value, unit. A quantity is an expression over the arms and sizes of one round, so that
ratios are taken within a round; a cell is its median over the rounds, with [smallest, largest].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

Row = dict[str, Any]
MEASURED = ("section", "arm", "round", "value", "unit")  # columns that are no size
SLOTS = ("peak", "distinct", "copies", "copies / peak", "again", "recomputed", "preempted")
STEP = "(parallel - stub) / steps"  # s a decode step


@dataclass(frozen=True, slots=True)
class Section:
    """A table: `by` are the sizes that it shows, `quantities` headings and their expressions. With
    `slope_over`, an arm is the slope of its values over that size."""

    title: str
    by: tuple[str, ...]
    quantities: Mapping[str, str]
    slope_over: str | None = None


SECTIONS = {
    "decoding": Section(
        "The same trajectories in parallel and one token after the other, one in flight",
        ("branches", "length"),
        {
            "ideal": "work / span",
            "speed-up": "sequential / parallel",
            "cap": "branches * one_row / k_rows",  # what the hardware allows
            "efficiency": "sequential / parallel / (work / span)",
            "step / bare step": f"{STEP} / k_rows",
            "step ms": f"1e3 * {STEP}",
        },
    ),
    "throughput": Section(
        "Tokens/s of sequential generation by responses in flight",
        ("in flight", "tokens"),
        {
            "engine": "tokens / engine",
            "generate": "tokens / generate",
            "generate_batch": "tokens / generate_batch",
            "/ generate": "generate / engine",
            "/ generate_batch": "generate_batch / engine",
            "same tokens (%)": "100 * same",
        },
    ),
    "slots": Section(
        "KV slots: used, distinct tokens, independent copies; tokens forwarded again",
        ("case",),
        {name: name for name in SLOTS},
    ),
    "layout": Section(
        "Construction of a layout",
        ("tokens",),
        {
            "ms": "1e3 * time",
            "us/token": "1e6 * time / tokens",
            "MB": "memory / 1e6",
            "bytes/token": "memory / tokens",
            "dense mask MB": "tokens ** 2 / 1e6",
        },
    ),
    "marginal": Section(
        "Milliseconds a decode step costs more",
        ("with more",),
        {"engine": "1e3 * engine", "bare forward": "1e3 * bare"},
        slope_over="count",
    ),
    "training": Section(
        "A training step on a group: packed, each response alone, and by TRL",
        ("prompt", "response", "group", "tokens"),
        {
            "packed s": "packed",
            "packed / alone": "packed / alone",
            "packed / TRL": "packed / trl",
            "packed MB": "packed_peak / 1e6",
            "alone MB": "alone_peak / 1e6",
            "TRL MB": "trl_peak / 1e6",
        },
    ),
}


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as they were measured; a size that a section does not have is missing there."""
    return pd.DataFrame(rows).convert_dtypes(convert_floating=False)


def split(measured: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Section -> its rows, with the columns that it has."""
    found = dict(list(measured.groupby("section")))
    return {name: found[name].dropna(axis=1, how="all") for name in SECTIONS if name in found}


def summary(rows: pd.DataFrame, quantities: Mapping[str, str]) -> pd.DataFrame:
    """Median, min and max over the rounds, a row a quantity and what it was measured at."""
    sizes = [c for c in rows if c not in MEASURED]
    arms = _wide(rows, [*sizes, "round"], "arm", "value")
    values = [
        arms[sizes].assign(quantity=name, value=arms.eval(expression))
        for name, expression in quantities.items()
    ]
    groups = pd.concat(values).groupby([*sizes, "quantity"], sort=False)["value"]
    return groups.agg(["median", "min", "max"]).reset_index()


def _wide(rows: pd.DataFrame, by: list[str], columns: str, values: str) -> pd.DataFrame:
    """A pivot whose lines stand in the order of the rows (pandas' own sorts them)."""
    wide = rows.pivot(index=by, columns=columns, values=values).reset_index()
    return rows[by].drop_duplicates().merge(wide.rename_axis(columns=None), on=by, how="left")


def slopes(rows: pd.DataFrame, over: str) -> pd.DataFrame:
    """The slope of the values over a size (least squares) in the values' place."""
    groups = rows.groupby([c for c in rows if c not in (over, "value")], sort=False)
    fitted = groups[[over, "value"]].apply(lambda g: _slope(*g.to_numpy(float).T))
    return fitted.reset_index(name="value")


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    return np.polyfit(x, y, 1)[0]


def table(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a section as text, "median [min, max]" where several rounds measured."""
    section = SECTIONS[name]
    if section.slope_over:
        rows = slopes(rows, section.slope_over)
    found = summary(rows, section.quantities)
    found["cell"] = [cell(*row) for row in found[["median", "min", "max"]].to_numpy(float)]
    by = [c for c in ("model", *section.by) if c in found]
    return _wide(found, by, "quantity", "cell")[[*by, *section.quantities]]


def cell(median: float, low: float, high: float) -> str:
    """ "1.87 [1.83, 1.90]": three digits of the median; "73" where nothing varies."""
    if low == high and median.is_integer():
        return f"{median:.0f}"
    digits = min(max(2 - math.floor(math.log10(abs(median) or 1)), 0), 3)
    middle, *ends = (f"{x:.{digits}f}" for x in (median, low, high))
    return f"{middle} [{', '.join(ends)}]" if low < high else middle
