"""Which tokens a step forwards: admission, prefill, preemption and resumption, slots for KV.

Responses start in order of submission as long as there is room. What they need in the pool before
they can take their turns (the prompt, or after a preemption the partial fork/join graph under the
parallel mask) is forwarded in order of admission, beside the branches that decode and within the
limit of tokens a step. When the next tokens of the running ones don't fit any more, whole
responses are preempted, youngest first: their KV is dropped, their tokens stay. The oldest is
never preempted, and alone it always fits, so that everything submitted gets done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from npr_lib.engine.api import EngineConfig, EngineStats, Preempt, Resume
from npr_lib.engine.branch import Branch, Response
from npr_lib.engine.kv import KVPool, SlotTable
from npr_lib.engine.prefix import Node, PrefixTree
from npr_lib.engine.record import own_tokens
from npr_lib.reasoning.trajectory import Trajectory


@dataclass(slots=True, eq=False)
class Fill:
    """Tokens to be forwarded before somebody can go on; their slots are in `table` already.

    positions [n]. start: slots of the table before them. hidden int32 [D, n, 2]: intervals of
    these tokens that a token does not see. prompt: the one whose end they are. done: how many
    have been forwarded.
    """

    table: SlotTable
    ids: list[int]
    positions: Sequence[int] | np.ndarray
    start: int
    hidden: np.ndarray | None = None
    prompt: Prompt | None = None
    done: int = 0


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt shared by the responses of its group, kept until the last has ended, unless its
    slots are needed while none of them runs. All but its last token lie in the prefix tree."""

    ids: list[int]
    unfinished: int = 0
    running: int = 0
    node: Node | None = None
    table: SlotTable | None = None
    logits: torch.Tensor | None = None  # [V] after the last prompt token

    @property
    def first_logits(self) -> torch.Tensor:
        """The logits of a prompt that was forwarded."""
        assert self.logits is not None, "the prompt was not forwarded"
        return self.logits


@dataclass(slots=True)
class Row:
    """New tokens of one slot table in a step.

    row: the table's row of `KVPool.tables`. length: slots visible to the last of them, itself
    included. owner: who gets the logits after it; None where nobody does. hidden, start: as in
    `Fill`.
    """

    row: int
    length: int
    ids: list[int]
    positions: Sequence[int] | np.ndarray
    owner: tuple[Request, Branch] | Prompt | None = None
    hidden: np.ndarray | None = None
    start: int = 0


@dataclass(slots=True, eq=False)
class Request:
    """A response in the engine's hands. `trajectory` is None until it has ended; `error` is what
    ended it otherwise."""

    prompt: Prompt
    response: Response
    fills: list[Fill] = field(default_factory=list)
    preempted: bool = False
    own: int | None = None  # tokens to forward when it starts
    trajectory: Trajectory | None = None
    error: BaseException | None = None

    @property
    def outcome(self) -> Trajectory:
        """The trajectory of one that has ended."""
        assert self.trajectory is not None, "the request has not ended"
        return self.trajectory

    @property
    def ready(self) -> bool:
        """Everything that its next tokens look at is in the pool."""
        done = all(fill.done == len(fill.ids) for fill in self.fills)
        return done and self.prompt.logits is not None


class Scheduler:
    """`plan` the rows of a step, `finish` what has ended; `running` is in order of submission."""

    def __init__(self, pool: KVPool, config: EngineConfig, stats: EngineStats) -> None:
        self.pool = pool
        self.stats = stats
        self.tree = PrefixTree(pool)
        self.max_running = config.max_running
        self.max_step_tokens = config.max_step_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.fills: deque[Fill] = deque()  # in order of admission

    def check(self, requests: Sequence[Request]) -> None:
        """ValueError if one could never fit the pool."""
        for request in requests:
            prompt, response = request.prompt, request.response
            need = len(prompt.ids) + response.params.max_tokens + response.surplus
            if need > self.pool.num_slots:
                ahead = f" (and {response.surplus} of the prefix)" if response.surplus else ""
                raise ValueError(
                    f"a prompt of {len(prompt.ids)} tokens and max_tokens = "
                    f"{response.params.max_tokens}{ahead} need {need} slots, the pool has "
                    f"{self.pool.num_slots}: raise EngineConfig.num_slots or lower max_tokens"
                )

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue the requests of one call; ValueError, queueing none, if one could never fit."""
        self.check(requests)
        for request in requests:
            request.prompt.unfinished += 1
        self.waiting.extend(requests)

    def plan(self) -> list[Row]:
        """The rows of the next step."""
        self.pool.recycle_rows()
        rows: list[Row] = []
        used = 0
        needs = self._make_room()
        if needs is not None:
            for request, count in zip(self.running, needs, strict=True):
                if not count or not request.ready or (used and used + count > self.max_step_tokens):
                    continue
                used += count
                rows += _turn_rows(request)
            while self.waiting and len(self.running) < self.max_running:
                if not self._fits(self.waiting[0]):
                    break
                self._start(self.waiting[0])
                self.waiting.popleft()
        rows = self._fill_rows(self.max_step_tokens - used) + rows
        # One that was started with nothing to fill (a prefix of one token) has its turn at once.
        ready = not rows and not self.beginners() and any(r.ready for r in self.running)
        return self.plan() if ready and needs is not None else rows

    def beginners(self) -> list[Request]:
        """Running requests without a token whose prompt's logits are there."""
        return [r for r in self.running if not r.response.root.sampled and r.ready]

    def filled(self, prompt: Prompt, logits: torch.Tensor) -> None:
        """The last token of a prompt was forwarded."""
        prompt.logits = logits
        if not prompt.unfinished:
            self._drop(prompt)

    def finish(self, request: Request) -> None:
        """Take a request out and give all its slots back."""
        if request in self.running:
            self.running.remove(request)
            request.prompt.running -= 1
        else:
            self.waiting.remove(request)
        self._suspend(request)
        request.prompt.unfinished -= 1
        # A prompt that is being prefilled stays until `filled`: others may build on its prefix.
        if not request.prompt.unfinished and request.prompt.logits is not None:
            self._drop(request.prompt)

    def drop_fills(self) -> None:
        """With nothing running or waiting: give up what is still being prefilled."""
        prompts = [fill.prompt for fill in self.fills if fill.prompt is not None]
        assert len(prompts) == len(self.fills), "tokens of a response that does not run"
        for prompt in prompts:
            self._drop(prompt)
        for prompt, fill in zip(prompts, self.fills, strict=True):
            self.tree.truncate(prompt.ids[:-1], fill.start + fill.done)
        self.fills.clear()

    def forget(self) -> None:
        """Drop all KV there is; running responses are preempted."""
        while self.running:
            self._preempt()
        filling = [fill.prompt for fill in self.fills if fill.prompt is not None]
        self.fills.clear()
        for prompt in {*filling, *(request.prompt for request in self.waiting)}:
            self._drop(prompt)
        self.tree.evict(self.pool.num_slots)

    def _make_room(self) -> list[int] | None:
        """Preempt the youngest until the next tokens of the others fit. How many each needs; None
        if nothing can be decoded before a prefill that is under way has ended."""
        needs = [_next_tokens(request.response) for request in self.running]
        total = sum(needs)
        while total > self.pool.num_free:
            if self._drop_idle_prompt():
                continue
            if len(self.running) == 1:
                return None
            total -= needs.pop()
            self._preempt()
        return needs

    def _preempt(self) -> None:
        request = self.running.pop()
        self._suspend(request)
        request.prompt.running -= 1
        request.preempted = True
        self.waiting.appendleft(request)
        self.stats.preemptions += 1
        request.response.emit(Preempt, request.response.root)

    def _suspend(self, request: Request) -> None:
        for fill in request.fills:
            if fill.done < len(fill.ids):
                self.fills.remove(fill)
        request.fills, request.own = [], None
        request.response.suspend()

    def _drop(self, prompt: Prompt) -> None:
        """Give a prompt's slots back; its KV stays in the prefix tree."""
        if prompt.table is not None:
            assert prompt.node is not None, "`_start_prompt` sets both"
            prompt.table.release()
            self.tree.unlock(prompt.node)
        prompt.table = prompt.node = prompt.logits = None

    def _drop_idle_prompt(self) -> bool:
        idle = (r.prompt for r in self.waiting if r.prompt.logits is not None)
        prompt = next((p for p in idle if not p.running), None)
        if prompt is not None:
            self._drop(prompt)
        return prompt is not None

    def _fits(self, request: Request) -> bool:
        """Whether a waiting request can start now. A margin of free slots is left, so that it is
        not preempted at once; the first to run needs none."""
        prompt, response = request.prompt, request.response
        if request.own is None:
            request.own = sum(len(own_tokens(branch)[0]) for branch in response.root.tree())
            request.own += _next_tokens(response)
        margin = self.pool.num_slots // 16 if self.running else 0
        while True:
            need = request.own + margin
            if prompt.table is None:
                need += len(prompt.ids) - self.tree.in_use(prompt.ids[:-1])
            if need <= self.pool.num_free:
                return True
            if self.running or not self._drop_idle_prompt():
                return False

    def _start(self, request: Request) -> None:
        """Start or resume a request: take slots for what it needs, and queue it to be filled."""
        prompt, response = request.prompt, request.response
        table = self._start_prompt(prompt) if prompt.table is None else prompt.table
        prompt.running += 1
        self.running.append(request)
        response.root.table = table.fork()
        if not response.root.sampled:
            return
        recomputed = 0
        for branch in response.root.tree():
            if branch.parent is not None:
                branch.table = branch.parent.own_table.fork()
            ids, positions, hidden = own_tokens(branch)
            if ids:
                table = branch.own_table
                start = table.length
                table.extend(len(ids))
                request.fills.append(Fill(table, ids, positions, start, hidden))
                recomputed += len(ids)
        self.fills += request.fills
        response.forwarded += recomputed
        if request.preempted:
            self.stats.recomputed += recomputed
            response.emit(Resume, response.root, recomputed)

    def _start_prompt(self, prompt: Prompt) -> SlotTable:
        prompt.node, known = self.tree.acquire(prompt.ids[:-1])
        prompt.table = SlotTable(self.pool, self.tree.slots(prompt.node))
        prompt.table.extend(1)
        self.stats.prompt_tokens += len(prompt.ids)
        self.stats.reused += known
        positions = range(known, len(prompt.ids))
        self.fills.append(Fill(prompt.table, prompt.ids[known:], positions, known, None, prompt))
        return prompt.table

    def _fill_rows(self, limit: int) -> list[Row]:
        """Up to `limit` tokens of what has to be filled, in order."""
        rows = []
        while self.fills and limit > 0:
            fill = self.fills[0]
            part = slice(fill.done, min(fill.done + limit, len(fill.ids)))
            fill.done = part.stop
            limit -= part.stop - part.start
            ended = fill.done == len(fill.ids)
            rows.append(
                Row(
                    fill.table.row,
                    fill.start + fill.done,
                    fill.ids[part],
                    fill.positions[part],
                    fill.prompt if ended else None,
                    None if fill.hidden is None else fill.hidden[:, part],
                    fill.start,
                )
            )
            if ended:
                self.fills.popleft()
        return rows


def _next_tokens(response: Response) -> int:
    """Slots that the next step of a response takes."""
    if not response.root.sampled:
        return 0
    turn = sum(len(branch.pending) for branch in response.turn)
    return turn + sum(len(branch.pending) for branch in response.flush)


def _turn_rows(request: Request) -> list[Row]:
    """The pending tokens of a running response: first those that only others see."""
    response = request.response
    rows = [_row(request, branch, False) for branch in response.flush if branch.pending]
    response.flush = []
    for branch in response.turn:
        if branch.joining:
            branch.own_table.join([child.own_table for child in branch.joining])
            branch.joining = []
        if branch.table is None:
            assert branch.parent is not None, "the root has its table from the start"
            branch.table = branch.parent.own_table.fork()
        rows.append(_row(request, branch, True))
    return rows


def _row(request: Request, branch: Branch, sampled: bool) -> Row:
    ids, branch.pending = branch.pending, []
    table = branch.own_table
    table.extend(len(ids))
    request.response.forwarded += len(ids)
    end = branch.position + 1
    owner = (request, branch) if sampled else None
    return Row(table.row, table.length, ids, range(end - len(ids), end), owner)
