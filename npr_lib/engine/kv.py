"""The KV pool: slots, reference-counted segments, and the slot table of a branch.

A slot holds the keys and values of one token in all layers. A segment owns the slots of a run of
tokens; whoever can see the run holds a reference, and the slots go back to the pool when the last
reference goes. A fork is references, a join is concatenation: neither touches a key or a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


class PoolExhaustedError(RuntimeError):
    """More slots were asked for than are free."""


@dataclass(slots=True, eq=False)
class Segment:
    """The slots of a run of tokens, in order, and how many slot tables refer to them."""

    slots: list[int] = field(default_factory=list)
    refs: int = 1


class KVPool:
    """`num_slots` slots of `layers` x [kv_heads, head_dim] keys and values."""

    def __init__(
        self,
        num_slots: int,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_slots, kv_heads, head_dim)
        self.num_slots = num_slots
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.reset()

    def reset(self) -> None:
        """Make every slot free; tables and segments made before can't be used any more."""
        self.num_cached = 0  # slots that only the prefix tree refers to; prefix.py counts them
        self.evict: Callable[[int], None] = lambda count: None  # frees cached slots
        self._free = list(range(self.num_slots - 1, -1, -1))
        self._segments: set[Segment] = set()
        # The slot tables, a row each, so that a step reads many of them by one indexing.
        self.tables = np.zeros((64, 256), np.int64)
        self._free_rows = list(range(63, -1, -1))
        self._given_rows: list[int] = []

    @property
    def num_free(self) -> int:
        """Slots that can be allocated: empty ones, and cached ones (they are evicted)."""
        return len(self._free) + self.num_cached

    @property
    def num_used(self) -> int:
        """Slots referenced by live responses; 0 after `generate`."""
        return self.num_slots - self.num_free

    def open(self, slots: Sequence[int] = ()) -> Segment:
        """A new segment with one reference; `slots` are handed over from another one."""
        segment = Segment(list(slots))
        self._segments.add(segment)
        return segment

    def allocate(self, segment: Segment, count: int) -> list[int]:
        """Append `count` free slots to a segment; PoolExhaustedError, taking none, if too few."""
        free = self._free
        if count > len(free):
            self.evict(count - len(free))
        if count > len(free):
            message = f"{count} slots asked for, {len(free)} of {self.num_slots} free"
            raise PoolExhaustedError(message)
        slots = [free.pop() for _ in range(count)]
        segment.slots += slots
        return slots

    def retain(self, segment: Segment) -> Segment:
        assert segment in self._segments, "retain of a freed segment"
        segment.refs += 1
        return segment

    def release(self, segment: Segment) -> None:
        assert segment in self._segments and segment.refs > 0, "segment freed twice"
        segment.refs -= 1
        if segment.refs == 0:
            self._segments.remove(segment)
            self._free += reversed(segment.slots)

    def take_row(self, width: int) -> int:
        """A row of `tables` for a slot table, wide enough for `width` slots."""
        if not self._free_rows:
            rows = len(self.tables)
            self.tables = np.concatenate([self.tables, np.zeros_like(self.tables)])
            self._free_rows += range(2 * rows - 1, rows - 1, -1)
        self.widen(width)
        return self._free_rows.pop()

    def give_row(self, row: int) -> None:
        """Give a row back. It keeps its slots until `recycle_rows`: a branch that is joined still
        reads through it in the step of the join."""
        self._given_rows.append(row)

    def recycle_rows(self) -> None:
        """The rows given back so far may be taken again."""
        self._free_rows += self._given_rows
        self._given_rows.clear()

    def widen(self, width: int) -> None:
        """Make every row of `tables` at least `width` slots wide."""
        rows, present = self.tables.shape
        if width > present:
            more = np.zeros((rows, max(width, 2 * present) - present), np.int64)
            self.tables = np.concatenate([self.tables, more], axis=1)

    def check(self) -> None:
        """Assert the invariants: every slot is free or in exactly one live segment, and every live
        segment is referenced."""
        used = [slot for segment in self._segments for slot in segment.slots]
        assert len(set(used)) == len(used), "a slot lies in two segments"
        assert len(set(self._free)) == len(self._free), "a slot is free twice"
        assert not set(used) & set(self._free), "a slot is both used and free"
        assert len(used) + len(self._free) == self.num_slots, "a slot is lost"
        assert all(segment.refs > 0 for segment in self._segments), "a live segment without owner"
        assert 0 <= self.num_cached <= len(used), "more slots are cached than held"


class SlotTable:
    """What one branch sees: its segments in token order, and their slots in a row of the pool's
    `tables`. A table begins with what others own (`inherited` slots): they outlive it."""

    __slots__ = ("_open", "_row", "inherited", "length", "pool", "segments")

    def __init__(
        self,
        pool: KVPool,
        slots: Sequence[int] | np.ndarray = (),
        segments: Sequence[Segment] = (),
    ) -> None:
        self.pool = pool
        self.segments = [pool.retain(segment) for segment in segments]
        self.inherited = self.length = len(slots)
        self._row: int | None = pool.take_row(len(slots))
        self._open: Segment | None = None  # the one that new slots are appended to
        pool.tables[self.row, : self.length] = slots

    @property
    def row(self) -> int:
        """Its row of `pool.tables`."""
        assert self._row is not None, "a released slot table"
        return self._row

    @property
    def slots(self) -> np.ndarray:
        """int64 [length], the slots of every visible token in token order; a view."""
        return self.pool.tables[self.row, : self.length]

    def extend(self, count: int) -> None:
        """Take `count` new slots at the end, in a segment of this table's own."""
        if self._open is None:
            self._open = self.pool.open()
            self.segments.append(self._open)
        self._push(self.pool.allocate(self._open, count))

    def fork(self) -> SlotTable:
        """A table that shares everything seen so far. Later tokens of either are its own."""
        self._open = None
        return SlotTable(self.pool, self.slots, self.segments)

    def join(self, children: Sequence[SlotTable]) -> None:
        """See, after one's own tokens, everything the children added, in order; they are released.

        The children must have been forked from this table with nothing added since.
        """
        prefix, shared = self.length, len(self.segments)
        for child in children:
            assert child.inherited == prefix, "joined to a table it was not forked from"
            self.segments += map(self.pool.retain, child.segments[shared:])
            self._push(child.slots[prefix:])
            child.release()
        self._open = None

    def release(self) -> None:
        """Give all references back; the table can't be used afterwards."""
        for segment in self.segments:
            self.pool.release(segment)
        self.pool.give_row(self.row)
        self.segments, self.length, self._row, self._open = [], 0, None, None

    def _push(self, slots: Sequence[int] | np.ndarray) -> None:
        end = self.length + len(slots)
        if end > self.pool.tables.shape[1]:
            self.pool.widen(end)
        self.pool.tables[self.row, self.length : end] = slots
        self.length = end
