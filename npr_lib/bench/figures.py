"""Pictures of a benchmark: the engine beside its peers, medians with ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from npr_lib.bench.sections import SECTIONS, frame, split, summary
from npr_lib.viz import theme

HEIGHT = 460  # px
# A quantity has one colour in every picture.
COLORS = dict.fromkeys(("speed-up", "engine", "peak", "ms", "MB"), theme.BLUE)
COLORS |= dict.fromkeys(("cap", "generate", "bare forward"), theme.VERMILLION)
COLORS |= dict(zip(("packed / alone", "packed / TRL"), (theme.BLUE, theme.VERMILLION), strict=True))
COLORS |= {"ideal": theme.INK, "generate_batch": theme.GREEN}
COLORS |= {"copies": theme.fade(theme.BLUE, 0.34)}
DASHES = {"ideal": "dot", "cap": "dash"}


@dataclass(frozen=True, slots=True)
class Chart:
    """Quantities of a section over one of its sizes, `x`; `y` is the other axis's title.

    color, panel: the column that tells lines apart, and the one that has a panel for each value;
    panels that are `apart` share no axis. level: where a dotted line lies.
    """

    title: str
    x: str
    y: str
    quantities: Sequence[str]
    color: str = "quantity"
    panel: str | None = None
    apart: bool = False
    log: bool = False
    level: float | None = None


SPEEDUPS = ("ideal", "cap", "speed-up")
ARMS = ("engine", "generate", "generate_batch")
SIDES = ("engine", "bare forward")
STEPS = ("packed / alone", "packed / TRL")
CHARTS = {
    "decoding": (
        Chart("Parallel over sequential", "branches", "speed-up (×)", SPEEDUPS, panel="length"),
        Chart("Step / bare step", "branches", "×", ("step / bare step",), "length", level=1),
    ),
    "throughput": (Chart("Sequential generation", "in flight", "tokens/s", ARMS, log=True),),
    "slots": (Chart("KV slots", "case", "slots, one a token", ("copies", "peak")),),
    "layout": (
        Chart("Layouts", "tokens", "", ("ms", "MB"), panel="quantity", apart=True, log=True),
    ),
    "marginal": (Chart("A decode step", "count", "ms", SIDES, panel="with more", apart=True),),
    "training": (
        Chart("A packed training step", "tokens", "× the time", STEPS, panel="group", level=1),
    ),
}


def benchmark(result: Mapping[str, Any]) -> dict[str, list[go.Figure]]:
    """Title of a section -> its figures, one or two a model; `result` is what bench.json holds."""
    return {
        SECTIONS[name].title: [
            _draw(chart, summary(own, {q: SECTIONS[name].quantities[q] for q in chart.quantities}))
            for _, own in rows.groupby(rows.get("model", rows["section"]), sort=False)
            for chart in CHARTS[name]
        ]
        for name, rows in split(frame(result["rows"])).items()
    }


def _draw(chart: Chart, data: pd.DataFrame) -> go.Figure:
    """A `summary` as lines with whiskers or, over what is no number, as bars."""
    look: dict[str, object] = {"color": chart.color, "labels": {"median": chart.y}}
    look |= {"color_discrete_map": COLORS, "color_discrete_sequence": theme.SERIES}
    if chart.x == "case":
        look |= {"orientation": "h", "barmode": "overlay", "opacity": 1}
        figure = px.bar(data, x="median", y="case", **look)
        figure.update_yaxes(autorange="reversed", title="")
    else:
        data = data.assign(up=data["max"] - data["median"], down=data["median"] - data["min"])
        look |= {"line_dash": chart.color, "line_dash_map": DASHES, "line_dash_sequence": ["solid"]}
        look |= {"error_y": "up", "error_y_minus": "down", "markers": True}
        look |= {"log_x": chart.log, "log_y": chart.log, "facet_col": chart.panel}
        figure = px.line(data, x=chart.x, y="median", **look)
        figure.update_xaxes(tickvals=data[chart.x].unique(), tickformat=",")
        figure.update_yaxes(rangemode="tozero")
    if chart.apart:
        figure.update_xaxes(matches=None)
        figure.update_yaxes(matches=None, showticklabels=True)
    for panel in figure.layout.annotations:
        panel.text = theme.escape(panel.text.removeprefix("quantity=").replace("=", ": "))
    if chart.level is not None:
        figure.add_hline(y=chart.level, line={"color": theme.INK, "width": 1, "dash": "dot"})
    model = f", {data['model'].iloc[0]}" if "model" in data else ""
    layout: dict[str, object] = {"height": HEIGHT, "margin_t": 116}
    layout["showlegend"] = chart.color != chart.panel
    layout["legend_title_text"] = chart.color.replace("quantity", "")
    theme.style(figure, chart.title + model, "median [min, max]", **layout)
    theme.legend_below_title(figure)
    return figure
