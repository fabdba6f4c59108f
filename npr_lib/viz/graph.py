"""The fork/join drawing of a trajectory: a box a segment, top to bottom in order of thought.

The drawing is made from the executed tree (`trajectory.segments`), so that it shows what ran, also
for truncated and invalid responses. One data unit is one pixel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from npr_lib.viz import theme
from npr_lib.viz.names import segment_names, segment_text

if TYPE_CHECKING:
    from npr_lib.reasoning.layout import BranchPath, Segment
    from npr_lib.reasoning.trajectory import Trajectory

MIN_WIDTH = 520  # of the drawing, so that the title fits
PAGE = 880  # boxes shrink, down to MIN_BOX, until the drawing is no wider than this
MAX_BOX, MIN_BOX = 250, 160
GAP_X, GAP_Y = 16, 34
LINE, CHARACTER = 15.5, 6.7  # height of a line and width of a character at 11 px
PAD_X, PAD_TOP, PAD_BOTTOM = 10, 9, 15
EDGE = 2  # room for the border of the outermost boxes
MARGIN = {"l": 12, "r": 12, "t": 66, "b": 12}
TEXT_LINES = 4
_TAG = re.compile(r"</?(?:guideline|plan|step|takeaway)>")


@dataclass(slots=True)
class Box:
    """A segment in the drawing: size, and where its top centre goes (y grows downwards)."""

    segment: Segment
    name: str
    lines: list[str]
    width: float
    x: float = 0.0
    y: float = 0.0

    @property
    def height(self) -> float:
        return PAD_TOP + LINE * (1 + len(self.lines)) + PAD_BOTTOM

    def place(self, x: float, y: float) -> None:
        self.x, self.y = x, y

    def boxes(self) -> Iterator[Box]:
        yield self

    def edges(self) -> Iterator[tuple[Box, Box]]:
        return iter(())

    @property
    def first(self) -> list[Box]:
        return [self]

    last = first


@dataclass(slots=True)
class Column:
    """Items one below the other; two neighbours are joined by edges."""

    items: list[Box | Fork] = field(default_factory=list)

    @property
    def width(self) -> float:
        return max(item.width for item in self.items)

    @property
    def height(self) -> float:
        return sum(item.height for item in self.items) + GAP_Y * (len(self.items) - 1)

    def place(self, x: float, y: float) -> None:
        for item in self.items:
            item.place(x, y)
            y += item.height + GAP_Y

    def boxes(self) -> Iterator[Box]:
        for item in self.items:
            yield from item.boxes()

    def edges(self) -> Iterator[tuple[Box, Box]]:
        for item in self.items:
            yield from item.edges()
        for upper, lower in pairwise(self.items):
            yield from ((a, b) for a in upper.last for b in lower.first)

    @property
    def first(self) -> list[Box]:
        return self.items[0].first

    @property
    def last(self) -> list[Box]:
        return self.items[-1].last


@dataclass(slots=True)
class Fork:
    """The branches of a block, side by side."""

    branches: list[Column]

    @property
    def width(self) -> float:
        return sum(branch.width for branch in self.branches) + GAP_X * (len(self.branches) - 1)

    @property
    def height(self) -> float:
        return max(branch.height for branch in self.branches)

    def place(self, x: float, y: float) -> None:
        left = x - self.width / 2
        for branch in self.branches:
            branch.place(left + branch.width / 2, y)
            left += branch.width + GAP_X

    def boxes(self) -> Iterator[Box]:
        for branch in self.branches:
            yield from branch.boxes()

    def edges(self) -> Iterator[tuple[Box, Box]]:
        for branch in self.branches:
            yield from branch.edges()

    @property
    def first(self) -> list[Box]:
        return [box for branch in self.branches for box in branch.first]

    @property
    def last(self) -> list[Box]:
        return [box for branch in self.branches for box in branch.last]


def graph(trajectory: Trajectory, prompt: str | None = None) -> go.Figure:
    """The executed reasoning graph: what forked where, what each part says and how long it is.

    Args:
        trajectory: a response of either engine, in either mode, finished or not.
        prompt: the prompt's text, which a trajectory does not hold.

    A box shows kind, tokens and the beginning of the text (all of it on hover); the bar at its foot
    is its length relative to the longest segment of the completion.
    """
    segments = trajectory.segments
    across = _columns_across(segments)
    box_width = min(MAX_BOX, max(MIN_BOX, (PAGE - GAP_X * (across - 1)) / across))
    characters = int((box_width - 2 * PAD_X) / CHARACTER)
    boxes = [
        Box(segment, name, _lines(trajectory, segment, prompt, characters), box_width)
        for segment, name in zip(segments, segment_names(trajectory), strict=True)
    ]
    tree = column(boxes, ())
    tree.place(tree.width / 2, 0)
    completion = [s.end - s.start for s in segments if s.kind != "prompt"]
    figure = go.Figure(_hover_points(trajectory, boxes, prompt))
    shapes = [_edge(upper, lower) for upper, lower in tree.edges()]
    for box in boxes:
        shapes += _box_shapes(box, max(completion))
    theme.style(
        figure,
        _title(trajectory),
        _subtitle(trajectory),
        shapes=shapes,
        annotations=[_label(box) for box in boxes],
        margin=MARGIN,
        hovermode="closest",
        showlegend=False,
    )
    _fit(figure, tree.width, tree.height)
    return figure


def _fit(figure: go.Figure, width: float, height: float) -> None:
    """Axes and size such that a data unit is a pixel."""
    room = max(width, MIN_WIDTH)
    left = (width - room) / 2
    figure.update_xaxes(range=[left - EDGE, left + room + EDGE], visible=False, fixedrange=True)
    figure.update_yaxes(range=[height + EDGE, -EDGE], visible=False, fixedrange=True)
    figure.update_layout(
        width=room + 2 * EDGE + MARGIN["l"] + MARGIN["r"],
        height=height + 2 * EDGE + MARGIN["t"] + MARGIN["b"],
    )


def _columns_across(segments: Sequence[Segment]) -> int:
    """Boxes side by side at the widest place."""
    columns: dict[BranchPath, int] = {}
    for path in sorted({s.path[:d] for s in segments for d in range(len(s.path) + 1)}, key=len)[
        ::-1
    ]:
        forks: dict[int, int] = {}
        for inner, count in columns.items():
            if len(inner) == len(path) + 1 and inner[: len(path)] == path:
                forks[inner[-1][0]] = forks.get(inner[-1][0], 0) + count
        columns[path] = max(forks.values(), default=1)
    return columns.get((), 1)


def column(boxes: Sequence[Box], path: BranchPath) -> Column:
    """The boxes of one branch (depth first) as a column with its forks inside."""
    depth = len(path)

    def block_of(box: Box) -> int | None:
        return box.segment.path[depth][0] if len(box.segment.path) > depth else None

    items: list[Box | Fork] = []
    for block, run in groupby(boxes, block_of):
        if block is None:
            items.extend(run)
            continue
        branches = groupby(run, lambda box: box.segment.path[depth])
        items.append(Fork([column(list(inner), (*path, step)) for step, inner in branches]))
    return Column(items)


def _lines(
    trajectory: Trajectory, segment: Segment, prompt: str | None, characters: int
) -> list[str]:
    """The text lines in a box: the plans one by one, of the rest a beginning."""
    text = segment_text(trajectory, segment, prompt)
    if segment.kind == "guideline":
        plans = [_TAG.sub("", part).strip() for part in text.split("<plan>")[1:]]
        return [line for plan in plans[:8] for line in theme.wrapped(plan, characters, 2)]
    if segment.kind != "text":  # there, tags are what the model wrote, not what the engine read
        text = _TAG.sub("", text)
    return theme.wrapped(text.strip(), characters, TEXT_LINES)


def _title(trajectory: Trajectory) -> str:
    branches = trajectory.num_branches
    if not branches:
        return "Reasoning graph: no parallel block"
    blocks = "1 block" if len(branches) == 1 else f"{len(branches)} blocks"
    noun = "branch" if branches == [1] else "branches"
    return f"Reasoning graph: {blocks} of {', '.join(map(str, branches))} {noun}"


def _subtitle(trajectory: Trajectory) -> str:
    work, span = trajectory.work, trajectory.span
    text = f"work {work} tokens, span {span}: ideal speed-up {work / span:.2f}× · bars: length"
    if trajectory.finish_reason != "stop":
        text += f" · ended: {trajectory.finish_reason}"
    return text + (f" ({trajectory.violation})" if trajectory.violation else "")


def _label(box: Box) -> dict:
    tokens = box.segment.end - box.segment.start
    count = f"{tokens} token{'s' * (tokens != 1)}"
    if len(f"{box.name} · {count}") * CHARACTER > box.width - 2 * PAD_X:
        count = str(tokens)
    head = f"<b>{box.name.capitalize()}</b> · {count}"
    body = [
        f'<span style="font-family:{theme.MONO}">{theme.escape(line)}</span>' for line in box.lines
    ]
    return {
        "x": box.x - box.width / 2 + PAD_X,
        "y": box.y + PAD_TOP - 3,
        "text": "<br>".join([head, *body]),
        "xanchor": "left",
        "yanchor": "top",
        "align": "left",
        "showarrow": False,
        "borderpad": 0,
        "font": {"size": 11, "color": theme.BLACK},
    }


def _box_shapes(box: Box, longest: int) -> list[dict]:
    color = theme.KINDS[box.segment.kind]
    left, right = box.x - box.width / 2, box.x + box.width / 2
    shapes = [
        {
            "type": "path",
            "path": _rounded(left, box.y, right, box.y + box.height, 7),
            "fillcolor": theme.tint(color),
            "line": {"color": color, "width": 1.4},
        }
    ]
    if box.segment.kind != "prompt":
        share = (box.segment.end - box.segment.start) / longest
        foot = box.y + box.height - 7
        track = right - left - 2 * PAD_X
        for length, fill in ((track, theme.tint(color, 0.38)), (max(2, share * track), color)):
            start = left + PAD_X
            shapes.append(
                {
                    "type": "rect",
                    **{"x0": start, "x1": start + length, "y0": foot - 2, "y1": foot + 2},
                    "fillcolor": fill,
                    "line": {"width": 0},
                }
            )
    return shapes


def _rounded(x0: float, y0: float, x1: float, y1: float, r: float) -> str:
    return (
        f"M{x0 + r},{y0} L{x1 - r},{y0} Q{x1},{y0} {x1},{y0 + r} L{x1},{y1 - r} "
        f"Q{x1},{y1} {x1 - r},{y1} L{x0 + r},{y1} Q{x0},{y1} {x0},{y1 - r} "
        f"L{x0},{y0 + r} Q{x0},{y0} {x0 + r},{y0} Z"
    )


def _edge(upper: Box, lower: Box) -> dict:
    """From the foot of a box to the head of one below; longer branches end nearer to the join."""
    y0, y1 = upper.y + upper.height, lower.y
    bend = GAP_Y * 0.9
    path = f"M{upper.x},{y0} L{upper.x},{y1 - GAP_Y} " if y1 - y0 > GAP_Y else f"M{upper.x},{y0} "
    y0 = max(y0, y1 - GAP_Y)
    path += f"C{upper.x},{y0 + bend / 2} {lower.x},{y1 - bend / 2} {lower.x},{y1}"
    return {
        "type": "path",
        "path": path,
        "layer": "below",
        "line": {"color": theme.INK, "width": 1.4},
    }


def _hover_points(trajectory: Trajectory, boxes: list[Box], prompt: str | None) -> go.Scatter:
    texts = []
    for box in boxes:
        segment = box.segment
        positions = trajectory.position_ids[segment.start : segment.end]
        head = (
            f"<b>{box.name}</b>  tokens {segment.start}–{segment.end - 1}, "
            f"positions {positions.min()}–{positions.max()}"
        )
        text = theme.wrap(segment_text(trajectory, segment, prompt))
        texts.append(f"{head}<br>{text}" if text else head)
    return go.Scatter(
        x=[box.x for box in boxes],
        y=[box.y + box.height / 2 for box in boxes],
        mode="markers",
        marker={"size": 46, "opacity": 0},
        hovertext=texts,
        hoverinfo="text",
    )
