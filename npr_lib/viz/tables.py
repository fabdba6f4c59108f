"""Numbers for the eye: the ladder turned round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

SHARES = ("avg", "best", "maj", "format_pass", "trigger_rate", "wide_block_share")


def table(ladder: pd.DataFrame) -> pd.DataFrame:
    """What `metrics.ladder` returns as strings: a row a checkpoint and decoding, a column a metric.

    A cell reads "67.7 [64.1, 71.2]". Shares and accuracies are in %, the rest in their own units;
    undefined values are "–". avg@k keeps its k, so sampled and greedy accuracy are two columns.
    """
    cells = ladder.assign(
        cell=[_cell(row) for row in ladder.itertuples()],
        decoding=["greedy" if t == 0 else f"T = {t:g}" for t in ladder["temperature"]],
        metric=[f"{name} (%)" if is_share(name) else name for name in ladder["metric"]],
    )
    rows = cells[["checkpoint", "decoding"]].drop_duplicates().itertuples(index=False, name=None)
    columns = sorted(cells["metric"].unique(), key=_place)
    wide = cells.pivot(index=["checkpoint", "decoding"], columns="metric", values="cell")
    wide = wide.reindex(index=list(rows), columns=columns).fillna("–")
    return wide.rename_axis(columns=None)


def _place(metric: str) -> tuple[int, int]:
    """Shares first in the order above, larger k before smaller; the rest as they come."""
    name, _, k = metric.removesuffix(" (%)").partition("@")
    return SHARES.index(name) if name in SHARES else len(SHARES), -int(k or 0)


def is_share(metric: str) -> bool:
    """Whether a metric's values are shares in [0, 1], shown in %."""
    return metric.split("@")[0] in SHARES


def _cell(row: Any) -> str:
    if np.isnan(row.value):
        return "–"
    scale, digits = (100, 1) if is_share(row.metric) else (1, 2)
    value, low, high = (f"{scale * x:.{digits}f}" for x in (row.value, row.low, row.high))
    return f"{value} [{low}, {high}]"
