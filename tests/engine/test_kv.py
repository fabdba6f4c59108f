"""Slots, segments and slot tables."""

import pytest

from npr_lib.engine import PoolExhaustedError
from npr_lib.engine.kv import KVPool, SlotTable
from npr_lib.engine.prefix import PrefixTree


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


def test_a_truncated_prefix_keeps_exactly_what_was_computed():
    pool = KVPool(40, 1, 1, 1)
    tree = PrefixTree(pool)
    ids = list(range(10))
    node, known = tree.acquire(ids)
    assert known == 0
    tree.unlock(node)
    tree.truncate(ids, 4)
    assert pool.num_cached == 4
    node, known = tree.acquire(ids)
    assert known == 4 and pool.num_used == 10
    tree.unlock(node)
    pool.check()
