"""Distributions over the responses of checkpoints: lengths, and branches of their blocks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from npr_lib.viz import theme


def lengths(frames: Mapping[str, pd.DataFrame], column: str = "work") -> go.Figure:
    """Histogram of a length by checkpoint, one below the other on one axis, medians marked.

    Args:
        frames: checkpoint -> rollouts.
        column: "work", "span" or another column of token counts.
    """
    values = {name: df[column].to_numpy(dtype=float) for name, df in frames.items()}
    pooled = np.concatenate(list(values.values()))
    bins = _bins(pooled)
    figure = make_subplots(rows=len(values), shared_xaxes=True, vertical_spacing=0.06)
    for row, (name, x) in enumerate(values.items(), start=1):
        color = theme.SERIES[(row - 1) % len(theme.SERIES)]
        bars = _histogram(x, bins, color)
        figure.add_trace(bars, row=row, col=1)
        # room above the bars for the labels
        figure.update_yaxes(range=[0, 1.35 * max(bars.y)], row=row, col=1)
        median = float(np.median(x))
        figure.add_vline(x=median, line={"color": theme.INK, "width": 1.4}, row=row, col=1)
        axis = "" if row == 1 else str(row)
        label = {"y": 1, "yref": f"y{axis} domain", "yanchor": "top", "showarrow": False}
        figure.add_annotation(
            **label,
            x=median,
            xref=f"x{axis}",
            text=f"median {median:g}",
            xanchor="left",
            xshift=5,
        )
        figure.add_annotation(
            **label, x=1, xref="paper", text=f"<b>{theme.escape(name)}</b>", xanchor="right"
        )
    theme.style(
        figure,
        f"{column.capitalize()} of a response by checkpoint",
        "share of responses by length",
        height=130 * len(values) + 120,
        showlegend=False,
    )
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(title=f"{column} (tokens)", row=len(values), col=1)
    figure.update_yaxes(title="%", nticks=4)
    return figure


def _histogram(values: np.ndarray, bins: np.ndarray, color: str) -> go.Bar:
    counts, edges = np.histogram(values, bins)
    return go.Bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=100 * counts / len(values),
        width=np.diff(edges) * 0.92,
        marker={"color": color, "line": {"width": 0}},
        customdata=np.stack([edges[:-1] + 0.5, edges[1:] - 0.5], axis=1),
        hovertemplate="%{customdata[0]:.0f}–%{customdata[1]:.0f} tokens: %{y:.1f} %<extra></extra>",
    )


def _bins(values: np.ndarray) -> np.ndarray:
    """At most 40 bins of a whole number of tokens that hold every value."""
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low + 1) // 40))
    return np.arange(low, high + width + 1, width) - 0.5


def branches(frames: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Shares of executed blocks by their number of branches, a bar a checkpoint.

    Args:
        frames: checkpoint -> rollouts with the column "num_branches".
    """
    counts = {
        name: np.bincount([int(k) for row in df["num_branches"] for k in row], minlength=2)
        for name, df in frames.items()
    }
    most = max(len(count) for count in counts.values()) - 1
    figure = go.Figure([_layer(k, most, list(counts.values())) for k in range(1, most + 1)])
    theme.style(
        figure,
        "Width: branches of an executed block by checkpoint",
        "share of blocks by number of branches",
        height=46 * len(counts) + 150,
        margin={"l": 12, "r": 124, "t": 96, "b": 48},
        barmode="stack",
        legend={"title": {"text": "branches"}, "traceorder": "normal"},
    )
    for row, count in enumerate(counts.values()):
        total = int(count.sum())
        theme.beside_row(figure, row, f"{total:,} blocks" if total else "no block")
    figure.update_xaxes(title="share of blocks (%)", range=[0, 100], showgrid=False)
    theme.row_axis(figure, counts)
    return figure


def _layer(k: int, most: int, counts: list[np.ndarray]) -> go.Bar:
    """The share of blocks with k branches in every row, darker with k."""
    color = theme.tint(theme.BLUE, 0.18 + 0.82 * (k - 1) / max(most - 1, 1))
    shares = [_share(count, k) for count in counts]
    return go.Bar(
        orientation="h",
        name=str(k),
        y=list(range(len(counts))),
        x=shares,
        text=[f"{share:.0f} %" if share >= 5 else "" for share in shares],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"color": theme.text_on(color), "size": 12},
        marker={"color": color, "line": {"width": 0}},
        hovertemplate=f"{k} branch{'es' * (k > 1)}: %{{x:.1f}} % of blocks<extra></extra>",
    )


def _share(count: np.ndarray, k: int) -> float:
    """Percent of blocks with k branches; 0 without blocks."""
    return 100 * count[k] / count.sum() if k < len(count) and count.sum() else 0.0
