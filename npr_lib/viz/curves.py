"""Training curves: one small panel a quantity, a light smoothing over the raw values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from npr_lib.analysis.quantities import logged
from npr_lib.viz import theme

ACROSS = 3
PANEL = 190  # px
NO_PANELS = {
    "height": 90,
    "margin": {"t": 78, "b": 0},
    "xaxis": {"visible": False},
    "yaxis": {"visible": False},
}


def curves(
    log: pd.DataFrame | Mapping[str, pd.DataFrame], columns: Sequence[str], title: str
) -> go.Figure:
    """Quantities of a training log against the optimizer step, a panel each.

    Args:
        log: the lines of a log.jsonl with a column "step"; or several runs by name.
        columns: what to show. A line of the log that lacks a quantity is skipped for it.

    Faint: as logged. Strong: the centred mean over about a tenth of the steps, whose last value is
    written at its end. An empty log is of a model that was not trained, such as an adopted seed: it
    has no line, and where there are only such, the figure says so in place of panels.

    Raises:
        ValueError: no log has one of the columns.
    """
    given = {"": log} if isinstance(log, pd.DataFrame) else log
    runs = {name: run for name, run in given.items() if len(run)}
    if given and not runs:
        return theme.style(go.Figure(), title, "not trained: the log is empty", **NO_PANELS)
    _check(runs, columns)
    across = min(ACROSS, len(columns))
    rows = -(-len(columns) // across)
    figure = make_subplots(
        rows=rows,
        cols=across,
        horizontal_spacing=0.09,
        vertical_spacing=0.24 / rows,
        subplot_titles=[_panel_title(column) for column in columns],
    )
    named: set[str] = set()
    for i, column in enumerate(columns):
        place = {"row": i // across + 1, "col": i % across + 1}
        for trace in _panel(runs, column):
            first = bool(trace.name) and trace.name not in named
            named |= {trace.name} if first else set()
            figure.add_trace(trace.update(showlegend=first), **place)
        if _is_share(column):
            figure.update_yaxes(range=[-0.03, 1.06], tickformat=".0%", **place)
        last_of_column = i + across >= len(columns)
        figure.update_xaxes(title="optimizer step" if last_of_column else "", **place)
    return _finish(figure, runs, title, rows)


def _check(runs: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> None:
    known = sorted({name for run in runs.values() for name in run.columns})
    if not columns or not set(columns) <= set(known):
        raise ValueError(f"columns {sorted(set(columns) - set(known))} are in no log, only {known}")
    without = [name for name, run in runs.items() if "step" not in run.columns]
    if without:
        raise ValueError(f"logs without the column 'step': {without}")


def _finish(figure: go.Figure, runs: Mapping, title: str, rows: int) -> go.Figure:
    theme.style(
        figure,
        title,
        "faint: as logged · strong: smoothed over a tenth of the steps",
        height=PANEL * rows + 130,
        margin={"l": 12, "r": 44, "t": 104, "b": 48},
        hovermode="closest",
        showlegend=len(runs) > 1,
    )
    theme.headings_left(figure)
    theme.legend_below_title(figure)
    last = max(run["step"].max() for run in runs.values())
    figure.update_xaxes(showgrid=False, range=[0, 1.03 * last])
    figure.update_yaxes(nticks=5)
    return figure


def _is_share(column: str) -> bool:
    return logged(column).unit == "%"


def _panel_title(column: str) -> str:
    shown = logged(column)
    unit = f" ({shown.unit})" if shown.unit not in ("", "%") else ""
    return f"<b>{theme.escape(shown.heading)}</b>{unit}"


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over about a tenth of the values (fewer at the ends), at least three."""
    window = max(3, len(values) // 10) | 1
    return pd.Series(values).rolling(window, center=True, min_periods=1).mean().to_numpy()


def _panel(runs: Mapping[str, pd.DataFrame], column: str) -> list[go.Scatter]:
    """The lines of one panel: of each run the raw values, and the smoothed ones with their end."""
    lines = {}
    for name, run in runs.items():
        shown = run[["step", column]].dropna() if column in run.columns else run.iloc[:0]
        if len(shown):
            lines[name] = shown["step"].to_numpy(), shown[column].to_numpy(dtype=float)
    ends = {name: smooth(values)[-1] for name, (_, values) in lines.items()}
    traces = []
    for color, name in zip(theme.SERIES, runs, strict=False):
        if name in lines:
            steps, values = lines[name]
            # The outer ones of several labels give way, lest they cover one another.
            side = "middle"
            if len(ends) > 1:
                low, high = (end(ends, key=ends.__getitem__) for end in (min, max))
                side = {low: "bottom", high: "top"}.get(name, "middle")
            traces += [
                _raw(steps, values, color),
                _strong(steps, values, color, column, name, side),
            ]
    return traces


def _raw(steps: np.ndarray, values: np.ndarray, color: str) -> go.Scatter:
    line = {"color": theme.fade(color, 0.32), "width": 1.2}
    return go.Scatter(x=steps, y=values, mode="lines", line=line, hoverinfo="skip")


def _strong(
    steps: np.ndarray, values: np.ndarray, color: str, column: str, name: str, side: str
) -> go.Scatter:
    smoothed, share = smooth(values), _is_share(column)
    last = smoothed[-1]
    text = f"{last:.0%}" if share else theme.number(last, ".2g" if abs(last) < 1 else ".3g")
    before = len(steps) - 1
    return go.Scatter(
        x=steps,
        y=smoothed,
        mode="lines+markers+text",
        name=theme.escape(name),
        legendgroup=theme.escape(name),
        line={"color": color, "width": 2.4},
        marker={"size": [0] * before + [7], "color": color, "line": {"width": 0}},
        text=[""] * before + [text],
        textposition=f"{side} right",
        textfont={"size": 12, "color": theme.INK},
        cliponaxis=False,
        hovertemplate=f"{theme.escape(name)} step %{{x}}: %{{y:{'.1%' if share else '.4g'}}}"
        "<extra></extra>",
    )
