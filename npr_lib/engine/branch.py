"""The fork/join state machine of one response. No tensors: tokens come in, branches grow.

A branch is a list of runs of tokens and of blocks, a block is a list of branches. The tree is the
record; it is flattened once, when the response ends, into ids and the layout that was executed.

Branches advance in lock step *by position*: only those at the response's frontier, its smallest
last position, take a token in a step. So every event at a position is known when the next one
begins, and what a budget or a violation cuts off never depends on scheduling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from npr_lib.engine.api import EngineConfig, SamplingParams
from npr_lib.engine.kv import SlotTable
from npr_lib.engine.sampling import mix
from npr_lib.layout import BranchPath, Layout, Segment, causal_layout, extend_segments
from npr_lib.schema import ViolationKind
from npr_lib.tokenizer import TagIds, decode_with_tags, step_prefix
from npr_lib.trajectory import FinishReason, Mode, Trajectory

_LABEL = re.compile(r"\s*([1-9][0-9]{0,8})\s*:")
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a response is decoded under: tags (None: plain text only), end tokens, limits."""

    tokenizer: PreTrainedTokenizerBase
    tags: TagIds | None
    eos_ids: frozenset[int]
    config: EngineConfig
    mode: Mode
    max_position: int  # of the model's context


@dataclass(slots=True)
class Run:
    """Consecutive tokens of one kind in one branch; the first lies at position `start`."""

    kind: str
    start: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    behaviour: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def cut(self, length: int) -> None:
        """Keep the first `length` tokens."""
        for values in (self.ids, self.logprobs, self.behaviour, self.sampled, self.steps):
            del values[length:]


@dataclass(slots=True, eq=False)
class Branch:
    """One branch; the root is the response's trunk. `path` numbers blocks within their parent."""

    path: BranchPath
    key: int
    position: int
    parent: Branch | None = None
    kind: str = "text"
    state: str = "text"  # text | guideline | plan | takeaway: what a tag means here
    items: list[Run | list[Branch]] = field(default_factory=list)
    plans: list[list[int]] = field(default_factory=list)
    children: list[Branch] = field(default_factory=list)  # of the open block
    blocks: int = 0
    ended: bool = False
    sampled: list[int] = field(default_factory=list)  # this branch's own choices, in order
    # for the scheduler: KV of all but the `pending` tokens exists; `joining` awaits table.join
    pending: list[int] = field(default_factory=list)
    joining: list[Branch] = field(default_factory=list)
    table: SlotTable | None = None

    def push(self, token: int, step: int, chosen: tuple[float, float] | None = None) -> None:
        """Append a token at the next position. chosen: its two logprobs, None for a token that
        the engine writes."""
        self.position += 1
        run = self.items[-1] if self.items else None
        if not isinstance(run, Run) or run.kind != self.kind:
            run = Run(self.kind, self.position)
            self.items.append(run)
        run.ids.append(token)
        logprob, behaviour = chosen or (_NAN, _NAN)
        run.logprobs.append(logprob)
        run.behaviour.append(behaviour)
        run.sampled.append(chosen is not None)
        run.steps.append(step)
        self.pending.append(token)

    def leaves(self) -> Iterator[Branch]:
        """The branches that can take a token, depth first."""
        if self.children:
            for child in self.children:
                yield from child.leaves()
        elif not self.ended:
            yield self

    def tree(self) -> Iterator[Branch]:
        """This branch and every branch of its open blocks."""
        yield self
        for child in self.children:
            yield from child.tree()


Items = Sequence[Run | list[Branch]]


class Response:
    """One response being decoded: its branches, its ledger, and how it ended."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        grammar: Grammar,
        key: int,
        forced: dict[BranchPath, list[int]] | None = None,
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.params = params
        self.grammar = grammar
        self.forced = forced
        self.root = Branch((), key, len(prompt_ids) - 1)
        self.turn = [self.root]  # the branches that take a token in the next step
        self.flush: list[Branch] = []  # forward their pending tokens before those of `turn`
        self.finish_reason: FinishReason | None = None
        self.violation: str | None = None
        self.forwarded = 0  # completion tokens that have KV
        self._counts: list[int] = []  # completion tokens at each position after the prompt
        self._total = 0
        span = params.max_span or params.max_tokens
        self._last_position = min(len(prompt_ids) + span, grammar.max_position) - 1
        tags = grammar.tags if grammar.mode == "parallel" else None
        self._names = {getattr(tags, n): n for n in TagIds.__slots__} if tags else {}

    def _frontier(self) -> list[Branch]:
        """The branches at the smallest last position."""
        leaves = list(self.root.leaves())
        lowest = min(leaf.position for leaf in leaves)
        return [leaf for leaf in leaves if leaf.position == lowest]

    def forced_token(self, branch: Branch) -> int | None:
        """The token a replay puts next in this branch, None when sampling."""
        if self.forced is None:
            return None
        queue, index = self.forced.get(branch.path, ()), len(branch.sampled)
        if index >= len(queue):
            raise ValueError(f"replay: branch {branch.path} has no token {index}")
        return queue[index]

    def accept(self, tokens: Sequence[tuple[Branch, int, float, float]], step: int) -> None:
        """Give every branch of the frontier its token (id, logprob, behaviour logprob) and act on
        what they mean: fork, join, end."""
        for branch, token, logprob, behaviour in tokens:
            if self._names.get(token) == "guideline" and branch.state == "text":
                branch.kind = "guideline"
            branch.push(token, step, (logprob, behaviour))
            branch.sampled.append(token)
            self._count(branch.position)
        position = tokens[0][0].position
        limit = self._limit()
        if limit is not None and limit < position:
            return self._finish("length", limit)
        for branch, token, *_ in tokens:
            self._interpret(branch, token, step)
            if self.finish_reason:
                return None
        self.turn = self._frontier()
        limit = self._limit()
        if limit is not None and self.turn[0].position >= limit:
            self._finish("length", limit)
        return None

    def suspend(self) -> None:
        """Forget all KV: release the slot tables. Every token stays; all but the pending tokens of
        the branches that can take one must be forwarded again (`own_tokens`)."""
        for branch in self.root.tree():
            for holder in (branch, *branch.joining):
                if holder.table is not None:
                    holder.table.release()
                    holder.table = None
            branch.joining = []
            if branch.ended or branch.children:
                branch.pending = []
        self.flush = []
        self.forwarded = 0

    def _count(self, position: int) -> None:
        offset = position - len(self.prompt_ids)
        self._counts += [0] * (offset + 1 - len(self._counts))
        self._counts[offset] += 1
        self._total += 1

    def _limit(self) -> int | None:
        """The last position that fits the budgets, None while all tokens and one more may fit."""
        last = len(self.prompt_ids) + len(self._counts) - 1
        if self._total < self.params.max_tokens and last < self._last_position:
            return None
        over = self._total - self.params.max_tokens
        while over > 0:
            over -= self._counts[last - len(self.prompt_ids)]
            last -= 1
        return min(last, self._last_position)

    def _finish(self, reason: FinishReason, position: int, violation: str | None = None) -> None:
        """End the response; of every branch only what lies at or before `position` stays."""
        self.finish_reason, self.violation = reason, violation
        _truncate(self.root, position)

    def _invalid(self, branch: Branch, kind: ViolationKind, message: str) -> None:
        self._finish("invalid", branch.position, f"{kind}: {message}")

    def _interpret(self, branch: Branch, token: int, step: int) -> None:
        """What a sampled token does to the structure (tag-structure violations end it)."""
        tag, state = self._names.get(token), branch.state
        is_eos = token in self.grammar.eos_ids
        if tag is None and not is_eos:
            if state == "plan":
                branch.plans[-1].append(token)
        elif is_eos and state == "text" and branch.parent is None:
            # A replay one token after the other passes the EOS of what were branches.
            if self.forced is None or len(branch.sampled) == len(self.forced[()]):
                self._finish("stop", branch.position)
        elif is_eos:
            self._invalid(branch, ViolationKind.UNCLOSED, f"EOS inside {_where(branch)}")
        elif (state, tag) == ("text", "guideline"):
            if len(branch.path) >= self.grammar.config.max_depth:
                depth = len(branch.path) + 1
                self._invalid(branch, ViolationKind.TOO_DEEP, f"a block at depth {depth}")
            branch.state, branch.plans = "guideline", []
        elif (state, tag) == ("guideline", "plan"):
            branch.state = "plan"
            branch.plans.append([])
        elif (state, tag) == ("plan", "plan_end"):
            branch.state = "guideline"
        elif (state, tag) == ("guideline", "guideline_end"):
            self._fork(branch, step)
        elif (state, tag) == ("text", "step_end") and branch.parent is not None:
            self._end_branch(branch, step)
        elif (state, tag) == ("takeaway", "takeaway_end"):
            branch.state, branch.kind = "text", "step" if branch.path else "text"
        else:
            kind = ViolationKind.MISPLACED_TAG
            self._invalid(branch, kind, f"{tag} inside {_where(branch)}")

    def _fork(self, branch: Branch, step: int) -> None:
        """The pre-branch validator, then one branch a plan, each begun by the engine."""
        problem = self._check_plans(branch.plans)
        if problem:
            return self._invalid(branch, *problem)
        at_or_before = self._total - sum(self._counts[branch.position + 1 - len(self.prompt_ids) :])
        if self.params.max_tokens - at_or_before < self.params.min_fork_tokens:
            return self._finish("length", branch.position)
        for i in range(len(branch.plans)):
            path = (*branch.path, (branch.blocks, i))
            key = mix(branch.key, branch.blocks, i)
            child = Branch(path, key, branch.position, branch, kind="step")
            for token in step_prefix(i + 1, self.grammar.tokenizer, self.grammar.tags):
                child.push(token, step)
                self._count(child.position)
            branch.children.append(child)
        branch.items.append(branch.children)
        branch.blocks += 1
        self.flush.append(branch)
        return None

    def _check_plans(self, plans: Sequence[Sequence[int]]) -> tuple[ViolationKind, str] | None:
        most = self.grammar.config.max_branches
        if not plans:
            return ViolationKind.NO_PLAN, "a guideline without a plan"
        if len(plans) > most:
            return ViolationKind.TOO_MANY_BRANCHES, f"{len(plans)} plans, at most {most}"
        for i, ids in enumerate(plans, 1):
            label = _LABEL.match(self.grammar.tokenizer.decode(ids))
            if label is None or int(label[1]) != i:
                return ViolationKind.PLAN_INDEX, f"plan {i} does not begin with '{i}:'"
        return None

    def _end_branch(self, branch: Branch, step: int) -> None:
        """`</step>`; the last branch of a block to end joins it."""
        branch.ended = True
        parent = branch.parent
        if not all(child.ended for child in parent.children):
            return
        self.flush += parent.children
        parent.joining, parent.children = parent.children, []
        parent.position = max(child.position for child in parent.joining)
        parent.state = parent.kind = "takeaway"
        parent.push(self.grammar.tags.takeaway, step)
        self._count(parent.position)

    def trajectory(self) -> Trajectory:
        """Flatten the tree of a finished response."""
        assert self.finish_reason is not None
        parallel = self.grammar.mode == "parallel"
        flat = _Flat(len(self.prompt_ids))
        flat.walk(self.root.items, (), ())
        n = len(self.prompt_ids) + len(flat.ids)
        layout = flat.layout() if parallel else causal_layout(n, len(self.prompt_ids))
        grammar = self.grammar
        reading = (grammar.tokenizer, grammar.tags, grammar.eos_ids)
        text, spelled = decode_with_tags(flat.ids, *reading)
        every = self.prompt_ids + flat.ids
        texts = [
            decode_with_tags(every[s.start : s.end], *reading)[0]
            for s in layout.segments
            if s.kind != "prompt"
        ]
        return Trajectory(
            prompt_ids=self.prompt_ids,
            completion_ids=flat.ids,
            logprobs=flat.logprobs,
            behaviour_logprobs=flat.behaviour,
            sampled=flat.sampled,
            decode_steps=flat.steps,
            layout=layout,
            finish_reason=self.finish_reason,
            text=text,
            segment_texts=texts,
            mode=self.grammar.mode,
            violation=self.violation,
            temperature=self.params.temperature,
            spelled=spelled,
            max_branches=self.grammar.config.max_branches,
            max_depth=self.grammar.config.max_depth,
        )


class _Flat:
    """The tree in token order: depth first, branches of a block one after the other."""

    def __init__(self, prompt_len: int) -> None:
        self.offset = prompt_len
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.behaviour: list[float] = []
        self.sampled: list[bool] = []
        self.steps: list[int] = []
        self.positions = list(range(prompt_len))
        self.segments = [Segment("prompt", (), 0, prompt_len)]
        self.blocks = 0
        self.hidden: list[tuple[int, int, int, tuple[int, int]]] = []  # depth, start, end, interval

    def walk(self, items: Items, path: BranchPath, hidden: tuple[tuple[int, int], ...]) -> None:
        for item in items:
            if isinstance(item, Run):
                self._add(item, path, hidden)
                continue
            number, first = self.blocks, self.offset + len(self.ids)
            self.blocks += 1
            for i, child in enumerate(item):
                own = self.offset + len(self.ids)
                interval = (first, own) if own > first else (0, 0)
                self.walk(child.items, (*path, (number, i)), (*hidden, interval))

    def _add(self, run: Run, path: BranchPath, hidden: tuple[tuple[int, int], ...]) -> None:
        start = self.offset + len(self.ids)
        self.ids += run.ids
        self.logprobs += run.logprobs
        self.behaviour += run.behaviour
        self.sampled += run.sampled
        self.steps += run.steps
        self.positions += range(run.start, run.start + len(run.ids))
        end = self.offset + len(self.ids)
        extend_segments(self.segments, run.kind, path, end)
        self.hidden += [(depth, start, end, interval) for depth, interval in enumerate(hidden)]

    def layout(self) -> Layout:
        depth = max((d + 1 for d, *_ in self.hidden), default=0)
        hidden = np.zeros((depth, len(self.positions), 2), np.int32)
        for d, start, end, interval in self.hidden:
            hidden[d, start:end] = interval
        return Layout(np.asarray(self.positions), hidden, self.offset, self.segments)


def own_tokens(branch: Branch) -> tuple[list[int], np.ndarray, np.ndarray]:
    """What a resumed branch forwards again: ids, positions [n] and hidden intervals [D, n, 2] of
    its tokens and of the blocks it joined, without its pending tokens and its open block."""
    flat = _Flat(0)
    flat.walk(branch.items[:-1] if branch.children else branch.items, (), ())
    layout, n = flat.layout(), len(flat.ids) - len(branch.pending)
    return flat.ids[:n], layout.position_ids[:n], layout.hidden[:, :n]


def _truncate(branch: Branch, position: int) -> None:
    """Drop every token after `position`, and what is empty then."""
    kept: list[Run | list[Branch]] = []
    for item in branch.items:
        if isinstance(item, Run):
            item.cut(max(0, position + 1 - item.start))
            if item.ids:
                kept.append(item)
            continue
        for child in item:
            _truncate(child, position)
        if any(child.items for child in item):
            kept.append(item)
    branch.items = kept


def _where(branch: Branch) -> str:
    if branch.state != "text":
        return f"a {branch.state}"
    return "a step" if branch.path else "the text outside a block"
