"""Visibility for all tokens at once: masks from hidden intervals, and sequences packed into a row.

The trainer's rows hold groups one behind another. A group is a fork of its prompt (design section
8): the prompt comes once, and every response is a branch that doesn't see its siblings. Its own
copy of the prompt's last token stands in front of each response, since that is what predicts its
first. Attention takes one of two forms of the row, both made of the same intervals:

- tiles: sequences of like length side by side, each with the prompt that it shares, so that no time
  goes to what siblings don't see of one another. For sdpa.
- a block mask at the granularity of FlexAttention's blocks: no n x n tensor. For CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from npr_lib.reasoning.layout import Layout

BLOCK = 128  # FlexAttention's tokens a block
PADDED = 1.3  # a tile's area to that of the sequences in it, at most


def rectangles(hidden: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """first, last, low, high for every run of queries first <= q < last that must not see the keys
    low <= k < high, of hidden intervals [D, n, 2]."""
    for level in hidden:
        edges = np.flatnonzero((level[1:] != level[:-1]).any(axis=1)) + 1
        for first, last in pairwise([0, *edges.tolist(), len(level)]):
            low, high = level[first].tolist()
            if low < high:
                yield first, last, low, high


def dense_mask(layout: Layout, device: torch.device | str = "cpu") -> torch.Tensor:
    """bool [n, n]: entry (q, k) says that token q sees token k. For CPU and for small n."""
    mask = torch.ones(len(layout), len(layout), dtype=torch.bool, device=device).tril_()
    for first, last, low, high in rectangles(layout.hidden):
        mask[first:last, low:high] = False
    return mask


class Piece(NamedTuple):
    """The tokens start <= t < end of a row: those of `sequence` from its token `first` on.

    They see each other as far as the sequence's layout says, and the `first` tokens of the row from
    `group` on: the prompt that the sequences of a group share.
    """

    sequence: int
    first: int
    start: int
    end: int
    group: int


class Tile(NamedTuple):
    """N pieces of at most R tokens, and the keys they see: int64 [N, R] and [N, K], indices of row
    tokens, padded with 0. bias: [N, 1, R, K], 0 where a query sees a key, else -inf."""

    queries: torch.Tensor
    keys: torch.Tensor
    bias: torch.Tensor


@dataclass(slots=True, eq=False)
class PackedLayout:
    """Sequences in one row of T tokens; what the attention function takes.

    position_ids: int64 [T]. sequence, token: int64 [T], row token t is token `token[t]` of sequence
    `sequence[t]`. hidden: int32 [2 + D, T, 2] as in `Layout`, over the row: of what came before,
    the other groups, the siblings, and what the layouts hide.
    """

    pieces: list[Piece]
    position_ids: np.ndarray
    sequence: np.ndarray
    token: np.ndarray
    hidden: np.ndarray
    # One mask serves all layers of a forward.
    _made: dict[object, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.position_ids)

    def tiles(self, device: torch.device, dtype: torch.dtype) -> tuple[list[Tile], torch.Tensor]:
        """The row in tiles, and for every row token where it is in the queries of all of them, one
        tile's behind another's: int64 [T]. Made once for a device and dtype."""
        if (device, dtype) not in self._made:
            tiles, where, offset = [], torch.empty(len(self), dtype=torch.int64), 0
            for pieces in _of_like_length(self.pieces):
                tile = _tile(pieces, self.hidden[2:], dtype)
                length = tile.queries.shape[1]
                for i, piece in enumerate(pieces):
                    at = offset + i * length
                    where[piece.start : piece.end] = torch.arange(piece.end - piece.start) + at
                offset += tile.queries.numel()
                tiles.append(Tile(*(tensor.to(device) for tensor in tile)))
            self._made[device, dtype] = tiles, where.to(device)
        return self._made[device, dtype]  # type: ignore[return-value]

    def block_mask(self, device: torch.device) -> BlockMask:
        """FlexAttention's form, made once."""
        if device not in self._made:
            some, every = block_visibility(self.hidden)
            self._made[device] = BlockMask.from_kv_blocks(
                *_ordered(some, device),
                *_ordered(every, device),
                BLOCK_SIZE=BLOCK,
                mask_mod=flex_mask_mod(torch.from_numpy(self.hidden).to(device)),
                seq_lengths=(len(self), len(self)),
            )
        return self._made[device]  # type: ignore[return-value]


def pack(layouts: Sequence[Layout], groups: Sequence[Sequence[int]]) -> PackedLayout:
    """Lay groups, indices of layouts with the same prompt, out in one row, in O(T * depth)."""
    pieces: list[Piece] = []
    end = 0
    for group in groups:
        begin, prompt = end, layouts[group[0]].prompt_len - 1 if len(group) > 1 else 0
        if prompt > 0:
            end += prompt
            pieces.append(Piece(group[0], 0, begin, end, begin))
        for member in group:
            start, end = end, end + len(layouts[member]) - prompt
            pieces.append(Piece(member, prompt, start, end, begin))
    depth = max((len(layout.hidden) for layout in layouts), default=0)
    position_ids, sequence, token = (np.empty(end, np.int64) for _ in range(3))
    hidden = np.zeros((2 + depth, end, 2), np.int32)
    for piece in pieces:
        layout, own = layouts[piece.sequence], slice(piece.start, piece.end)
        part = slice(piece.first, piece.first + piece.end - piece.start)
        position_ids[own] = layout.position_ids[part]
        sequence[own] = piece.sequence
        token[own] = np.arange(part.start, part.stop)
        hidden[0, own] = 0, piece.group
        hidden[1, own] = piece.group + piece.first, piece.start
        inner = layout.hidden[:, part]
        shift = np.where(inner[..., 1:] > 0, piece.start - piece.first, 0)
        hidden[2 : 2 + len(inner), own] = inner + shift
    return PackedLayout(pieces, position_ids, sequence, token, hidden)


def _of_like_length(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces of each tile, longest first."""
    tiles: list[list[Piece]] = []
    area = 0  # of the sequences in the last tile
    for piece in sorted(pieces, key=lambda p: (p.end - p.start, p.first), reverse=True):
        length = piece.end - piece.start
        own = length * (piece.first + length)
        if tiles:
            longest = tiles[-1][0].end - tiles[-1][0].start
            keys = max(p.first + p.end - p.start for p in (*tiles[-1], piece))
            if (len(tiles[-1]) + 1) * longest * keys <= PADDED * (area + own):
                tiles[-1].append(piece)
                area += own
                continue
        tiles.append([piece])
        area = own
    return tiles


def _tile(pieces: Sequence[Piece], hidden: np.ndarray, dtype: torch.dtype) -> Tile:
    """hidden: the row's intervals, [D, T, 2], without its own levels."""
    queries = np.zeros((len(pieces), max(p.end - p.start for p in pieces)), np.int64)
    keys = np.zeros((len(pieces), max(p.first + p.end - p.start for p in pieces)), np.int64)
    bias = torch.full((*queries.shape, keys.shape[1]), float("-inf"), dtype=dtype)
    for i, piece in enumerate(pieces):
        length, own = piece.end - piece.start, np.arange(piece.start, piece.end)
        queries[i, :length] = own
        keys[i, : piece.first] = np.arange(piece.group, piece.group + piece.first)
        keys[i, piece.first : piece.first + length] = own
        # Padding stands behind: no query sees a key of it, but itself sees what is before it.
        bias[i].triu_(piece.first + 1)
        shift = piece.first - piece.start
        for first, last, low, high in rectangles(hidden[:, piece.start : piece.end]):
            bias[i, first:last, low + shift : high + shift] = float("-inf")
    return Tile(torch.from_numpy(queries), torch.from_numpy(keys), bias[:, None])


def block_visibility(hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [blocks, blocks] twice, of hidden intervals [D, n, 2]: blocks of queries that see some
    tokens of a block of keys, as far as the intervals tell one by one, and that see all of them.

    O(n * D) and one entry a pair of blocks; a block of either kind is in no other.
    """
    n = hidden.shape[1]
    first = np.arange(0, n, BLOCK)
    last = np.minimum(first + BLOCK, n)
    some = first < last[:, None]
    # a last block that is cut short is for the mask to bound, as in torch's create_block_mask
    every = (last - 1 <= first[:, None]) & (first + BLOCK <= n)[:, None]
    for low, high in hidden.transpose(0, 2, 1):
        low, high = np.where(low < high, low, n), np.where(low < high, high, 0)
        for_all = np.maximum.reduceat(low, first), np.minimum.reduceat(high, first)
        for_any = np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)
        some &= (first < for_all[0][:, None]) | (last > for_all[1][:, None])
        every &= (last <= for_any[0][:, None]) | (first >= for_any[1][:, None])
    every &= some
    return some & ~every, every


def _ordered(blocks: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks of keys each block of queries has, int32 [1, 1, Q], and which, before the
    others, int32 [1, 1, Q, K]."""
    chosen = torch.from_numpy(blocks).to(device)
    order = torch.argsort(~chosen, dim=1, stable=True)
    return chosen.sum(dim=1)[None, None].int(), order[None, None].int()


def flex_mask_mod(hidden: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The relation of hidden intervals [D, n, 2] as a FlexAttention `mask_mod(b, h, q, k)`."""

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor):
        visible = k <= q
        for depth in range(hidden.shape[0]):
            visible = visible & ~((k >= hidden[depth, q, 0]) & (k < hidden[depth, q, 1]))
        return visible

    return mask_mod
