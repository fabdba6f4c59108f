"""From the tree of branches to the flat record: ids, the layout that was executed, Trajectory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from npr_lib.engine.branch import Branch, Response, Run
from npr_lib.reasoning.layout import BranchPath, Layout, Segment, causal_layout, extend_segments
from npr_lib.reasoning.tokens import decode_with_tags
from npr_lib.reasoning.trajectory import Trajectory

_NAN = float("nan")


def trajectory(response: Response) -> Trajectory:
    """What a response became; of one that has not ended, so far."""
    grammar, prompt_len = response.grammar, len(response.prompt_ids)
    flat = _Flat(prompt_len)
    flat.walk(response.root.items, (), (), iter(response.root.entropies))
    ids, logprobs, behaviour, sampled, steps = map(list, zip(*flat.tokens, strict=True))
    every = response.prompt_ids + ids
    parallel = grammar.mode == "parallel"
    layout = flat.layout() if parallel else causal_layout(len(every), prompt_len)
    texts: list[str] = []
    spelled: list[int] = []
    length = 0
    for segment in layout.segments:
        if segment.kind != "prompt":
            own = every[segment.start : segment.end]
            text, marks = decode_with_tags(own, grammar.tokenizer, grammar.tags, grammar.eos_ids)
            texts.append(text)
            spelled += [length + mark for mark in marks]
            length += len(text)
    return Trajectory(
        prompt_ids=response.prompt_ids,
        completion_ids=ids,
        logprobs=logprobs,
        behaviour_logprobs=behaviour,
        sampled=sampled,
        decode_steps=steps,
        entropies=flat.entropies,
        layout=layout,
        finish_reason=response.finish_reason or "cancelled",
        text="".join(texts),
        segment_texts=texts,
        mode=grammar.mode,
        violation=response.violation,
        temperature=response.params.temperature,
        spelled=tuple(spelled),
        max_branches=grammar.config.max_branches,
        max_depth=grammar.config.max_depth,
        style=grammar.writes.style,
    )


def own_tokens(branch: Branch) -> tuple[list[int], np.ndarray, np.ndarray]:
    """What a resumed branch forwards again: ids, positions [n] and hidden intervals [D, n, 2] of
    its tokens and of the blocks it joined, without its pending tokens and its open block."""
    flat = _Flat(0)
    flat.walk(branch.items[:-1] if branch.children else branch.items, (), (), iter(()))
    n = len(flat.tokens) - len(branch.pending)
    layout = flat.layout()
    return [token[0] for token in flat.tokens[:n]], layout.position_ids[:n], layout.hidden[:, :n]


class _Flat:
    """The tree in token order: depth first, branches of a block one after the other."""

    def __init__(self, prompt_len: int) -> None:
        self.offset = prompt_len
        self.tokens: list[tuple[int, float, float, bool, int]] = []
        self.entropies: list[float] = []
        self.positions = list(range(prompt_len))
        self.segments = [Segment("prompt", (), 0, prompt_len)]
        self.blocks = 0
        self.hidden: list[tuple[int, int, int, tuple[int, int]]] = []  # depth, start, end, interval

    def walk(
        self,
        items: Sequence[Run | list[Branch]],
        path: BranchPath,
        hidden: tuple[tuple[int, int], ...],
        entropies: Iterator[float],
    ) -> None:
        """entropies: of the branch's sampled tokens, in order."""
        for item in items:
            if isinstance(item, Run):
                self._add(item, path, hidden)
                self.entropies += (next(entropies, _NAN) if t[3] else _NAN for t in item.tokens)
                continue
            number, first = self.blocks, self.offset + len(self.tokens)
            self.blocks += 1
            for i, child in enumerate(item):
                own = self.offset + len(self.tokens)
                interval = (first, own) if own > first else (0, 0)
                inner = (*path, (number, i)), (*hidden, interval)
                self.walk(child.items, *inner, iter(child.entropies))

    def _add(self, run: Run, path: BranchPath, hidden: tuple[tuple[int, int], ...]) -> None:
        start = self.offset + len(self.tokens)
        self.tokens += run.tokens
        self.positions += range(run.start, run.start + len(run.tokens))
        end = self.offset + len(self.tokens)
        extend_segments(self.segments, run.kind, path, end)
        self.hidden += [(depth, start, end, interval) for depth, interval in enumerate(hidden)]

    def layout(self) -> Layout:
        depth = max((d + 1 for d, *_ in self.hidden), default=0)
        hidden = np.zeros((depth, len(self.positions), 2), np.int32)
        for d, start, end, interval in self.hidden:
            hidden[d, start:end] = interval
        return Layout(np.asarray(self.positions, np.int64), hidden, self.offset, self.segments)
