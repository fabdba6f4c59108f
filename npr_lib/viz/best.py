"""What more samples are worth: best@k over k."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from npr_lib.viz import theme


def best_curves(numbers: pd.DataFrame) -> go.Figure:
    """best@k against k, a panel a set, a line a model, with 95 % intervals.

    Args:
        numbers: rows of `model`, `set`, `metric`, `value`, `low`, `high`; those called `best@k` are
            drawn.

    Raises:
        ValueError: there is no set with several samples.
    """
    best = numbers[numbers["metric"].str.startswith("best@")]
    best = best.assign(k=best["metric"].str.split("@").str[1].astype(int)).sort_values("k")
    counts = best.groupby("set", sort=False)["k"].max()
    names = list(counts[counts > 1].index)
    if not names:
        raise ValueError("best@k has no curve: no set has more than one sample a problem")
    figure = make_subplots(
        cols=len(names),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[f"<b>{theme.escape(name)}</b>" for name in names],
    )
    for i, (model, own) in enumerate(best.groupby("model", sort=False)):
        for col, name in enumerate(names, start=1):
            figure.add_trace(
                _line(own[own["set"] == name], str(model), i, col == 1), row=1, col=col
            )
    headings = figure.layout.annotations
    theme.style(
        figure,
        "Best of k",
        "share of problems with a right answer among k samples; bars: 95 % bootstrap over problems",
        height=360,
        margin={"l": 12, "r": 16, "t": 112, "b": 48},
    )
    for heading in headings:
        heading.update(font={"size": 13})
    theme.legend_below_title(figure)
    figure.update_xaxes(title="k", type="log", tickvals=[1, 2, 4, 8, 16, 32, 64])
    figure.update_yaxes(range=[-4, 104])
    figure.update_yaxes(title="best@k (%)", col=1)
    return figure


def _line(rows: pd.DataFrame, model: str, number: int, legend: bool) -> go.Scatter:
    value, low, high = (100 * rows[column] for column in ("value", "low", "high"))
    return go.Scatter(
        x=rows["k"],
        y=value,
        error_y={"array": high - value, "arrayminus": value - low, "width": 0},
        name=theme.escape(model),
        legendgroup=model,
        showlegend=legend,
        mode="lines+markers",
        line={"color": theme.SERIES[number % len(theme.SERIES)]},
    )
