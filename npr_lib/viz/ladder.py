"""Checkpoints and machines side by side: values with intervals, differences, speed-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from npr_lib.analysis.metrics import Estimate, efficiency
from npr_lib.analysis.quantities import quantity
from npr_lib.analysis.reading import decoding
from npr_lib.viz import theme

ROW = 46  # px


def ladder(
    table: pd.DataFrame, metrics: Sequence[str] = ("avg", "format_pass", "trigger_rate")
) -> go.Figure:
    """Shares by checkpoint, a panel a metric, with 95 % intervals; sampled and greedy apart.

    Args:
        table: what `metrics.ladder` returns.
        metrics: shares among its metrics; "avg", "best", "maj" stand for whatever k a checkpoint
            has.

    Raises:
        ValueError: a metric is not in the table, or no share.
    """
    checkpoints = list(table["checkpoint"].unique())
    decodings = sorted(table["temperature"].unique(), reverse=True)
    kinds = table["metric"].str.split("@").str[0]
    shares = [kind for kind in kinds.unique() if quantity(kind).unit == "%"]
    missing = [name for name in metrics if name not in shares]
    if missing or not metrics:
        raise ValueError(f"{missing} are no shares of this table: choose of {shares}")
    names = [quantity(metric).heading for metric in metrics]
    figure = make_subplots(
        cols=len(metrics),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[f"<b>{name}</b>" for name in names],
    )
    for col, metric in enumerate(metrics, start=1):
        chosen = table[kinds == metric]
        for i, temperature in enumerate(decodings):
            shift = 0.17 * (2 * i - (len(decodings) - 1))
            rows = chosen[chosen["temperature"] == temperature].dropna(subset="value")
            points, labels = _dots(rows, checkpoints, shift, i, decoding(temperature))
            points.showlegend = col == 1
            figure.add_traces([points, labels], rows=1, cols=col)
    theme.style(
        figure,
        f"{', '.join(names)} by checkpoint".capitalize(),
        f"{_sample_counts(table)}; lines: 95 % bootstrap over problems",
        height=ROW * len(checkpoints) + 170,
        margin={"l": 12, "r": 16, "t": 112, "b": 48},
        hovermode="closest",
    )
    theme.headings_left(figure)
    theme.legend_below_title(figure)
    theme.row_axis(figure, checkpoints)
    figure.update_xaxes(title="share (%)", tickvals=[0, 25, 50, 75, 100], range=[-4, 124])
    return figure


def _sample_counts(table: pd.DataFrame) -> str:
    problems = " or ".join(map(str, sorted(table["problems"].unique())))
    counts = table.groupby("temperature")["samples"].unique().sort_index(ascending=False)
    parts = [f"{problems} problems"]
    for temperature, samples in counts.items():
        n = " or ".join(map(str, sorted(samples)))
        where = "greedy" if temperature == 0 else f"at {decoding(temperature)}"
        parts.append(f"{n} sample{'s' * (n != '1')} {where}")
    return ", ".join(parts)


def _dots(
    rows: pd.DataFrame, checkpoints: list[str], shift: float, series: int, name: str
) -> list[go.Scatter]:
    """Points with whiskers, and their values written behind the whiskers."""
    values, highs = 100 * rows["value"].to_numpy(), 100 * rows["high"].to_numpy()
    heights = [checkpoints.index(checkpoint) + shift for checkpoint in rows["checkpoint"]]
    color = theme.SERIES[series % len(theme.SERIES)]
    points = go.Scatter(
        x=values,
        y=heights,
        error_x=theme.whiskers(100 * rows["low"], values, highs, color),
        mode="markers",
        name=name,
        legendgroup=name,
        marker={
            "size": 10,
            "color": color if series == 0 else "rgba(0,0,0,0)",
            "line": {"color": color, "width": 2},
            "symbol": theme.SYMBOLS[series % len(theme.SYMBOLS)],
        },
        hovertext=[
            f"{theme.escape(row.checkpoint)}, {name}: {quantity(row.metric).text(row)} %"
            for row in rows.itertuples()
        ],
        hoverinfo="text",
    )
    labels = go.Scatter(
        x=np.maximum(highs, values + 3) + 1.5,
        y=heights,
        mode="text",
        text=[_short_percent(value) for value in values],
        textposition="middle right",
        textfont={"size": 11, "color": theme.INK},
        hoverinfo="skip",
        showlegend=False,
    )
    return [points, labels]


def _short_percent(value: float) -> str:
    """Whole percents, but 0 and 100 only where they are exact."""
    return f"{value:.0f}" if value in (0, 100) or 0.5 <= value < 99.5 else f"{value:.1f}"


def paired(
    differences: Mapping[str, Estimate],
    title: str = "Paired differences in accuracy",
    unit: str = "percentage points",
    scale: float = 100,
) -> go.Figure:
    """Differences of two checkpoints on the same problems, with the line of no difference.

    Args:
        differences: label ("npr − npr_beta, T = 1") -> `metrics.paired_difference`.
        unit, scale: what is written on the axis; a value is multiplied by `scale`.

    A difference whose interval holds 0 is grey.
    """
    estimates = [Estimate(*(scale * x for x in estimate)) for estimate in differences.values()]
    figure = go.Figure()
    for i, (name, e) in enumerate(zip(differences, estimates, strict=True)):
        color = theme.BLUE if e.low > 0 else theme.VERMILLION if e.high < 0 else theme.INK
        label = f"{theme.signed(e.value)} [{theme.signed(e.low)}, {theme.signed(e.high)}]"
        figure.add_scatter(
            x=[e.value],
            y=[i],
            error_x=theme.whiskers([e.low], [e.value], [e.high], color),
            mode="markers",
            marker={"size": 11, "color": color},
            hovertext=f"{theme.escape(name)}: {label}",
            hoverinfo="text",
        )
        theme.beside_row(figure, i, label)
    theme.style(
        figure,
        title,
        "same problems, 95 % paired bootstrap; grey: the interval holds 0",
        height=ROW * len(estimates) + 130,
        margin={"l": 12, "r": 176, "t": 76, "b": 48},
        showlegend=False,
        hovermode="closest",
    )
    reach = 1.15 * max((abs(x) for e in estimates for x in e), default=1) or 1
    figure.add_vline(x=0, line={"color": theme.INK, "width": 1})
    figure.update_xaxes(title=f"difference ({unit})", range=[-reach, reach])
    theme.row_axis(figure, differences)
    return figure


def speed(measured: Mapping[str, float], ideal: Mapping[str, float] | float) -> go.Figure:
    """Measured speed-up over sequential decoding (full) inside the ideal one (pale).

    Args:
        measured: setting ("batch 1") -> ratio of measured throughputs, parallel / sequential.
        ideal: work / span, for all settings or by setting.

    Raises:
        ValueError: a setting without an ideal, or a speed-up that is not positive.
    """
    ideals = dict(ideal) if isinstance(ideal, Mapping) else dict.fromkeys(measured, ideal)
    if set(ideals) != set(measured):
        raise ValueError(f"measured {sorted(measured)}, but ideals for {sorted(ideals)}")
    figure = go.Figure()
    for name, values, color, width in (
        ("ideal: work / span", ideals, theme.fade(theme.BLUE, 0.34), 0.62),
        ("measured: tokens/s over sequential", measured, theme.BLUE, 0.3),
    ):
        figure.add_bar(
            orientation="h",
            x=[values[setting] for setting in measured],
            y=list(range(len(measured))),
            width=width,
            name=name,
            marker={"color": color, "line": {"width": 0}},
            hovertemplate=f"{name}: %{{x:.2f}}×<extra></extra>",
        )
    label = {"xanchor": "left", "xshift": 8, "showarrow": False}
    for row, (setting, ratio) in enumerate(measured.items()):
        best = ideals[setting]
        text = f"<b>{ratio:.2f}×</b> of {best:.2f}×  ({efficiency(ratio, best):.0%})"
        figure.add_annotation(x=max(ratio, best), y=row, text=text, **label)
    theme.style(
        figure,
        "Speed-up over sequential decoding: measured and ideal",
        "in brackets: efficiency = measured / ideal",
        height=ROW * len(measured) + 150,
        margin={"l": 12, "r": 24, "t": 96, "b": 48},
        barmode="overlay",
    )
    figure.add_vline(x=1, line={"color": theme.INK, "width": 1, "dash": "dot"})
    longest = max(*measured.values(), *ideals.values())
    figure.update_xaxes(title="speed-up (×, dotted: sequential)", range=[0, 1.3 * longest])
    theme.row_axis(figure, measured)
    return figure
