"""Numbers for the eye: the ladder turned round."""

from __future__ import annotations

import pandas as pd

from npr_lib.analysis.quantities import QUANTITIES, quantity
from npr_lib.analysis.reading import decoding


def table(ladder: pd.DataFrame) -> pd.DataFrame:
    """What `metrics.ladder` returns as strings: a row a checkpoint and decoding, a column a metric.

    A cell reads "67.7 [64.1, 71.2]". Shares and accuracies are in %, the rest in their own units;
    undefined values are "–". avg@k keeps its k, so sampled and greedy accuracy are two columns.
    """
    cells = ladder.assign(
        cell=[quantity(row.metric).text(row) for row in ladder.itertuples()],
        decoding=[decoding(temperature) for temperature in ladder["temperature"]],
    )
    rows = cells[["checkpoint", "decoding"]].drop_duplicates().itertuples(index=False, name=None)
    columns = sorted(cells["metric"].unique(), key=_place)
    wide = cells.pivot(index=["checkpoint", "decoding"], columns="metric", values="cell")
    wide = wide.reindex(index=list(rows), columns=columns).fillna("–")
    wide.columns = [f"{name} (%)" if quantity(name).unit == "%" else name for name in columns]
    return wide


def _place(metric: str) -> tuple[int, int]:
    """In the order of `QUANTITIES`, larger k before smaller; one's own last, as they come."""
    name, _, k = metric.partition("@")
    return [*QUANTITIES, name].index(name), -int(k) if k.isdigit() else 0
