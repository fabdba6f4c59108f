"""The KV pool: slots, reference-counted segments, and the slot table of a branch.

A slot holds the keys and values of one token in all layers. A segment owns the slots of a run of
tokens; whoever can see the run holds a reference, and the slots go back to the pool when the last
reference goes. A fork is references, a join is concatenation: neither touches a key or a value.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        self._free = list(range(num_slots - 1, -1, -1))
        self._segments: set[Segment] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots referenced by live responses; 0 after `generate`."""
        return self.num_slots - self.num_free - self.num_cached

    @property
    def num_cached(self) -> int:
        """Slots that only a prefix cache refers to; prompts are cached for one call at most."""
        return 0

    def open(self) -> Segment:
        """A new, empty segment with one reference."""
        segment = Segment()
        self._segments.add(segment)
        return segment

    def allocate(self, segment: Segment, count: int) -> list[int]:
        """Append `count` free slots to a segment; PoolExhaustedError, taking none, if too few."""
        if count > len(self._free):
            free = f"{len(self._free)} of {self.num_slots} free"
            raise PoolExhaustedError(f"{count} slots asked for, {free}")
        slots = [self._free.pop() for _ in range(count)]
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

    def check(self) -> None:
        """Assert the invariants: every slot is free or in exactly one live segment, and every live
        segment is referenced."""
        used = [slot for segment in self._segments for slot in segment.slots]
        assert len(set(used)) == len(used), "a slot lies in two segments"
        assert len(set(self._free)) == len(self._free), "a slot is free twice"
        assert not set(used) & set(self._free), "a slot is both used and free"
        assert len(used) + len(self._free) == self.num_slots, "a slot is lost"
        assert all(segment.refs > 0 for segment in self._segments), "a live segment without owner"


class SlotTable:
    """What one branch sees: its segments in token order, flattened to an array of slots."""

    def __init__(self, pool: KVPool, segments: Sequence[Segment] = (), slots: Sequence[int] = ()):
        self.pool = pool
        self.segments = [pool.retain(segment) for segment in segments]
        self.inherited, self.inherited_slots = len(self.segments), len(slots)
        self._sealed = len(self.segments)  # the segments before it are never appended to
        self._buffer = np.empty(max(64, 2 * len(slots)), np.int64)
        self._buffer[: len(slots)] = slots
        self._length = len(slots)

    @property
    def slots(self) -> np.ndarray:
        """int64 [n], the slots of every visible forwarded token in token order."""
        return self._buffer[: self._length]

    def extend(self, count: int) -> np.ndarray:
        """Take `count` new slots at the end, in a segment of this table's own."""
        if len(self.segments) == self._sealed:
            self.segments.append(self.pool.open())
        self._push(self.pool.allocate(self.segments[-1], count))
        return self.slots[-count:]

    def fork(self) -> SlotTable:
        """A table that shares everything seen so far. Later tokens of either are its own."""
        child = SlotTable(self.pool, self.segments, self.slots)
        self._sealed = len(self.segments)
        return child

    def join(self, children: Sequence[SlotTable]) -> None:
        """See, after one's own tokens, everything the children added, in order; they are released.

        The children must have been forked from this table with nothing added since.
        """
        prefix = self._length
        for child in children:
            assert child.inherited_slots == prefix, "joined to a table it was not forked from"
            self.segments += map(self.pool.retain, child.segments[child.inherited :])
            self._push(child.slots[prefix:])
            child.release()
        self._sealed = len(self.segments)

    def release(self) -> None:
        """Give all references back; the table is empty afterwards."""
        for segment in self.segments:
            self.pool.release(segment)
        self.segments, self._length = [], 0

    def _push(self, slots: Sequence[int]) -> None:
        end = self._length + len(slots)
        if end > len(self._buffer):
            self._buffer = np.resize(self._buffer, 2 * end)
        self._buffer[self._length : end] = slots
        self._length = end
