"""One response on SGLang: which requests carry its branches, and whose KV slots are whose.

SGLang decodes *carriers*, ordinary requests of its own. A carrier decodes one *run*: consecutive
tokens of one branch between two structural events (prompt to fork, fork to `</step>`, join to the
next fork). It sees, as its cached prefix, the slots of the runs before it on its path; when it
ends, its slots are kept by the run. So a fork shares slots, a join concatenates them, and nothing
is computed twice. The state machine is the embedded engine's `Response`: it is fed in lock step
from what the carriers have decoded, which may be ahead of it.

A family whose slots were taken away goes on by starting its runs again in the same order, each with
the tokens it has: the same prefixes, the same positions, an exact recomputation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from npr_lib.engine.branch import Branch, Response
from npr_lib.engine.branch import Run as Stretch
from npr_lib.engine.sampling import hash_ids

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

# A token as a carrier sampled it: (id, logprob, behaviour logprob, engine step).
Sampled = tuple[int, float, float, int]


@dataclass(slots=True, eq=False)
class Ahead:
    """What the carriers have sampled in a branch: `sampled` in all, `queue` not yet accepted.

    Has the fields of a `Branch` that drawing a token needs (`forward.choose`).
    """

    key: int
    path: tuple[tuple[int, int], ...]
    sampled: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    queue: deque[Sampled] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Run:
    """Consecutive tokens of one branch; the first lies at position `start`.

    before: the runs it sees, in order. slots: int64, where its tokens' KV is, once its carrier has
    ended; own: those of them that are the family's to free (the others are the prefix cache's).
    last: the token that ends it, until its KV exists; rest: what the engine has yet to write after
    that. stopped: nothing more is needed of it.
    """

    family: Family
    branch: Branch
    start: int
    tokens: list[int]
    before: tuple[Run, ...]
    carrier: Req | None = None
    slots: torch.Tensor | None = None
    own: torch.Tensor | None = None
    last: Sampled | None = None
    rest: list[int] = field(default_factory=list)
    complete: bool = False
    stopped: bool = False

    @property
    def ready(self) -> bool:
        """It waits for a carrier, and everything it sees has KV."""
        waits = self.carrier is None and self.slots is None and not self.stopped
        return waits and all(run.slots is not None for run in self.before)

    @property
    def end(self) -> int:
        """The position of its last token."""
        return self.start + len(self.tokens) - 1

    @property
    def prefix_length(self) -> int:
        """Slots before its first token (the first run has none: its prompt is its own)."""
        return sum(len(run.tokens) for run in self.before)

    def prefix(self) -> torch.Tensor:
        """int64 [prefix_length], the slots of all it sees."""
        slots = [run.slots for run in self.before if run.slots is not None]
        assert len(slots) == len(self.before), "a run that it sees has no KV"
        return torch.cat(slots)


class Family:
    """All runs of one response. `client` is the request that SGLang's client knows."""

    def __init__(self, response: Response, client: Req, first_step: int) -> None:
        self.response = response
        self.client = client
        self.first_step = first_step
        self.ahead: dict[Branch, Ahead] = {}
        self.runs: dict[tuple[Branch, int], Run] = {}
        self.locks: list[tuple[object, object]] = []  # on the prefix cache: (node, receipt)
        self.admitted = False
        self.error: str | None = None
        self.digest = hash_ids(response.prompt_ids)
        tags = response.grammar.tags if response.grammar.mode == "parallel" else None
        self._ends: dict[int, tuple[int, ...]] = {}  # what ends a run, and what comes after it
        if tags:
            after = response.grammar.writes.after_step
            self._ends = {tags.step_end: after, tags.guideline_end: ()}
        self._counts: dict[int, int] = {}  # tokens known at each position after the prompt
        self._total = 0
        self._leaves: list[Branch] | None = None
        self.bound = response._last_position  # no token after it can be part of the response
        self._flow = self._settle(response.root)
        self._held_back: list[int] = []
        self._grow()

    @property
    def need(self) -> int:
        """Slots that the family may come to hold at once."""
        budget = self.response.params.max_tokens + self.response.surplus
        return len(self.response.prompt_ids) + budget

    @property
    def known(self) -> int:
        """Tokens there are, the prompt's and those ahead of the response included."""
        return len(self.response.prompt_ids) + self._total

    @property
    def held(self) -> int:
        """Slots it holds now, shared ones of the prompt and those of its carriers included."""
        ended = sum(len(run.slots) for run in self.runs.values() if run.slots is not None)
        live = [(run, run.carrier) for run in self.runs.values() if run.carrier is not None]
        return ended + sum(
            carrier.kv.kv_allocated_len - run.prefix_length
            for run, carrier in live
            if carrier.kv.holds_kv
        )

    @property
    def kept(self) -> int:
        """Slots of ended carriers, which SGLang itself knows no owner of."""
        return sum(len(run.own) for run in self.runs.values() if run.own is not None)

    def startable(self) -> Iterator[Run]:
        """Runs to give a carrier now."""
        for run in list(self.runs.values()):
            if run.ready:
                run.stopped = run.end > self.bound or (not run.complete and run.end == self.bound)
                if not run.stopped:
                    yield run

    def beyond(self) -> Iterator[Run]:
        """Runs that have gone past the bound, which siblings behind them have moved: neither they
        nor what begins after them can be part of the response."""
        if self._total > self.response.params.max_tokens:
            for run in self.runs.values():
                if run.end > self.bound and (run.carrier is not None or run.slots is not None):
                    run.stopped = True
                    yield run

    def sampled(
        self, run: Run, token: int, logprob: float, behaviour: float, entropy: float, step: int
    ) -> bool:
        """A carrier has drawn a token. True when the carrier is to stop at once."""
        if run.complete:  # the KV of the token that ends the run exists now
            if run.last is not None:
                self.ahead[run.branch].queue.append(run.last)
                run.last = None
            if not run.rest:  # the new token is void
                return True
            run.tokens.append(run.rest.pop(0))
            self._count(run.end)
            return False
        ahead = self.ahead[run.branch]
        run.tokens.append(token)
        ahead.sampled.append(token)
        ahead.steps.append(step)
        ahead.entropies.append(entropy)
        self._count(run.end)
        drawn = (token, logprob, behaviour, step)
        if token in self._ends:
            run.complete, run.last, run.rest = True, drawn, list(self._ends[token])
            return False
        ahead.queue.append(drawn)
        run.stopped = run.end >= self.bound or self.exhausted(run) or self._is_end(token)
        return run.stopped

    def advance(self) -> bool:
        """Feed the state machine what it can take. True when the response has ended."""
        response = self.response
        while not response.finish_reason:
            queues = [self.ahead[branch].queue for branch in response.turn]
            if not all(queues):
                # What is ahead of the response has used the budget up, which it can't know yet.
                over = self._total > response.params.max_tokens
                if not over or response.turn[0].position < self.bound:
                    return False
                response._finish("length", self.bound)
                break
            drawn = [queue.popleft() for queue in queues]
            tokens = [(b, *d[:3]) for b, d in zip(response.turn, drawn, strict=True)]
            step = response.call.stats.steps = max(d[3] for d in drawn)
            response.accept(tokens, step)
            if not response.finish_reason:
                self._grow()
        return True

    def settled(self) -> list[int]:
        """Token ids, in the order of the finished response, that nothing can change any more and
        that were not told before: up to the first branch that still grows. One is held back, so
        that something is left to tell when the response ends."""
        ids = self._held_back
        for token in self._flow:
            if token is None:
                break
            ids.append(token)
        self._held_back = ids[-1:]
        return ids[:-1]

    def _settle(self, branch: Branch) -> Iterator[int | None]:
        """A branch's tokens one after the other; None where the next one isn't certain yet."""
        number = index = 0
        while True:
            item = branch.items[number] if number < len(branch.items) else None
            if isinstance(item, list):
                for child in item:
                    yield from self._settle(child)
            elif item is not None and index < len(item.tokens):
                # What lies at or before the frontier was accepted for good.
                certain = item.start + index <= self.response.turn[0].position
                yield item.tokens[index][0] if certain else None
                index += certain
                continue
            elif branch.ended and number + 1 >= len(branch.items):
                return
            elif number + 1 >= len(branch.items):
                yield None
                continue
            number, index = number + 1, 0

    def stamp(self) -> None:
        """Give every sampled token of the record the engine step that drew it, and its entropy."""
        for branch, ahead in self.ahead.items():
            branch.entropies = ahead.entropies
            steps = iter(ahead.steps)
            for stretch in branch.items:
                if isinstance(stretch, Stretch):
                    stretch.tokens[:] = [
                        (*token[:4], next(steps)) if token[3] else token for token in stretch.tokens
                    ]

    def exhausted(self, run: Run) -> bool:
        """A replay has no further token for this branch."""
        forced, ahead = self.response.forced, self.ahead[run.branch]
        return forced is not None and len(ahead.sampled) >= len(forced.get(ahead.path, ()))

    def _is_end(self, token: int) -> bool:
        """EOS; a replay one token after the other passes those of what were branches."""
        return token in self.response.grammar.eos_ids and self.response.forced is None

    def _count(self, position: int) -> None:
        """Note a token, and how far the budget can reach at most: to the last position such that
        the tokens at or before it fit."""
        self._counts[position] = self._counts.get(position, 0) + 1
        self._total += 1
        over = self._total - self.response.params.max_tokens
        if over >= 0:
            top = max(self._counts)
            while over > 0:
                over -= self._counts.get(top, 0)
                top -= 1
            self.bound = min(self.bound, top)

    def _grow(self) -> None:
        """Make the runs of the tree that are not there yet."""
        if self.response._leaves is not self._leaves:
            self._leaves = self.response._leaves
            self._walk(self.response.root, ())

    def _walk(self, branch: Branch, before: tuple[Run, ...]) -> tuple[Run, ...]:
        """Runs of a branch and of the blocks in it; returns all that whoever comes next sees."""
        if branch not in self.ahead:
            self.ahead[branch] = Ahead(branch.key, branch.path, list(branch.sampled))
        number = 0
        first = branch.parent is None
        tokens, start = (list(self.response.prompt_ids), 0) if first else ([], None)
        for item in [*branch.items, None]:
            if isinstance(item, Stretch):
                start = item.start if start is None else start
                tokens += [token[0] for token in item.tokens]
                continue
            if item is None and not tokens:
                break  # an open block is the branch's last item
            run = self.runs.get((branch, number))
            if run is None:
                assert start is not None, "a block comes after its guideline"
                run = self._add(branch, number, start, tokens, before)
            run.complete = run.complete or item is not None
            number, tokens, start = number + 1, [], None
            before = (*before, run)
            if item is not None:
                seen = len(before)
                children = [self._walk(child, before) for child in item]
                before += tuple(run for chain in children for run in chain[seen:])
        return before

    def _add(
        self,
        branch: Branch,
        number: int,
        start: int,
        tokens: list[int],
        before: tuple[Run, ...],
    ) -> Run:
        run = self.runs[branch, number] = Run(self, branch, start, tokens, before)
        run.complete = branch.ended
        prompt = len(self.response.prompt_ids)
        for position in range(max(start, prompt), start + len(tokens)):
            self._count(position)
        return run
