"""The timeline of a trajectory: which branch decided a token in which step of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from npr_lib.viz import theme
from npr_lib.viz.names import segment_names, token_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from npr_lib.reasoning.trajectory import Trajectory

MAX_SLITS = 130
MAX_CELLS = 600  # more than this and neighbouring tokens are drawn as one bar
LANE = 34  # px


@dataclass(slots=True)
class Cell:
    """Tokens of one segment, decided by the policy (or else by the engine) from step to step."""

    lane: tuple[int, ...]
    kind: str
    name: str
    sampled: bool
    first: int
    last: int
    tokens: list[int]  # indices over prompt + completion


def timeline(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase | None = None) -> go.Figure:
    """What ran at once: the engine step on x, a lane a branch, a cell a token.

    Pale cells are tokens the engine wrote; they cost no step of their own and are drawn in the
    step that brought them about. Above, the number of branches that decided a token in each step.

    Args:
        tokenizer: names the tokens on hover; without it they are shown by id.
    """
    cells = _cells(trajectory)
    merged = len(cells) > MAX_CELLS
    if merged:
        cells = _merged(cells)
    lanes = sorted({cell.lane for cell in cells})
    figure = make_subplots(
        rows=2, shared_xaxes=True, row_heights=[64, LANE * len(lanes)], vertical_spacing=0.09
    )
    steps, widths = _parallelism(trajectory)
    figure.add_trace(_width_line(steps, widths), row=1, col=1)
    tokens = token_names(trajectory, tokenizer)
    # A slit between cells while they are wide; a hair of overlap once slits would only shimmer.
    gap = 0.08 if len(steps) <= MAX_SLITS else -0.02
    for kind in theme.KINDS:
        chosen = [cell for cell in cells if cell.kind == kind]
        if chosen:
            figure.add_trace(_bars(kind, chosen, lanes, tokens, gap), row=2, col=1)
    busy = widths[widths > 0]
    theme.style(
        figure,
        f"Timeline: {trajectory.work} tokens in {len(busy)} steps of the engine",
        f"{busy.mean():.2f} branches decoded at once on average, {busy.max()} at most"
        + (" · bars: runs of tokens" if merged else " · pale: written by the engine"),
        height=190 + LANE * len(lanes),
        barmode="overlay",
        hovermode="closest",
        margin={"l": 12, "r": 24, "t": 92, "b": 44},
    )
    theme.row_axis(figure, [lane_name(lane) for lane in lanes], row=2, col=1)
    figure.update_yaxes(title="branches", range=[0, widths.max() + 0.4], dtick=1, row=1, col=1)
    figure.update_xaxes(showgrid=False, row=1, col=1)
    figure.update_xaxes(title="step of the engine", showgrid=False, row=2, col=1)
    figure.update_xaxes(range=[steps[0] - 1, steps[-1] + 1])
    return figure


def _cells(trajectory: Trajectory) -> list[Cell]:
    prompt = len(trajectory.prompt_ids)
    cells: dict[tuple, Cell] = {}
    for i, (segment, name) in enumerate(
        zip(trajectory.segments, segment_names(trajectory), strict=True)
    ):
        if segment.kind == "prompt":
            continue
        lane = tuple(branch for _, branch in segment.path)
        for token in range(segment.start, segment.end):
            step = trajectory.decode_steps[token - prompt]
            sampled = trajectory.sampled[token - prompt]
            cell = cells.setdefault(
                (i, step, sampled), Cell(lane, segment.kind, name, sampled, step, step, [])
            )
            cell.tokens.append(token)
    return list(cells.values())


def _merged(cells: list[Cell]) -> list[Cell]:
    """Neighbouring cells of one segment as one, engine-written tokens among them."""
    merged: list[Cell] = []
    for cell in cells:
        last = merged[-1] if merged else None
        same = last and (last.lane, last.name) == (cell.lane, cell.name)
        if same and cell.first - last.last <= 1:
            last.last = max(cell.last, last.last)
            last.tokens += cell.tokens
            last.sampled |= cell.sampled
        else:
            merged.append(cell)
    return merged


def lane_name(lane: tuple[int, ...]) -> str:
    return f"branch {'.'.join(str(branch + 1) for branch in lane)}" if lane else "trunk"


def _parallelism(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Every step from the first to the last, and the tokens the policy decided in it."""
    sampled = [
        step for step, own in zip(trajectory.decode_steps, trajectory.sampled, strict=True) if own
    ]
    # A response whose tokens were all forced has no choice to show: every token counts.
    decided = np.asarray(sampled or trajectory.decode_steps)
    steps = np.arange(decided.min(), decided.max() + 1)
    return steps, np.bincount(decided - steps[0])


def _width_line(steps: np.ndarray, widths: np.ndarray) -> go.Scatter:
    return go.Scatter(
        x=np.append(steps - 0.5, steps[-1] + 0.5),
        y=np.append(widths, widths[-1]),
        mode="lines",
        line={"shape": "hv", "width": 1.5, "color": theme.INK},
        fill="tozeroy",
        fillcolor=theme.FAINT,
        hovertemplate="%{y} at once<extra></extra>",
        showlegend=False,
    )


def _bars(
    kind: str, cells: list[Cell], lanes: list[tuple], tokens: list[str], gap: float
) -> go.Bar:
    color, row = theme.KINDS[kind], {lane: i for i, lane in enumerate(lanes)}
    # The legend shows the first cell's colour: a full one.
    cells = sorted(cells, key=lambda cell: not cell.sampled)
    return go.Bar(
        orientation="h",
        name=kind,
        width=0.82,  # else each kind's would follow from how far apart its own rows are
        y=[row[cell.lane] for cell in cells],
        base=[cell.first - 0.5 + gap for cell in cells],
        x=[cell.last - cell.first + 1 - 2 * gap for cell in cells],
        marker={
            "color": [color if cell.sampled else theme.fade(color, 0.35) for cell in cells],
            "line": {"width": 0},
        },
        hovertext=[_hover(cell, tokens) for cell in cells],
        hoverinfo="text",
    )


def _hover(cell: Cell, tokens: list[str]) -> str:
    when = f"step {cell.first}" if cell.first == cell.last else f"steps {cell.first}–{cell.last}"
    by = "" if cell.sampled else ", written by the engine"
    texts = [tokens[i] for i in cell.tokens[:40]]
    lines = [" ".join(texts[i : i + 10]) for i in range(0, len(texts), 10)]
    more = " …" if len(cell.tokens) > 40 else ""
    return f"<b>{cell.name}</b>, {when}{by}<br>{'<br>'.join(lines)}{more}"
