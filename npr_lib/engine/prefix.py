"""Prefixes that prompts have in common, stored and computed once: a radix tree over token ids.

Each node owns the KV of a run of tokens; a prompt's path from the root spells its ids. A path in
use is locked. What isn't stays cached until its slots are needed (least recently used first,
leaves before their parents) or the weights change.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from npr_lib.engine.kv import KVPool, Segment


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens after its parent's. locks: prompts in use in it and below it."""

    ids: list[int]
    segment: Segment
    parent: Node | None
    children: dict[int, Node] = field(default_factory=dict)  # by their first token
    locks: int = 0
    used: int = 0  # when it was last locked or unlocked

    def path(self) -> Iterator[Node]:
        """This node and its ancestors, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class PrefixTree:
    """The prefixes that are in the pool."""

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool
        self.root = Node([], Segment(), None)
        self._clock = 0
        pool.evict = self.evict

    def acquire(self, ids: Sequence[int]) -> tuple[Node, int]:
        """The locked node at the end of `ids`, and how many of them had their KV already; slots
        are allocated for the others, whose KV the caller computes."""
        node = self._locate(ids)
        self.lock(node)
        known = sum(len(n.ids) for n in node.path())
        if known == len(ids):
            return node, known
        segment = self.pool.open()
        try:
            self.pool.allocate(segment, len(ids) - known)
        except BaseException:
            self.pool.release(segment)
            self.unlock(node)
            raise
        child = Node(list(ids[known:]), segment, node)
        node.children[child.ids[0]] = child
        self.pool.num_cached += len(child.ids)
        self.lock(child)
        self.unlock(node)
        return child, known

    def in_use(self, ids: Sequence[int]) -> int:
        """How many leading tokens of `ids` lie in locked nodes."""
        return sum(count for node, count in self._walk(ids) if node.locks)

    def slots(self, node: Node) -> np.ndarray:
        """int64, the slots of all tokens from the root to the end of `node`."""
        runs = [n.segment.slots for n in node.path()]
        return np.array([slot for run in reversed(runs) for slot in run], np.int64)

    def lock(self, node: Node) -> None:
        self._clock += 1
        for n in node.path():
            if not n.locks:
                self.pool.num_cached -= len(n.ids)
            n.locks, n.used = n.locks + 1, self._clock

    def unlock(self, node: Node) -> None:
        self._clock += 1
        for n in node.path():
            assert n.locks > 0, "a prefix unlocked twice"
            n.locks, n.used = n.locks - 1, self._clock
            if not n.locks:
                self.pool.num_cached += len(n.ids)

    def evict(self, count: int) -> None:
        """Free at least `count` cached slots, or all there are."""
        every = _nodes_from(*self.root.children.values())
        leaves = [(n.used, id(n), n) for n in every if not n.locks and not n.children]
        heapq.heapify(leaves)
        while count > 0 and leaves:
            node = heapq.heappop(leaves)[-1]
            parent = node.parent
            assert parent is not None, "the root is no leaf"
            self._remove(node)
            count -= len(node.ids)
            if parent.parent is not None and not parent.children and not parent.locks:
                heapq.heappush(leaves, (parent.used, id(parent), parent))

    def truncate(self, ids: Sequence[int], length: int) -> None:
        """Forget what follows the first `length` tokens of `ids`; nothing of it may be in use."""
        node = self._locate(ids[:length])
        known = sum(len(n.ids) for n in node.path())
        if known == length < len(ids) and ids[length] in node.children:
            for child in _nodes_from(node.children[ids[length]]):
                self._remove(child)

    def _remove(self, node: Node) -> None:
        assert not node.locks, "a prefix in use can't be removed"
        assert node.parent is not None, "the root can't be removed"
        del node.parent.children[node.ids[0]]
        self.pool.num_cached -= len(node.ids)
        self.pool.release(node.segment)

    def _walk(self, ids: Sequence[int]) -> Iterator[tuple[Node, int]]:
        """The nodes along `ids`, each with how many of its tokens agree."""
        node, start = self.root, 0
        while start < len(ids) and ids[start] in node.children:
            node = node.children[ids[start]]
            pairs = zip(node.ids, ids[start : start + len(node.ids)], strict=False)
            count = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            if count is None:
                count = min(len(node.ids), len(ids) - start)
            yield node, count
            if count < len(node.ids):
                return
            start += count

    def _locate(self, ids: Sequence[int]) -> Node:
        """The node at the end of the longest known prefix; one that it ends inside is split."""
        found = self.root
        for node, count in list(self._walk(ids)):
            found = node if count == len(node.ids) else self._split(node, count)
        return found

    def _split(self, node: Node, count: int) -> Node:
        """Put the first `count` tokens of a node in a parent of their own; returns that."""
        assert node.parent is not None, "the root has no tokens to be split at"
        upper = Node(node.ids[:count], self.pool.open(node.segment.slots[:count]), node.parent)
        upper.locks, upper.used = node.locks, node.used
        node.parent.children[upper.ids[0]] = upper
        node.ids, node.parent = node.ids[count:], upper
        del node.segment.slots[:count]
        upper.children[node.ids[0]] = node
        return upper


def _nodes_from(*nodes: Node) -> Iterator[Node]:
    """These nodes and all below them, each before its children."""
    stack = [*nodes]
    while stack:
        node = stack.pop()
        stack += node.children.values()
        yield node
