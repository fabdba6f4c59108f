"""Pictures of a benchmark: the engine beside its peers, medians with ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from npr_lib.viz import theme

PANEL = 330  # px
ARMS = {
    "engine": ("NPR engine", theme.BLUE),
    "generate": ("transformers generate", theme.VERMILLION),
    "generate_batch": ("transformers generate_batch", theme.GREEN),
}
SIDES = {"engine": ("NPR engine", theme.BLUE), "bare": ("bare forward", theme.VERMILLION)}


def benchmark(result: Mapping[str, Any]) -> dict[str, list[go.Figure]]:
    """Part of the benchmark -> its figures, one or two a model.

    Args:
        result: what bench.json holds.
    """
    figures: dict[str, list[go.Figure]] = {}
    for part, rows in result["results"].items():
        table = pd.DataFrame(rows)
        models = [] if table.empty else table.groupby(_models(table), sort=False)
        figures[part] = [draw(own, name) for name, own in models for draw in DRAWN[part]]
    return figures


def _models(table: pd.DataFrame) -> pd.Series:
    """The model of every row; "" where the part is about none."""
    return table["model"] if "model" in table else pd.Series("", table.index)


def speedups(rows: pd.DataFrame, model: str) -> go.Figure:
    """Parallel over sequential decoding by number of branches, a panel a branch length."""
    lengths = list(rows["length"].unique())
    figure = _panels([f"<b>{n} tokens a branch</b>" for n in lengths], share_y=True)
    for col, length in enumerate(lengths, start=1):
        own = rows[rows["length"] == length]
        for key, name, color, dash in (
            ("ideal", "ideal: work / span", theme.INK, "dot"),
            ("cap", "hardware cap: k forwards of 1 row over one of k", theme.VERMILLION, "dash"),
            ("speedup", "measured", theme.BLUE, "solid"),
        ):
            line = _line(own["branches"], own, key, name, color, dash, legend=col == 1)
            figure.add_trace(line, row=1, col=col)
    figure.update_xaxes(title="branches", tickvals=list(rows["branches"].unique()))
    figure.update_yaxes(title="speed-up (×)", rangemode="tozero", col=1)
    return _finish(figure, f"Parallel over sequential decoding, {model}", "one response in flight")


def overhead(rows: pd.DataFrame, model: str) -> go.Figure:
    """A k-branch decode step over a bare forward of k rows, a line a branch length."""
    figure = go.Figure()
    for length, color in zip(rows["length"].unique(), theme.SERIES, strict=False):
        own = rows[rows["length"] == length]
        name = f"{length} tokens a branch"
        figure.add_trace(_line(own["branches"], own, "overhead", name, color))
    figure.add_hline(y=1, line={"color": theme.INK, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="branches", tickvals=list(rows["branches"].unique()))
    figure.update_yaxes(title="decode step / bare forward (×)", rangemode="tozero")
    return _finish(figure, f"Cost of a decode step, {model}", "dotted: a bare forward")


def throughput(rows: pd.DataFrame, model: str) -> go.Figure:
    """Tokens/s against responses in flight, both logarithmic."""
    figure = go.Figure()
    for arm, (name, color) in ARMS.items():
        figure.add_trace(_line(rows["responses"], rows, f"{arm}_tps", name, color))
    figure.update_xaxes(title="responses in flight", type="log", tickvals=list(rows["responses"]))
    figure.update_yaxes(title="tokens/s", type="log")
    return _finish(figure, f"Throughput of sequential generation, {model}", "prefill included")


def slots(rows: pd.DataFrame, model: str) -> go.Figure:
    """Slots used (full) inside those of independent copies (pale)."""
    figure = go.Figure()
    for key, name, color, width in (
        ("copies", "independent copies", theme.fade(theme.BLUE, 0.34), 0.62),
        ("peak", "slots used at the peak", theme.BLUE, 0.3),
    ):
        figure.add_bar(
            orientation="h",
            x=list(rows[key]),
            y=list(range(len(rows))),
            width=width,
            name=name,
            marker={"color": color, "line": {"width": 0}},
            hovertemplate=f"{name}: %{{x:,}}<extra></extra>",
        )
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(title="slots")
    theme.row_axis(figure, rows["case"])
    return _finish(figure, f"KV slots, {model}", "one slot holds one token", 34 * len(rows) + 150)


def layout(rows: pd.DataFrame, _: str) -> go.Figure:
    """Time and memory of building a layout against its tokens, all logarithmic."""
    figure = _panels(["<b>time</b>", "<b>peak memory</b>"])
    for col, (key, title) in enumerate((("ms", "ms"), ("mb", "MB")), start=1):
        line = _line(rows["tokens"], rows, key, title, theme.BLUE, legend=False)
        figure.add_trace(line, row=1, col=col)
        figure.update_yaxes(title=title, type="log", col=col)
    ticks = {"tickvals": list(rows["tokens"]), "ticktext": [f"{n >> 10}k" for n in rows["tokens"]]}
    figure.update_xaxes(title="tokens", type="log", **ticks)
    return _finish(figure, "Construction of a layout", "best time of several")


def marginal(rows: pd.DataFrame, model: str) -> go.Figure:
    """Milliseconds a decode step against branches, responses and prefix: a panel each."""
    more = list(rows["more"])
    titles = [f"<b>one more: {theme.escape(name)}</b>" for name in more]
    figure = _panels(titles)
    for col, row in enumerate(rows.to_dict("records"), start=1):
        for side, (name, color) in SIDES.items():
            points = {"ms": row[f"{side}_ms_at"]}
            line = _line(row["counts"], points, "ms", name, color, legend=col == 1)
            figure.add_trace(line, row=1, col=col)
        figure.update_xaxes(title=_axis(row["more"]), tickvals=row["counts"], row=1, col=col)
    figure.update_yaxes(title="ms a decode step", rangemode="tozero", col=1)
    figure.update_yaxes(rangemode="tozero")
    return _finish(figure, f"What a decode step costs more, {model}", "medians")


def _axis(more: str) -> str:
    return {"branch": "branches", "response": "responses in flight"}.get(more, "tokens of prefix")


DRAWN: dict[str, tuple[Callable[[pd.DataFrame, str], go.Figure], ...]] = {
    "decoding": (speedups, overhead),
    "throughput": (throughput,),
    "slots": (slots,),
    "layout": (layout,),
    "marginal": (marginal,),
}


def _panels(titles: Sequence[str], share_y: bool = False) -> go.Figure:
    return make_subplots(
        cols=len(titles),
        shared_yaxes=share_y,
        horizontal_spacing=0.06 if share_y else 0.1,
        subplot_titles=titles,
    )


def _line(
    x: Sequence[float],
    rows: Mapping[str, Sequence[float]] | pd.DataFrame,
    key: str,
    name: str,
    color: str,
    dash: str = "solid",
    legend: bool = True,
) -> go.Scatter:
    """Values of `key` over x, with whiskers from smallest to largest where `rows` has them."""
    y, whiskers = list(rows[key]), None
    if f"{key}_min" in rows:
        whiskers = {
            "type": "data",
            "array": list(rows[f"{key}_max"] - rows[key]),
            "arrayminus": list(rows[key] - rows[f"{key}_min"]),
            "thickness": 1.4,
            "width": 0,
        }
    return go.Scatter(
        x=list(x),
        y=y,
        error_y=whiskers,
        mode="lines+markers" if dash == "solid" else "lines",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": color, "width": 2, "dash": dash},
        marker={"size": 8, "color": color},
        hovertemplate=f"{name}, %{{x}}: %{{y:.3g}}<extra></extra>",
    )


def _finish(figure: go.Figure, title: str, subtitle: str, height: int = PANEL + 130) -> go.Figure:
    """Title, legend, and the panels' headings at their left."""
    headings = figure.layout.annotations
    theme.style(
        figure,
        title,
        subtitle,
        height=height,
        margin={"l": 12, "r": 24, "t": 116, "b": 48},
        hovermode="closest",
    )
    for heading, axis in zip(headings, figure.select_xaxes(), strict=False):
        heading.update(font={"size": 13}, x=axis.domain[0], xanchor="left")
    theme.legend_below_title(figure)
    return figure
