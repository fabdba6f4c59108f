"""Which tokens a step forwards: admission, preemption and resumption of responses, slots for KV.

Responses start in order of submission as long as there is room. When the next tokens of the
running ones don't fit any more, whole responses are preempted, youngest first: their KV is
dropped, their tokens stay. Such a response resumes, before younger ones start, by forwarding its
partial fork/join graph in one step under the parallel mask. The oldest response is never
preempted, and alone it always fits, so that everything submitted gets done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from npr_lib.engine.branch import Branch, Response, own_tokens
from npr_lib.engine.kv import KVPool, SlotTable


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt shared by the responses of its group: prefilled once, by the first of them, and
    kept until the last has ended, unless its slots are needed while none of them runs."""

    ids: list[int]
    unfinished: int = 0
    running: int = 0
    table: SlotTable | None = None
    logits: torch.Tensor | None = None  # [V] after the last prompt token


@dataclass(slots=True)
class Row:
    """New tokens of one slot table.

    positions: int64 [n]. slots: int64 [L], those of the context and then of the new tokens (a
    copy: the table grows). owner: whose turn it is after the last token; None where nothing is
    sampled. hidden: int32 [D, n, 2], intervals of the row's own tokens that a token does not see
    (resumed rows only).
    """

    ids: list[int]
    positions: np.ndarray
    slots: np.ndarray
    owner: tuple[Response, Branch] | Prompt | None = None
    hidden: np.ndarray | None = None


@dataclass(slots=True, eq=False)
class Job:
    """A response and the prompt it shares."""

    prompt: Prompt
    response: Response


class Scheduler:
    """`plan` the rows of a step, `finish` what has ended; `running` is in order of submission."""

    def __init__(self, pool: KVPool, max_running: int) -> None:
        self.pool = pool
        self.max_running = max_running
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.preemptions = 0
        self.recomputed = 0  # tokens forwarded again by resumed responses

    def submit(self, prompt: Prompt, responses: Sequence[Response]) -> None:
        """Queue the responses of a group. ValueError if one could never fit the pool."""
        for response in responses:
            need = len(prompt.ids) + response.params.max_tokens
            if need > self.pool.num_slots:
                raise ValueError(
                    f"a prompt of {len(prompt.ids)} tokens and max_tokens = "
                    f"{response.params.max_tokens} need {need} slots, the pool has "
                    f"{self.pool.num_slots}: raise EngineConfig.num_slots or lower max_tokens"
                )
        prompt.unfinished += len(responses)
        self.waiting.extend(Job(prompt, response) for response in responses)

    def plan(self) -> tuple[list[Row], list[Job]]:
        """The rows of the next step, and the responses that begin in it (they sample from their
        prompt's logits). Every row of the list may see the rows before it."""
        self._make_room()
        rows = [row for job in self.running for row in _turn_rows(job.response)]
        begun = []
        while self.waiting and len(self.running) < self.max_running:
            job = self.waiting[0]
            if not self._fits(job):
                break
            self.waiting.popleft()
            rows += self._start(job)
            if not job.response.root.sampled:
                begun.append(job)
        return rows, begun

    def finish(self, job: Job) -> None:
        """Give all slots of a running response back."""
        self.running.remove(job)
        job.response.suspend()
        job.prompt.running -= 1
        job.prompt.unfinished -= 1
        if not job.prompt.unfinished:
            _drop(job.prompt)

    def abort(self) -> None:
        """Drop everything that waits or runs and give all slots back."""
        for job in (*self.running, *self.waiting):
            job.response.suspend()
            _drop(job.prompt)
        self.running.clear()
        self.waiting.clear()

    def _make_room(self) -> None:
        """Preempt the youngest until the next tokens of the others fit."""
        needs = [_next_tokens(job.response) for job in self.running]
        while sum(needs) > self.pool.num_free:
            if not self._drop_idle_prompt():
                job = self.running.pop()
                needs.pop()
                job.response.suspend()
                job.prompt.running -= 1
                self.waiting.appendleft(job)
                self.preemptions += 1

    def _drop_idle_prompt(self) -> bool:
        idle = (job.prompt for job in self.waiting if job.prompt.table and not job.prompt.running)
        prompt = next(idle, None)
        if prompt is not None:
            _drop(prompt)
        return prompt is not None

    def _fits(self, job: Job) -> bool:
        """Whether a waiting response can start now. A margin of free slots is left, so that it is
        not preempted at once; the first to run needs none."""
        own = sum(len(own_tokens(branch)[0]) for branch in job.response.root.tree())
        own += _next_tokens(job.response)
        margin = self.pool.num_slots // 16 if self.running else 0
        while True:
            need = own + margin + (0 if job.prompt.table else len(job.prompt.ids))
            if need <= self.pool.num_free:
                return True
            if self.running or not self._drop_idle_prompt():
                return False

    def _start(self, job: Job) -> list[Row]:
        """Start or resume a response: the rows that make the KV it needs."""
        prompt, response, rows = job.prompt, job.response, []
        if prompt.table is None:
            prompt.table = SlotTable(self.pool)
            prompt.table.extend(len(prompt.ids))
            positions = np.arange(len(prompt.ids))
            rows.append(Row(prompt.ids, positions, prompt.table.slots.copy(), prompt))
        prompt.running += 1
        self.running.append(job)
        response.root.table = prompt.table.fork()
        if not response.root.sampled:
            return rows
        for branch in response.root.tree():
            if branch.parent is not None:
                branch.table = branch.parent.table.fork()
            ids, positions, hidden = own_tokens(branch)
            if ids:
                branch.table.extend(len(ids))
                response.forwarded += len(ids)
                self.recomputed += len(ids)
                rows.append(Row(ids, positions, branch.table.slots.copy(), None, hidden))
        return rows + _turn_rows(response)


def _drop(prompt: Prompt) -> None:
    if prompt.table is not None:
        prompt.table.release()
    prompt.table = prompt.logits = None


def _next_tokens(response: Response) -> int:
    """Slots that the next step of a response takes."""
    if not response.root.sampled:
        return 0
    return sum(len(branch.pending) for branch in (*response.flush, *response.turn))


def _turn_rows(response: Response) -> list[Row]:
    """The pending tokens of a running response: first those that only others see."""
    rows = [_row(response, branch, False) for branch in response.flush if branch.pending]
    response.flush = []
    for branch in response.turn:
        if branch.joining:
            branch.table.join([child.table for child in branch.joining])
            branch.joining = []
        if branch.table is None:
            branch.table = branch.parent.table.fork()
        rows.append(_row(response, branch, True))
    return rows


def _row(response: Response, branch: Branch, sampled: bool) -> Row:
    ids, branch.pending = branch.pending, []
    branch.table.extend(len(ids))
    response.forwarded += len(ids)
    positions = np.arange(branch.position + 1 - len(ids), branch.position + 1)
    owner = (response, branch) if sampled else None
    return Row(ids, positions, branch.table.slots.copy(), owner)
