"""Whether the branching policy follows the problem: as wide and as deep as its parts allow?"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from npr_lib.analysis.metrics import interval
from npr_lib.viz import theme


def adaptivity(frames: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Width and depth of the responses against what their problems allow.

    Left: branches of the first block against the number of independent parts. Right: blocks against
    the longest chain of parts that need each other. The dotted line is one branch an independent
    part, and one block a link of the chain. Means with 95 % intervals over problems.

    Args:
        frames: checkpoint -> rollouts as `decomposition.divisions` returns them.
    """
    figure = make_subplots(cols=2, horizontal_spacing=0.12)
    for i, (name, frame) in enumerate(frames.items()):
        # a response without a block has no branch and no depth: it counts as 0
        first = [blocks[0][1] if blocks else 0 for blocks in frame["blocks"]]
        depth = [len(blocks) for blocks in frame["blocks"]]
        shift = 0.06 * (i - (len(frames) - 1) / 2)
        for column, (x, y) in enumerate((("independent", first), ("depth", depth)), start=1):
            points = _points(frame.assign(y=y), x, name, i, shift)
            figure.add_trace(points.update(showlegend=column == 1), row=1, col=column)
    for column, name in ((1, "independent"), (2, "depth")):
        values = sorted({int(x) for frame in frames.values() for x in frame[name]})
        line = {"color": theme.INK, "width": 1.2, "dash": "dot"}
        ends = [values[0], values[-1]]
        guide = go.Scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip")
        figure.add_trace(guide.update(showlegend=False), row=1, col=column)
        figure.update_xaxes(tickvals=values, row=1, col=column)
    theme.style(
        figure,
        "Branching against what the problems allow",
        "dotted: a branch for each independent part, a block for each link of the longest chain",
        height=380,
        margin={"l": 56, "r": 16, "t": 112, "b": 56},
    )
    theme.legend_below_title(figure)
    figure.update_xaxes(title="independent parts of the problem", row=1, col=1)
    figure.update_xaxes(title="longest chain of parts", row=1, col=2)
    figure.update_yaxes(title="branches of the first block", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="blocks", rangemode="tozero", row=1, col=2)
    return figure


def _points(frame: pd.DataFrame, x: str, name: str, series: int, shift: float) -> go.Scatter:
    rows = []
    for value, group in frame.groupby(x):
        sums = group.groupby("problem_id")["y"].agg(["sum", "size"])
        rows.append((value, *interval(sums["sum"].to_numpy(), sums["size"].to_numpy()), len(group)))
    table = pd.DataFrame(rows, columns=["x", "mean", "low", "high", "responses"])
    color = theme.SERIES[series % len(theme.SERIES)]
    return go.Scatter(
        x=table["x"] + shift,
        y=table["mean"],
        error_y=theme.whiskers(table["low"], table["mean"], table["high"], color),
        mode="lines+markers",
        name=theme.escape(name),
        legendgroup=theme.escape(name),
        line={"color": color, "width": 1.6},
        marker={"size": 9, "symbol": theme.SYMBOLS[series % len(theme.SYMBOLS)], "color": color},
        hovertext=[
            f"{theme.escape(name)}: {row.mean:.2f} [{row.low:.2f}, {row.high:.2f}], "
            f"{row.responses} responses"
            for row in table.itertuples()
        ],
        hoverinfo="text",
    )
