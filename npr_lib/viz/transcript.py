"""A trajectory as a fragment of HTML to read: branches side by side, nothing but text and style."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from npr_lib.viz import theme
from npr_lib.viz.names import segment_names

if TYPE_CHECKING:
    from npr_lib.reasoning.layout import BranchPath, Segment
    from npr_lib.reasoning.trajectory import Trajectory

_TAG = re.compile(r"&lt;/?(?:guideline|plan|step|takeaway)&gt;")
_PLAN = re.compile(r"&lt;plan&gt;.*?(?:&lt;/plan&gt;|$)", re.DOTALL)
_BOX = (
    "border-left:4px solid {color};background:{fill};padding:4px 10px;margin:4px 0;"
    "white-space:pre-wrap;overflow-wrap:anywhere;border-radius:3px"
)
_HEAD = "font:600 11px/1.6 sans-serif;letter-spacing:.03em;opacity:.75"
_PLAN_BOX = "display:block;border:1px solid {color};border-radius:3px;padding:1px 6px;margin:3px 0"


def html(trajectory: Trajectory, prompt: str | None = None) -> str:
    """The text of a trajectory for `IPython.display.HTML`: no script, no link, no outside source.

    Args:
        prompt: the prompt's text, which a trajectory does not hold; left out when absent.

    All text is escaped; tags are kept, dimmed, because they are what the policy wrote. The classes
    keep MathJax from setting a response's formulas.
    """
    named = list(zip(trajectory.segments, segment_names(trajectory), strict=True))
    body = _column(trajectory, [item for item in named if item[0].kind != "prompt"], ())
    if prompt is not None:
        body = _box("prompt", f"prompt · {len(trajectory.prompt_ids)} tokens", prompt) + body
    end = f"finished: {trajectory.finish_reason}"
    if trajectory.violation:
        end += f" ({trajectory.violation})"
    foot = f"work {trajectory.work}, span {trajectory.span} tokens · {end}"
    return (
        f'<div class="npr-trajectory tex2jax_ignore mathjax_ignore" '
        f'style="font:13px/1.5 {_quoted(theme.MONO)};max-width:100%">'
        f'{body}<div style="{_HEAD}">{theme.escape(foot)}</div></div>'
    )


def _quoted(font: str) -> str:
    return font.replace('"', "'")


def _column(trajectory: Trajectory, named: Sequence[tuple[Segment, str]], path: BranchPath) -> str:
    """The segments of one branch, depth first, with the blocks in it as rows of columns."""
    depth = len(path)

    def step_of(item: tuple[Segment, str]) -> tuple[int, int] | None:
        return item[0].path[depth] if len(item[0].path) > depth else None

    parts = []
    for block, run in groupby(named, lambda item: (step_of(item) or (None,))[0]):
        if block is None:
            parts += [_segment(trajectory, segment, name) for segment, name in run]
            continue
        columns = "".join(
            f'<div style="flex:1 1 9em;min-width:9em">'
            f"{_column(trajectory, list(inner), (*path, step))}</div>"
            for step, inner in groupby(run, step_of)
        )
        parts.append(f'<div style="display:flex;gap:8px;overflow-x:auto">{columns}</div>')
    return "".join(parts)


def _segment(trajectory: Trajectory, segment: Segment, name: str) -> str:
    tokens = segment.end - segment.start
    head = f"{name} · {tokens} token{'s' * (tokens != 1)}"
    return _box(segment.kind, head, trajectory.segment_text(segment))


def _box(kind: str, head: str, text: str) -> str:
    color = theme.KINDS[kind]
    body = theme.escape(text)
    if kind == "guideline":
        plan = _PLAN_BOX.format(color=theme.fade(color, 0.6))
        body = _PLAN.sub(lambda match: f'<span style="{plan}">{match[0]}</span>', body)
    body = _TAG.sub(lambda match: f'<span style="opacity:.5">{match[0]}</span>', body)
    style = _BOX.format(color=color, fill=theme.fade(color, 0.09))
    return f'<div style="{style}"><div style="{_HEAD}">{theme.escape(head)}</div>{body}</div>'
