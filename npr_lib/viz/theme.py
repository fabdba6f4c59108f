"""One look for every figure, legible on a white and on a black page without a switch.

The page shows through (transparent background), lines and labels are a grey half-way between black
and white in contrast (more than 4:1 on either), and where text stands on colour its own box brings
the background along. Colours are Okabe and Ito's, told apart with any kind of colour vision.
"""

import html
from collections.abc import Iterable
from typing import Any

import numpy as np
import plotly.graph_objects as go

INK = "#757a83"
FAINT = "rgba(128,132,140,0.22)"
BLACK, WHITE = "#16181c", "#ffffff"

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY = "#E69F00", "#56B4E9"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross")  # of a series, too

# A kind of segment has one colour in every picture of a trajectory.
KINDS = {"prompt": "#8f949c", "guideline": BLUE, "step": ORANGE, "takeaway": GREEN, "text": PURPLE}

SANS = "Inter, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

_AXIS = {
    "gridcolor": FAINT,
    "zeroline": False,
    "linecolor": FAINT,
    "ticks": "",
    "automargin": True,
    "title": {"font": {"size": 12}, "standoff": 8},
    "tickfont": {"size": 12},
}
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": SANS, "size": 13, "color": INK},
        "colorway": SERIES,
        "title": {
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 12, "t": 26},
            "font": {"size": 17},
        },
        "margin": {"l": 12, "r": 24, "t": 78, "b": 44},
        "xaxis": _AXIS,
        "yaxis": {**_AXIS, "ticklabelstandoff": 6},
        "hoverlabel": {
            "bgcolor": BLACK,
            "bordercolor": BLACK,
            "font": {"family": MONO, "size": 12, "color": WHITE},
            "align": "left",
            "namelength": -1,
        },
        "legend": {
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1,
            "yanchor": "bottom",
            "font": {"size": 12},
            "bgcolor": "rgba(0,0,0,0)",
        },
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": FAINT,
            "activecolor": INK,
            "remove": ["lasso2d", "select2d", "autoScale2d"],
        },
        "bargap": 0.25,
    }
)


def style(figure: go.Figure, title: str, subtitle: str = "", **layout: Any) -> go.Figure:
    """Give a figure the theme, a title and a subtitle; `layout` overrides the template."""
    # A line of the title, because plotly sets its own subtitles too far below.
    second = f'<br><span style="font-size:13px">{escape(subtitle)}</span>' if subtitle else ""
    figure.update_layout(template=TEMPLATE, title_text=f"<b>{escape(title)}</b>{second}", **layout)
    return figure


def legend_below_title(figure: go.Figure) -> None:
    """Put the legend at the right under the title's first line, where no toolbar covers it."""
    top = 1 - 42 / figure.layout.height
    figure.update_layout(legend={"y": top, "yref": "container", "yanchor": "top"})


def signed(value: float, digits: int = 1) -> str:
    """ "+1.0", "−1.0" or "0.0"."""
    return number(value, f"+.{digits}f") if round(value, digits) else f"{0:.{digits}f}"


def number(value: float, spec: str) -> str:
    """A formatted number with a real minus sign."""
    return format(value, spec).replace("-", "−")


def row_axis(figure: go.Figure, names: Iterable[str], **place: int) -> None:
    """Rows from the top, one a name, on the y axis (of all panels, or of the one at `place`)."""
    labels = [escape(name) for name in names]
    rows = list(range(len(labels)))
    axis = {"tickvals": rows, "ticktext": labels, "range": [len(labels) - 0.5, -0.5]}
    figure.update_yaxes(**axis, showgrid=False, **place)


def headings_left(figure: go.Figure) -> None:
    """Panels' titles above their left edges, in the place of plotly's middle; before any note."""
    for heading, axis in zip(figure.layout.annotations, figure.select_xaxes(), strict=False):
        heading.update(font={"size": 13}, x=axis.domain[0], xanchor="left")


def beside_row(figure: go.Figure, row: int, text: str) -> None:
    """A note at the right of a row, outside of the axes."""
    place = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 9, "y": row}
    figure.add_annotation(**place, text=text, showarrow=False)


def whiskers(low: Any, value: Any, high: Any, color: str) -> dict[str, Any]:
    """Error bars from `low` to `high` around values, one each."""
    reach = {"array": np.subtract(high, value), "arrayminus": np.subtract(value, low)}
    return {"type": "data", **reach, "color": color, "thickness": 1.6, "width": 0}


def escape(text: str) -> str:
    """Text that plotly and a browser show as it is, tags included."""
    return html.escape(text, quote=False)


def tint(color: str, share: float = 0.2) -> str:
    """An opaque light version of a "#rrggbb" colour: `share` of it on white."""
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - c)):02x}" for c in channels)


def fade(color: str, alpha: float) -> str:
    """A "#rrggbb" colour that lets the page through."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def contrast(color: str, other: str) -> float:
    """WCAG contrast ratio of two "#rrggbb" colours, 1 to 21."""
    high, low = sorted((_luminance(color), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def text_on(color: str) -> str:
    """Black or white, whichever reads better on a "#rrggbb" colour."""
    return max((BLACK, WHITE), key=lambda text: contrast(color, text))


def _luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
