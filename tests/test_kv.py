"""Slots, segments and slot tables."""

import pytest

from npr_lib.engine import PoolExhaustedError
from npr_lib.engine.kv import KVPool, SlotTable


def test_slot_tables_share_fork_and_join():
    pool = KVPool(20, 1, 1, 1)
    root = SlotTable(pool)
    root.extend(3)
    children = [root.fork() for _ in range(3)]
    for i, child in enumerate(children):
        child.extend(i + 1)
        assert child.slots[:3].tolist() == root.slots.tolist()
    assert pool.num_used == 3 + 1 + 2 + 3
    expected = root.slots.tolist() + [s for c in children for s in c.slots[3:].tolist()]
    root.join(children)
    assert root.slots.tolist() == expected and len(set(expected)) == 9
    root.extend(1)
    pool.check()
    root.release()
    assert pool.num_used == 0
    pool.check()


def test_pool_refuses_and_detects_misuse():
    pool = KVPool(4, 1, 1, 1)
    table = SlotTable(pool)
    table.extend(3)
    with pytest.raises(PoolExhaustedError, match="2 slots asked for, 1 of 4 free"):
        table.extend(2)
    assert len(table.slots) == 3
    segment = table.segments[0]
    table.release()
    with pytest.raises(AssertionError, match="freed twice"):
        pool.release(segment)
    pool._free.append(pool._free[0])
    with pytest.raises(AssertionError, match="free twice"):
        pool.check()
