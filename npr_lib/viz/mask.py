"""Pictures of a trajectory token by token: the attention mask, positions, surprise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from npr_lib.viz import theme
from npr_lib.viz.names import segment_names, token_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from npr_lib.reasoning.trajectory import Trajectory

MAX_TOKENS = 400  # a side of the mask; longer trajectories are sampled
_KINDS = list(theme.KINDS)


def mask(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase | None = None) -> go.Figure:
    """The attention mask that was executed: row sees column where it is coloured.

    The colour is the kind of what is seen; pale red is the past a token must not see because it
    lies in a sibling branch. Beyond 400 tokens every m-th token is shown, and the title says so.

    Args:
        tokenizer: names the tokens on hover; without it they are shown by id.
    """
    total = len(trajectory.position_ids)
    every = -(-total // MAX_TOKENS)
    shown = np.arange(0, total, every)
    visible = _visible(trajectory.layout.hidden, shown)
    owner = _owners(trajectory)[shown]
    kinds = np.array([_KINDS.index(s.kind) for s in trajectory.segments], dtype=np.float32)
    seen = np.where(visible, kinds[owner][None, :], np.float32(np.nan))
    names = token_names(trajectory, tokenizer)
    labels = [f"{i} {names[i]}" for i in shown]
    figure = go.Figure(
        go.Heatmap(
            z=seen,
            x=labels,
            y=labels,
            zmin=-0.5,
            zmax=len(_KINDS) - 0.5,
            colorscale=_steps([theme.KINDS[kind] for kind in _KINDS]),
            showscale=False,
            opacity=0.85,
            hoverongaps=False,
            hovertemplate="%{y}<br>sees %{x}<extra></extra>",
        )
    )
    what = f"all {total} tokens" if every == 1 else f"every {_ordinal(every)} of {total} tokens"
    side = int(np.clip(6 * len(shown), 420, 640))
    theme.style(
        figure,
        f"Attention mask: {what}",
        "a row sees the columns in full colour · pale red: past, but in a sibling branch",
        width=side + 130,
        height=side + 150,
        margin={"l": 110, "r": 20, "t": 66, "b": 84},
        shapes=[*_sibling_shapes(trajectory, shown), *_border_shapes(trajectory, shown)],
    )
    _segment_ticks(figure, trajectory, shown, labels)
    return figure


def _visible(hidden: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """bool [m, m]: the visibility relation between the given tokens."""
    keys, queries = tokens[None, :], tokens[:, None]
    visible = keys <= queries
    for level in hidden:
        low, high = level[tokens, 0][:, None], level[tokens, 1][:, None]
        visible &= ~((keys >= low) & (keys < high))
    return visible


def _owners(trajectory: Trajectory) -> np.ndarray:
    """int [n]: the index of the segment that owns each token."""
    lengths = [segment.end - segment.start for segment in trajectory.segments]
    return np.repeat(np.arange(len(lengths)), lengths)


def _steps(colors: list[str]) -> list[list]:
    """A colour scale of equal plain steps."""
    n = len(colors)
    return [[(i + side) / n, color] for i, color in enumerate(colors) for side in (0, 1)]


def _ordinal(n: int) -> str:
    suffix = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"


def _edge(shown: np.ndarray, token: int) -> float:
    """Where the border before a token falls between the cells of the shown ones."""
    return float(np.searchsorted(shown, token)) - 0.5


def _sibling_shapes(trajectory: Trajectory, shown: np.ndarray) -> list[dict]:
    """What is past but hidden, one rectangle a run of tokens that miss the same interval."""
    shapes = []
    for level in trajectory.layout.hidden:
        starts = np.flatnonzero(np.any(np.diff(level, axis=0, prepend=-1), axis=1))
        for start, end in zip(starts, [*starts[1:], len(level)], strict=True):
            low, high = level[start]
            if high > low:
                x0, x1 = _edge(shown, low), _edge(shown, high)
                y0, y1 = _edge(shown, start), _edge(shown, end)
                shapes.append(
                    {
                        "type": "rect",
                        **{"x0": x0, "x1": x1, "y0": y0, "y1": y1},
                        "fillcolor": theme.fade(theme.VERMILLION, 0.2),
                        "line": {"width": 0},
                        "layer": "below",
                    }
                )
    return shapes


def _border_shapes(trajectory: Trajectory, shown: np.ndarray) -> list[dict]:
    """A line where a segment begins, on both axes, up to the diagonal."""
    end, shapes = len(shown) - 0.5, []
    for segment in trajectory.segments[1:]:
        at = _edge(shown, segment.start)
        line = {"color": theme.INK, "width": 0.7}
        shapes.append({"type": "line", "x0": at, "x1": at, "y0": at, "y1": end, "line": line})
        shapes.append({"type": "line", "x0": -0.5, "x1": at, "y0": at, "y1": at, "line": line})
    return shapes


def _segment_ticks(
    figure: go.Figure, trajectory: Trajectory, shown: np.ndarray, labels: list[str]
) -> None:
    """Name the segments on both axes, as far as the names find room."""
    ticks, names, last = [], [], -np.inf
    room = len(labels) / 26
    for segment, name in zip(trajectory.segments, segment_names(trajectory), strict=True):
        middle = (_edge(shown, segment.start) + _edge(shown, segment.end)) / 2
        if middle - last >= room:
            ticks.append(labels[min(max(round(middle), 0), len(labels) - 1)])
            names.append(name)
            last = middle
    axis = {"type": "category", "tickvals": ticks, "ticktext": names, "showgrid": False}
    figure.update_xaxes(**axis, title="seen token", tickangle=-45)
    figure.update_yaxes(**axis, title="seeing token", autorange="reversed")


def positions(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase | None = None
) -> go.Figure:
    """Position against token index: sibling branches begin at one position, so the line falls back.

    Args:
        tokenizer: names the tokens on hover; without it they are shown by id.
    """
    figure, tokens = go.Figure(), token_names(trajectory, tokenizer)
    names = segment_names(trajectory)
    for segment, name in zip(trajectory.segments, names, strict=True):
        indices = np.arange(segment.start, segment.end)
        figure.add_trace(
            go.Scatter(
                x=indices,
                y=trajectory.position_ids[segment.start : segment.end],
                mode="lines+markers",
                cliponaxis=False,
                showlegend=False,
                line={"color": theme.KINDS[segment.kind], "width": 2},
                marker={"size": 5 if len(indices) < 200 else 2},
                hovertext=[f"<b>{name}</b> {tokens[i]}" for i in indices],
                hovertemplate="%{hovertext}<br>token %{x}, position %{y}<extra></extra>",
            )
        )
    theme.style(
        figure,
        f"Positions: {trajectory.work} tokens of work on {trajectory.span} positions",
        "sibling branches start side by side; a takeaway goes on after the longest",
        height=420,
        hovermode="closest",
        annotations=_segment_labels(trajectory, names),
    )
    figure.update_xaxes(title="token (prompt + completion)", showgrid=False)
    figure.update_yaxes(title="position", rangemode="tozero")
    return figure


def _segment_labels(trajectory: Trajectory, names: list[str]) -> list[dict]:
    """The names of the longer segments above their middle."""
    longest = 0.04 * len(trajectory.position_ids)
    return [
        {
            "x": (segment.start + segment.end) / 2,
            "y": trajectory.position_ids[(segment.start + segment.end) // 2],
            "text": name,
            "xanchor": "right",
            "yanchor": "bottom",
            "xshift": -4,
            "yshift": 2,
            "showarrow": False,
            "font": {"size": 12},
        }
        for segment, name in zip(trajectory.segments, names, strict=True)
        if segment.end - segment.start >= longest
    ]


def tokens(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase | None = None) -> go.Figure:
    """How surprised the policy was by each token it chose, −log p in nats; gaps: engine-written.

    Dashes, where they were recorded: the entropies, which are the surprise to be expected.

    Args:
        tokenizer: names the tokens on hover; without it they are shown by id.
    """
    figure, texts = go.Figure(), token_names(trajectory, tokenizer)
    prompt = len(trajectory.prompt_ids)
    owner = _owners(trajectory)[prompt:]
    surprise = -np.asarray(trajectory.logprobs, dtype=float)
    names = segment_names(trajectory)
    kinds = np.array([segment.kind for segment in trajectory.segments])[owner]
    for kind in theme.KINDS:
        chosen = np.flatnonzero((kinds == kind) & ~np.isnan(surprise))
        if len(chosen):
            figure.add_trace(
                go.Bar(
                    x=chosen + prompt,
                    y=surprise[chosen],
                    name=kind,
                    marker={"color": theme.KINDS[kind], "line": {"width": 0}},
                    hovertext=[f"<b>{names[owner[i]]}</b> {texts[prompt + i]}" for i in chosen],
                    hovertemplate="%{hovertext}<br>%{y:.2f} nats<extra></extra>",
                )
            )
    expected = np.asarray(trajectory.entropies, dtype=float)
    known = np.flatnonzero(~np.isnan(expected))
    if len(known):
        figure.add_trace(
            go.Scatter(
                x=known + prompt,
                y=expected[known],
                name="entropy",
                mode="markers",
                marker={"symbol": "line-ew", "size": 7, "line": {"width": 1.5, "color": theme.INK}},
                hovertemplate="%{y:.2f} nats to be expected<extra></extra>",
            )
        )
    theme.style(
        figure,
        "Surprise: where the policy hesitated",
        f"mean {np.nanmean(surprise):.2f} nats a chosen token"
        + (" · dashes: entropy, the surprise to be expected" if len(known) else ""),
        height=340,
        barmode="overlay",
        bargap=0.1,
    )
    figure.update_xaxes(title="token (prompt + completion)", showgrid=False)
    figure.update_yaxes(title="−log p (nats)", rangemode="tozero")
    return figure
