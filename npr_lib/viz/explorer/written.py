"""The parts of a text over its tokens: of what was decoded one after the other, in the form of
branches, and of what was made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, count, zip_longest

import numpy as np

from npr_lib.reasoning.layout import BranchPath, Layout, Segment, SegmentKind, extend_segments
from npr_lib.reasoning.schema import Block, ReasoningGraph
from npr_lib.reasoning.trajectory import Trajectory

Pieces = Callable[[Sequence[int], str], list[str]]
Cut = tuple[int, SegmentKind, BranchPath]  # from this character on: kind and path


def as_written(trajectory: Trajectory, pieces: Pieces) -> Trajectory:
    """A sequential response with the segments of its text in place of the one that was executed.

    Positions and visibility stay those it was decoded under. `pieces`: `explorer.reader`'s.
    """
    executed, prompt = trajectory.layout, len(trajectory.prompt_ids)
    tokens = pieces(trajectory.completion_ids, trajectory.text)
    segments, texts = written_segments(trajectory.graph, trajectory.text, tokens, prompt)
    layout = Layout(executed.position_ids, executed.hidden, prompt, segments)
    written = replace(trajectory, layout=layout, segment_texts=texts)
    written.graph = trajectory.graph  # the text is the same: not parsed again
    return written


def written_segments(
    graph: ReasoningGraph, text: str, tokens: Sequence[str], prompt_len: int = 0
) -> tuple[list[Segment], list[str]]:
    """The segments of a text's parts over its tokens, and the text of each but the prompt's.

    A token lies where its first character lies; what stands between two steps lies in the first.
    """
    cuts: list[Cut] = [(0, "text", ()), *_cuts(graph.blocks, (), text, count())]
    segments = [Segment("prompt", (), 0, prompt_len)] if prompt_len else []
    texts: list[str] = []
    offsets = accumulate(map(len, tokens), initial=0)
    at = 0
    for t, (token, offset) in enumerate(zip(tokens, offsets, strict=False), start=prompt_len):
        while at + 1 < len(cuts) and cuts[at + 1][0] <= offset:
            at += 1
        known = len(segments)
        extend_segments(segments, *cuts[at][1:], t + 1)
        if len(segments) > known:
            texts.append("")
        texts[-1] += token
    return segments, texts


def parallel_layout(segments: Sequence[Segment]) -> Layout:
    """Positions and visibility of a tree of segments, which begins at token 0: those of design
    section 4, whatever the tags are made of and whether or not the blocks are whole."""
    n, depth = segments[-1].end, max(len(segment.path) for segment in segments)
    positions, hidden = np.zeros(n, np.int64), np.zeros((depth, n, 2), np.int32)
    last: dict[BranchPath, int] = {(): -1}  # position of the last token of a branch
    joined: dict[BranchPath, int] = {}  # largest position in the blocks that a branch has joined
    begun: dict[BranchPath, int] = {}  # first token of a branch
    opened: dict[int, int] = {}  # first token of a block's branches
    for _, path, start, end in segments:
        for level, (block, _) in enumerate(path):
            outer, branch = path[:level], path[: level + 1]
            if block not in opened:
                opened[block] = start
                last[outer] = max(last[outer], joined.pop(outer, -1))
            if branch not in last:
                last[branch], begun[branch] = last[outer], start
        first = max(last[path], joined.pop(path, -1)) + 1
        positions[start:end] = np.arange(first, first + end - start)
        last[path] = first + end - start - 1
        for level, (block, _) in enumerate(path):
            outer, branch = path[:level], path[: level + 1]
            joined[outer] = max(joined.get(outer, -1), last[path])
            if begun[branch] > opened[block]:
                hidden[level, start:end] = opened[block], begun[branch]
    return Layout(positions, hidden, 0, list(segments))


def _cuts(
    blocks: Sequence[Block], path: BranchPath, text: str, numbers: Iterator[int]
) -> Iterator[Cut]:
    for block, following in zip_longest(blocks, blocks[1:]):
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
        # white space between two blocks needs no part of its own
        if following is None or text[block.end : following.start].strip():
            yield block.end, "step" if path else "text", path
