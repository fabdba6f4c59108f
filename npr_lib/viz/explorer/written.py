"""The parts a sequential response wrote: decoded token after token, but in the form of branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, count

from npr_lib.reasoning.layout import BranchPath, Layout, Segment, SegmentKind, extend_segments
from npr_lib.reasoning.schema import Block
from npr_lib.reasoning.trajectory import Trajectory

Pieces = Callable[[Sequence[int], str], list[str]]
Cut = tuple[int, SegmentKind, BranchPath]  # from this character on: kind and path


def as_written(trajectory: Trajectory, pieces: Pieces) -> Trajectory:
    """A sequential response with the segments of its text in place of the one that was executed.

    Positions and visibility stay those it was decoded under. `pieces`: `explorer.reader`'s.
    """
    prompt = len(trajectory.prompt_ids)
    cuts: list[Cut] = [
        (0, "text", ()),
        *_cuts(trajectory.graph.blocks, (), trajectory.text, count()),
    ]
    segments = [Segment("prompt", (), 0, prompt)] if prompt else []
    texts: list[str] = []
    tokens = pieces(trajectory.completion_ids, trajectory.text)
    offsets = accumulate(map(len, tokens), initial=0)
    at = 0
    for t, (token, offset) in enumerate(zip(tokens, offsets, strict=False), start=prompt):
        while at + 1 < len(cuts) and cuts[at + 1][0] <= offset:
            at += 1
        known = len(segments)
        extend_segments(segments, *cuts[at][1:], t + 1)
        if len(segments) > known:
            texts.append("")
        texts[-1] += token
    executed = trajectory.layout
    layout = Layout(executed.position_ids, executed.hidden, prompt, segments)
    written = replace(trajectory, layout=layout, segment_texts=texts)
    written.graph = trajectory.graph  # the text is the same: not parsed again
    return written


def _cuts(
    blocks: Sequence[Block], path: BranchPath, text: str, numbers: Iterator[int]
) -> Iterator[Cut]:
    for block in blocks:
        number, end = next(numbers), block.start
        yield block.start, "guideline", path
        for i, step in enumerate(block.steps):
            inner = (*path, (number, i))
            yield step.start, "step", inner
            yield from _cuts(step.blocks, inner, text, numbers)
            end = step.end
        takeaway = text.find("<takeaway>", end, block.end)
        if takeaway >= 0:
            yield takeaway, "takeaway", path
        yield block.end, "step" if path else "text", path
