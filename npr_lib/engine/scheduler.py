"""Which tokens a step forwards: admission of responses, rows of branches, slots for their KV."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from npr_lib.engine.api import EngineConfig
from npr_lib.engine.branch import Branch, Response
from npr_lib.engine.kv import KVPool, SlotTable


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt shared by the responses of its group: prefilled once, by the first of them."""

    ids: list[int]
    waiting: int = 0  # responses of the group that have not started
    table: SlotTable | None = None
    logits: torch.Tensor | None = None  # [V] after the last prompt token


@dataclass(slots=True)
class Row:
    """New tokens of one slot table.

    slots: int64 [L], those of the context and then of the new tokens (a copy: the table grows).
    owner: whose turn it is after the last token; None where nothing is sampled.
    """

    ids: list[int]
    first_position: int
    slots: np.ndarray
    owner: tuple[Response, Branch] | Prompt | None


class Scheduler:
    """Starts responses in order of submission and plans the rows of each step.

    A response starts when the free slots cover its worst case and what the running ones may still
    take, so that a running response never has to wait for a slot.
    """

    def __init__(self, pool: KVPool, config: EngineConfig) -> None:
        self.pool = pool
        self.config = config
        self.waiting: deque[tuple[Prompt, Response]] = deque()
        self.running: list[Response] = []

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
        prompt.waiting += len(responses)
        self.waiting.extend((prompt, response) for response in responses)

    def plan(self) -> tuple[list[Row], list[tuple[Prompt, Response]]]:
        """The rows of the next step, and the responses that start in it (they sample from their
        prompt's logits). The rows of prompts come last."""
        rows: list[Row] = []
        for response in self.running:
            for branch in response.flush:
                rows.append(self._row(response, branch, sampled=False))
            response.flush.clear()
            for branch in response.frontier():
                if branch.joining:
                    branch.table.join([child.table for child in branch.joining])
                    branch.joining = []
                if branch.table is None:
                    branch.table = branch.parent.table.fork()
                rows.append(self._row(response, branch, sampled=True))
        started = []
        while self.waiting and len(self.running) < self.config.max_running:
            prompt, response = self.waiting[0]
            if not self._fits(prompt, response):
                break
            self.waiting.popleft()
            if prompt.table is None:
                prompt.table = SlotTable(self.pool)
                prompt.table.extend(len(prompt.ids))
                rows.append(Row(prompt.ids, 0, prompt.table.slots.copy(), prompt))
            response.root.table = prompt.table.fork()
            prompt.waiting -= 1
            if not prompt.waiting:
                prompt.table.release()
            self.running.append(response)
            started.append((prompt, response))
        return rows, started

    def finish(self, response: Response) -> None:
        """Give all slots of a running response back."""
        self.running.remove(response)
        release(response)

    def abort(self) -> None:
        """Drop everything that waits or runs and give all slots back."""
        for response in self.running:
            release(response)
        for prompt in {id(p): p for p, _ in self.waiting}.values():
            if prompt.table is not None:
                prompt.table.release()
        self.running.clear()
        self.waiting.clear()

    def _fits(self, prompt: Prompt, response: Response) -> bool:
        need = response.params.max_tokens + (0 if prompt.table else len(prompt.ids))
        promised = sum(r.params.max_tokens - r.forwarded for r in self.running)
        return self.pool.num_free - promised >= need

    def _row(self, response: Response, branch: Branch, sampled: bool) -> Row:
        ids, branch.pending = branch.pending, []
        branch.table.extend(len(ids))
        response.forwarded += len(ids)
        first_position = branch.position + 1 - len(ids)
        owner = (response, branch) if sampled else None
        return Row(ids, first_position, branch.table.slots.copy(), owner)


def release(response: Response) -> None:
    """Release the slot tables of a response's branches."""
    for branch in response.root.tree():
        for table in (branch.table, *(child.table for child in branch.joining)):
            if table is not None:
                table.release()
