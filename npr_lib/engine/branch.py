"""The fork/join state machine of one response. No tensors: tokens come in, branches grow.

A branch is a list of runs of tokens and of blocks, a block is a list of branches. The tree is the
record; record.py flattens it into ids and the layout that was executed.

Branches advance in lock step *by position*: only those at the response's frontier, its smallest
last position, take a token in a step. So every event at a position is known when the next one
begins, and what a budget or a violation cuts off never depends on scheduling.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from npr_lib.engine.api import (
    BranchEnd,
    EngineConfig,
    EngineStats,
    Event,
    Fork,
    Join,
    Prefix,
    SamplingParams,
    Token,
)
from npr_lib.engine.kv import SlotTable
from npr_lib.engine.sampling import mix
from npr_lib.reasoning.layout import BranchPath, SegmentKind
from npr_lib.reasoning.schema import LABEL, ViolationKind
from npr_lib.reasoning.tokens import COMPACT_IDS, StyleIds, TagIds, step_prefix
from npr_lib.reasoning.trajectory import FinishReason, Mode

_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a response is decoded under: tags (None: plain text only), end tokens, limits, and what
    the engine writes around the tags."""

    tokenizer: PreTrainedTokenizerBase
    tags: TagIds | None
    eos_ids: frozenset[int]
    config: EngineConfig
    mode: Mode
    max_position: int  # of the model's context
    writes: StyleIds = COMPACT_IDS


@dataclass(slots=True)
class Run:
    """Consecutive tokens of one kind in one branch; the first lies at position `start`.

    tokens: (id, logprob, behaviour logprob, sampled, step) each.
    """

    kind: SegmentKind
    start: int
    tokens: list[tuple[int, float, float, bool, int]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Branch:
    """One branch; the root is the response's trunk. `path` numbers blocks within their parent."""

    path: BranchPath
    key: int
    position: int
    parent: Branch | None = None
    kind: SegmentKind = "text"
    state: str = "text"  # text | guideline | plan | takeaway: what a tag means here
    items: list[Run | list[Branch]] = field(default_factory=list)
    plans: list[list[int]] = field(default_factory=list)
    children: list[Branch] = field(default_factory=list)  # of the open block
    blocks: int = 0
    ended: bool = False
    sampled: list[int] = field(default_factory=list)  # its own choices, in order, prefix included
    # of the choices without the prefix's; empty where the engine tells none
    entropies: list[float] = field(default_factory=list)
    # for the scheduler: KV of all but the `pending` tokens exists; `joining` awaits table.join
    pending: list[int] = field(default_factory=list)
    joining: list[Branch] = field(default_factory=list)
    table: SlotTable | None = None

    @property
    def own_table(self) -> SlotTable:
        """The table of a branch that runs."""
        assert self.table is not None, "a branch without KV"
        return self.table

    def push(self, token: int, logprob: float, behaviour: float, sampled: bool, step: int) -> None:
        """Append a token at the next position."""
        self.position += 1
        run = self.items[-1] if self.items else None
        if type(run) is not Run or run.kind != self.kind:
            run = Run(self.kind, self.position)
            self.items.append(run)
        run.tokens.append((token, logprob, behaviour, sampled, step))
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


@dataclass(slots=True, eq=False)
class Call:
    """One call of the engine: its number, when it began, and where to tell what happens in it
    (None: nobody listens)."""

    number: int
    stats: EngineStats
    events: list[Event] | None
    first_step: int = 0
    since: float = 0.0  # time.perf_counter()

    def __post_init__(self) -> None:
        self.first_step, self.since = self.stats.steps, time.perf_counter()

    @property
    def step(self) -> int:
        """The engine's present step, counted from the call's first."""
        return self.stats.steps - self.first_step


class Turn(Protocol):
    """What choosing a token asks of a branch."""

    @property
    def path(self) -> BranchPath: ...
    @property
    def key(self) -> int: ...
    @property
    def sampled(self) -> Sequence[int]: ...


class Responding(Protocol):
    """What choosing a token asks of a request."""

    @property
    def response(self) -> Response: ...


class Response:
    """One response being decoded: its branches, its ledger, and how it ended.

    key: of its random numbers. index: its place in the call. forced: what a replay writes.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        grammar: Grammar,
        key: int,
        call: Call,
        index: int = 0,
        forced: Prefix | None = None,
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.params = params
        self.grammar = grammar
        self.forced = forced
        self.call = call
        self.index = index
        self.distribution = params.distribution
        self.root = Branch((), key, len(prompt_ids) - 1)
        self.turn = [self.root]  # the branches that take a token in the next step
        self.flush: list[Branch] = []  # forward their pending tokens before those of `turn`
        self.finish_reason: FinishReason | None = None
        self.violation: str | None = None
        self.forwarded = 0  # completion tokens that have KV
        self.surplus = 0  # tokens of a prefix ahead of its frontier: a budget may yet cut them off
        self._leaves = [self.root]  # all branches that can take a token
        self._counts: list[int] = []  # completion tokens at each position after the prompt
        self._total = 0
        span = params.max_span or params.max_tokens
        self._last_position = min(len(prompt_ids) + span, grammar.max_position) - 1
        tags = grammar.tags if grammar.mode == "parallel" else None
        self._names = {getattr(tags, n): n for n in TagIds.__slots__} if tags else {}
        self._acts = self._names.keys() | grammar.eos_ids  # tokens that may change the structure

    def forced_token(self, branch: Turn) -> int | None:
        """The token a replay puts next in this branch, None when sampling."""
        if self.forced is None:
            return None
        queue, index = self.forced.get(branch.path, ()), len(branch.sampled)
        if index >= len(queue):
            raise ValueError(f"replay: branch {branch.path} has no token {index}")
        return queue[index]

    def accept(
        self, tokens: Sequence[tuple[Branch, int, float, float]], step: int, sampled: bool = True
    ) -> None:
        """Give every branch of the frontier its token (id, logprob, behaviour logprob) and act on
        what they mean: fork, join, end."""
        for branch, token, logprob, behaviour in tokens:
            if branch.state == "text" and self._names.get(token) == "guideline":
                branch.kind = "guideline"
            self._push(branch, token, step, logprob, behaviour, sampled)
            branch.sampled.append(token)
        position = tokens[0][0].position
        limit = self._limit()
        if limit is not None and limit < position:
            return self._finish("length", limit)
        grown = len(tokens) == len(self._leaves)  # every branch by a plain token: same turn again
        for branch, token, *_ in tokens:
            if self.params.stop and sampled and self._stopped(branch):
                self._finish("stop_string", position)
            elif token in self._acts:
                grown = False
                self._interpret(branch, token, step)
            elif branch.state == "plan":
                branch.plans[-1].append(token)
            if self.finish_reason:
                return None
        if not grown:
            self._set_turn()
        limit = self._limit()
        if limit is not None and self.turn[0].position >= limit:
            self._finish("length", limit)
        return None

    def restore(self, prefix: Prefix) -> None:
        """Write what a prefix holds, as if it had been decoded (its logprobs are nan, `sampled`
        is False). ValueError where it breaks the grammar, is complete, or holds tokens for a
        branch that does not come about."""
        left = sum(map(len, prefix.values()))
        while not self.finish_reason:
            ready = [b for b in self._leaves if len(b.sampled) < len(prefix.get(b.path, ()))]
            if not ready:
                break
            lowest = min(branch.position for branch in ready)
            turn = [branch for branch in ready if branch.position == lowest]
            tokens = [(b, int(prefix[b.path][len(b.sampled)]), _NAN, _NAN) for b in turn]
            self.accept(tokens, 0, sampled=False)
            left -= len(turn)
        if self.finish_reason:
            raise ValueError(f"prefix: it already ends ({self.violation or self.finish_reason})")
        if left:
            raise ValueError(
                f"prefix: {left} tokens are of branches that end before or never begin"
            )
        self.surplus = sum(self._counts[self.turn[0].position + 1 - len(self.prompt_ids) :])
        self.suspend()

    def cancel(self) -> None:
        """End now, with the tokens up to the frontier."""
        self._finish("cancelled", self.turn[0].position)

    def emit(self, kind: type[Event], branch: Branch, *fields: object) -> None:
        """Tell whoever listens."""
        call = self.call
        if call.events is not None:
            seconds = time.perf_counter() - call.since
            at = (call.number, self.index, call.step, seconds, branch.path)
            call.events.append(kind(*at, *fields))

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
            elif branch.sampled:
                # What is written at a join may lie ahead of the frontier, where a budget cuts it.
                run, head = branch.items[-1], 1 + len(self.grammar.writes.in_takeaway)
                joined = isinstance(run, Run) and run.kind == "takeaway" and len(run.tokens) == head
                del branch.pending[: -head if joined else -1]
        self.flush = []
        self.forwarded = 0

    def _push(
        self,
        branch: Branch,
        token: int,
        step: int,
        logprob: float = _NAN,
        behaviour: float = _NAN,
        sampled: bool = False,
    ) -> None:
        branch.push(token, logprob, behaviour, sampled, step)
        offset = branch.position - len(self.prompt_ids)
        if offset == len(self._counts):
            self._counts.append(1)
        elif offset < len(self._counts):
            self._counts[offset] += 1
        else:
            self._counts += [0] * (offset - len(self._counts)) + [1]
        self._total += 1
        if self.call.events is not None:
            self.emit(Token, branch, token, logprob, sampled)

    def _set_turn(self) -> None:
        """The branches at the smallest last position."""
        self._leaves = list(self.root.leaves())
        lowest = min(leaf.position for leaf in self._leaves)
        self.turn = [leaf for leaf in self._leaves if leaf.position == lowest]

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

    def _stopped(self, branch: Branch) -> bool:
        """Whether the branch's last token completes a stop string."""
        most = 4 * max(map(len, self.params.stop))  # a character has at most 4 bytes
        own: list[int] = []
        for run in reversed(branch.items):
            if isinstance(run, list) or len(own) >= most:
                break  # the text before a block is another text
            own = [token for token, _, _, sampled, _ in run.tokens[-most:] if sampled] + own
        text = self.grammar.tokenizer.decode(own)
        before = self.grammar.tokenizer.decode(own[:-1])
        return any(text.count(stop) > before.count(stop) for stop in self.params.stop)

    def _finish(self, reason: FinishReason, position: int, violation: str | None = None) -> None:
        """End the response; of every branch only what lies at or before `position` stays."""
        self.finish_reason, self.violation = reason, violation
        _truncate(self.root, position)

    def _invalid(self, branch: Branch, kind: ViolationKind, message: str) -> None:
        self._finish("invalid", branch.position, f"{kind}: {message}")

    def _interpret(self, branch: Branch, token: int, step: int) -> None:
        """What a tag or EOS does to the structure (tag-structure violations end it)."""
        tag, state = self._names.get(token), branch.state
        if token in self.grammar.eos_ids:
            if state != "text" or branch.parent is not None:
                self._invalid(branch, ViolationKind.UNCLOSED, f"EOS inside {_where(branch)}")
            # A replay one token after the other passes the EOS of what were branches.
            elif self.forced is None or len(branch.sampled) == len(self.forced[()]):
                self._finish("stop", branch.position)
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
        tags, writes = self.grammar.tags, self.grammar.writes
        assert tags is not None, "without tags nothing forks"
        self.emit(Fork, branch, len(branch.plans))
        for i in range(len(branch.plans)):
            path = (*branch.path, (branch.blocks, i))
            key = mix(branch.key, branch.blocks, i)
            child = Branch(path, key, branch.position, branch, kind="step")
            for token in step_prefix(i + 1, self.grammar.tokenizer, tags, writes):
                self._push(child, token, step)
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
            label = LABEL.match(self.grammar.tokenizer.decode(ids))
            if label is None or int(label[1]) != i:
                return ViolationKind.PLAN_INDEX, f"plan {i} does not begin with '{i}:'"
        return None

    def _end_branch(self, branch: Branch, step: int) -> None:
        """`</step>`; the last branch of a block to end joins it."""
        parent, tags, writes = branch.parent, self.grammar.tags, self.grammar.writes
        assert parent is not None and tags is not None, "only a branch that was forked off ends"
        for token in writes.after_step:
            self._push(branch, token, step)
        branch.ended = True
        self.emit(BranchEnd, branch)
        if not all(child.ended for child in parent.children):
            return
        self.flush += parent.children
        parent.joining, parent.children = parent.children, []
        parent.position = max(child.position for child in parent.joining)
        parent.state = parent.kind = "takeaway"
        self.emit(Join, parent)
        for token in (tags.takeaway, *writes.in_takeaway):
            self._push(parent, token, step)


def _truncate(branch: Branch, position: int) -> None:
    """Drop every token after `position`, and what is empty then."""
    kept: list[Run | list[Branch]] = []
    for item in branch.items:
        if isinstance(item, Run):
            del item.tokens[max(0, position + 1 - item.start) :]
            if item.tokens:
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
