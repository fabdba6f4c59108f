"""Layout: from token ids to positions and visibility, in one pass (design section 4).

Paper section 2 ("parallel attention mask" and "parallel positional encoding"). The same relation
is written here for all tokens at once that the engine realises with KV slots:

    visible(q, k)  <=>  k <= q  and no block holds q and k in two different branches

The branches of a block follow one another in the token order, so what a token may not see of what
came before it is, for each block around it, one interval: from the block's first `<step>` to its
own. Two integers a token and a level of nesting are the whole mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from npr_lib.reasoning.style import COMPACT, Style
from npr_lib.reasoning.tokens import COMPACT_IDS, StyleIds, TagIds, step_prefix


class LayoutError(ValueError):
    """Token ids that are no well-formed response; `index` is the offending token's."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)  # which is what another process makes it from
        self.index = index
        self.reason = reason

    def __str__(self) -> str:
        return f"token {self.index}: {self.reason}"


# ((block, branch), ...), outermost first; blocks are numbered over the whole response from 0,
# the branches of a block from 0
BranchPath = tuple[tuple[int, int], ...]


SegmentKind = Literal["prompt", "guideline", "step", "takeaway", "text"]


class Segment(NamedTuple):
    """A run of tokens of one kind in one branch, `start <= t < end` over prompt + completion."""

    kind: SegmentKind
    path: BranchPath
    start: int
    end: int


@dataclass(slots=True, eq=False)
class Layout:
    """Positions and visibility of one token sequence of length n (prompt included).

    position_ids: int64 [n].
    hidden: int32 [D, n, 2]; at nesting level d token q must not see the keys k with
        hidden[d, q, 0] <= k < hidden[d, q, 1] (empty where both are 0).
    prompt_len: tokens of the prompt.
    segments: the same tokens as a tree in depth-first order; nothing lies between two of them.
    """

    position_ids: np.ndarray
    hidden: np.ndarray
    prompt_len: int
    segments: list[Segment] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.position_ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Layout) else False
        depth = max(len(self.hidden), len(other.hidden))
        return (
            self.prompt_len == other.prompt_len
            and self.segments == other.segments
            and np.array_equal(self.position_ids, other.position_ids)
            and np.array_equal(deepen(self.hidden, depth), deepen(other.hidden, depth))
        )

    @property
    def span(self) -> int:
        """Critical path in tokens: largest position + 1 - prompt length."""
        return int(self.position_ids.max(initial=self.prompt_len - 1)) + 1 - self.prompt_len


def deepen(hidden: np.ndarray, depth: int) -> np.ndarray:
    """`hidden` [D, n, 2] with empty levels appended up to `depth`."""
    missing = np.zeros((depth - hidden.shape[0], *hidden.shape[1:]), dtype=hidden.dtype)
    return np.concatenate([hidden, missing])


def causal_layout(length: int, prompt_len: int = 0) -> Layout:
    """The layout of ordinary sequential decoding: consecutive positions, nothing hidden."""
    segments = [Segment("prompt", (), 0, prompt_len), Segment("text", (), prompt_len, length)]
    return Layout(
        np.arange(length),
        np.zeros((0, length, 2), np.int32),
        prompt_len,
        [s for s in segments if s.end > s.start],
    )


def extend_segments(segments: list[Segment], kind: SegmentKind, path: BranchPath, end: int) -> None:
    """Let the tokens up to `end` belong to (kind, path): the last segment grows or one begins."""
    last = segments[-1] if segments else Segment("prompt", (), 0, 0)
    if segments and (last.kind, last.path) == (kind, path):
        segments[-1] = last._replace(end=end)
    else:
        segments.append(Segment(kind, path, last.end, end))


@dataclass(slots=True)
class _Frame:
    """An open block: where its steps begin, which step is open, how far positions reached."""

    block: int
    state: str = "guideline"  # plan | fork | step | between | takeaway | closed
    first_step: int = 0
    own_step: int = 0
    fork_position: int = 0
    max_position: int = 0
    plans: int = 0
    steps: int = 0


# state in front of a tag -> state behind it, for the tags inside a block
_TRANSITIONS = {
    ("guideline", "plan"): "plan",
    ("plan", "plan_end"): "guideline",
    ("guideline", "guideline_end"): "fork",
    ("fork", "step"): "step",
    ("between", "step"): "step",
    ("step", "step_end"): "between",
    ("between", "takeaway"): "takeaway",
    ("takeaway", "takeaway_end"): "closed",
}


def layout(
    token_ids: Sequence[int],
    tags: TagIds,
    prompt_len: int = 0,
    writes: StyleIds = COMPACT_IDS,
) -> Layout:
    """Positions and hidden intervals of a complete response, in O(n * depth).

    The prompt is one plain segment whatever ids it contains. A branch reaches from the style's
    white space before its `<step>` to that after its `</step>`. Raises `LayoutError` with the index
    of the first token that breaks the structure: a tag out of order or without that white space, a
    token between two steps, as many steps as plans not given, or an end inside a block.
    """
    names = {getattr(tags, name): name for name in TagIds.__slots__}
    ids = np.asarray(token_ids, np.int64)
    n = len(ids)
    position_ids = np.arange(n)
    levels: list[np.ndarray] = []
    stack: list[_Frame] = []
    segments = [Segment("prompt", (), 0, prompt_len)] if prompt_len else []
    blocks = 0
    position = prompt_len - 1
    # Work per tag, not per token: the tokens up to the next tag all lie where the first one does.
    tag_indices = np.flatnonzero(np.isin(ids[prompt_len:], tags.ids)) + prompt_len
    for start, end, at in _pieces(ids, tag_indices.tolist(), prompt_len, tags, writes):
        tag = names.get(int(ids[at]))
        position += 1
        if tag == "guideline" and (not stack or stack[-1].state == "step"):
            stack.append(_Frame(blocks))
            blocks += 1
        elif tag is not None:
            if not stack:
                raise LayoutError(at, f"{tag} outside a block")
            position = _advance(stack[-1], tag, start, position, end - start)
            around = {"step": writes.before_step, "step_end": writes.after_step}.get(tag, ())
            if end - start != 1 + len(around):
                white = writes.style.before_step if tag == "step" else writes.style.after_step
                raise LayoutError(at, f"{tag} without {white!r}, which is its branch's")
        elif stack and stack[-1].state in ("fork", "between"):
            raise LayoutError(start, "a token between two steps belongs to no branch")
        position_ids[start:end] = np.arange(position, position + end - start)
        position += end - start - 1
        path = []
        for depth, frame in enumerate(stack):
            if frame.state == "step" or (frame is stack[-1] and tag == "step_end"):
                path.append((frame.block, frame.steps - 1))
                if depth == len(levels):
                    levels.append(np.zeros((n, 2), np.int32))
                if frame.own_step > frame.first_step:
                    levels[depth][start:end] = frame.first_step, frame.own_step
        extend_segments(segments, _kind(stack, path), tuple(path), end)
        if stack and stack[-1].state == "closed":
            stack.pop()
    if stack:
        raise LayoutError(n, f"ends inside a block ({stack[-1].state})")
    hidden = np.stack(levels) if levels else np.zeros((0, n, 2), np.int32)
    return Layout(position_ids, hidden, prompt_len, segments)


def _pieces(
    ids: np.ndarray, indices: Sequence[int], start: int, tags: TagIds, writes: StyleIds
) -> Iterator[tuple[int, int, int]]:
    """The ids from `start` on cut into tags (at `indices`), `<step>` and `</step>` with the style's
    white space that belongs to them, and the runs between: start, end, index of the tag if any."""
    before, after = writes.before_step, writes.after_step
    for index in indices:
        first, last = index, index + 1
        if before and ids[index] == tags.step:
            head = max(start, index - len(before))
            first = head if tuple(ids[head:index]) == before else index
        elif after and ids[index] == tags.step_end:
            last += len(after) if tuple(ids[last : last + len(after)]) == after else 0
        if first > start:
            yield start, first, start
        yield first, last, index
        start = last
    if len(ids) > start:
        yield start, len(ids), start


def _kind(stack: Sequence[_Frame], path: Sequence[tuple[int, int]]) -> SegmentKind:
    """The segment kind of a token inside the open blocks `stack`."""
    if stack and stack[-1].state in ("guideline", "plan", "fork"):
        return "guideline"
    if stack and stack[-1].state in ("takeaway", "closed"):
        return "takeaway"
    return "step" if path else "text"


def _advance(frame: _Frame, tag: str, index: int, position: int, length: int) -> int:
    """Apply a tag to the innermost open block; it and its white space are `length` tokens from
    `index` on. Returns the position of the first."""
    state = _TRANSITIONS.get((frame.state, tag))
    if state is None:
        raise LayoutError(index, f"{tag} in state {frame.state}")
    if tag == "plan":
        frame.plans += 1
    elif tag == "guideline_end":
        if not frame.plans:
            raise LayoutError(index, "a guideline without a plan")
        frame.fork_position = frame.max_position = position
        frame.first_step = index + 1
    elif tag == "step":
        frame.steps += 1
        frame.own_step = index
        position = frame.fork_position + 1
    elif tag == "step_end":
        frame.max_position = max(frame.max_position, position + length - 1)
    elif tag == "takeaway":
        if frame.steps != frame.plans:
            raise LayoutError(index, f"{frame.steps} steps for {frame.plans} plans")
        position = frame.max_position + 1
    frame.state = state
    return position


def sampled_tokens(
    token_ids: Sequence[int],
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    style: Style = COMPACT,
) -> list[bool]:
    """For each completion token of a response, whether the policy chooses it.

    The engine writes `<step>` and "i:" at the head of branch i, `<takeaway>`, and the style's white
    space around them and after `</step>` (less, where a budget cut it). LayoutError where the ids
    hold something else in their place.
    """
    tags, writes = TagIds.from_tokenizer(tokenizer), StyleIds.from_tokenizer(tokenizer, style)
    sampled = [True] * (len(token_ids) - layout.prompt_len)
    begun: set[BranchPath] = set()
    for segment in layout.segments:
        own = list(token_ids[segment.start : segment.end])
        written: list[tuple[int, list[int]]] = []  # where in the segment, and what
        if segment.kind == "takeaway":
            written.append((0, [tags.takeaway, *writes.in_takeaway]))
        elif segment.path and segment.path not in begun:
            begun.add(segment.path)
            written.append((0, step_prefix(segment.path[-1][1] + 1, tokenizer, tags, writes)))
        if segment.kind == "step" and tags.step_end in own:
            written.append((own.index(tags.step_end) + 1, list(writes.after_step)))
        for at, ids in written:
            del ids[len(own) - at :]
            if own[at : at + len(ids)] != ids:
                raise LayoutError(segment.start + at, f"expected {tokenizer.decode(ids)!r}")
            first = segment.start + at - layout.prompt_len
            sampled[first : first + len(ids)] = [False] * len(ids)
    return sampled


def branch_paths(segments: Sequence[Segment]) -> list[BranchPath]:
    """The path of every segment, with blocks counted within their parent."""
    ordinals: dict[int, int] = {}
    seen: Counter[BranchPath] = Counter()
    paths: list[BranchPath] = []
    for segment in segments:
        path: BranchPath = ()
        for block, branch in segment.path:
            if block not in ordinals:
                ordinals[block] = seen[path]
                seen[path] += 1
            path = (*path, (ordinals[block], branch))
        paths.append(path)
    return paths


def by_branch(
    layout: Layout, completion_ids: Sequence[int], chosen: Sequence[bool]
) -> dict[BranchPath, list[int]]:
    """The chosen tokens of every branch, keyed by its path with blocks counted within their parent
    instead of over the whole response: what a replay or a prefix gives the engine."""
    tokens: dict[BranchPath, list[int]] = {}
    for segment, path in zip(layout.segments, branch_paths(layout.segments), strict=True):
        if segment.kind != "prompt":
            own = range(segment.start - layout.prompt_len, segment.end - layout.prompt_len)
            tokens.setdefault(path, []).extend(completion_ids[t] for t in own if chosen[t])
    return tokens
