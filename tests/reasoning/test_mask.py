"""Masks made of intervals, against a brute-force reading of the definition (design section 4)."""

import random
import time

import numpy as np
import pytest
import torch
from oracles import brute_force_mask, random_response
from torch.utils._python_dispatch import TorchDispatchMode

from npr_lib.reasoning import mask
from npr_lib.reasoning.layout import causal_layout, layout
from npr_lib.reasoning.mask import block_visibility, dense_mask, flex_mask_mod, pack
from npr_lib.reasoning.tokens import TagIds
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)


class Sequence:
    """A random response and what the definition says of it."""

    def __init__(self, rng, prompt_len):
        self.response, _ = random_response(rng, TOKENIZER, max_branches=3, prompt_len=prompt_len)
        self.layout = layout(self.response.ids, TAGS, prompt_len)
        self.sees = brute_force_mask(self.response.paths)


def random_row(seed):
    """Sequences, and groups of those whose prompt has the same length, in a random order."""
    rng = random.Random(seed)
    sequences, groups = [], []
    for _ in range(rng.randint(1, 3)):
        prompt_len, size = rng.randint(1, 7), rng.randint(1, 3)
        groups.append([len(sequences) + i for i in range(size)])
        sequences += [Sequence(rng, prompt_len) for _ in range(size)]
    order = rng.sample(range(len(sequences)), len(sequences))
    moved = [sequences[order.index(i)] for i in range(len(sequences))]
    return moved, [[order[i] for i in group] for group in groups]


def definition(sequences, groups):
    """For every row token its group, the sequences it belongs to and its place in them; and which
    sees which: those of one sequence, as that one's tokens do."""
    tokens = []
    for g, group in enumerate(groups):
        shared = sequences[group[0]].layout.prompt_len - 1 if len(group) > 1 else 0
        tokens += [(g, set(group), t) for t in range(shared)]
        for i in group:
            tokens += [(g, {i}, t) for t in range(shared, len(sequences[i].layout))]
    sees = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for i, sequence in enumerate(sequences):
        rows = torch.tensor([t for t, (_, own, _) in enumerate(tokens) if i in own])
        places = torch.tensor([tokens[t][2] for t in rows.tolist()])
        sees[rows[:, None], rows] |= sequence.sees[places[:, None], places]
    return tokens, sees


@pytest.mark.parametrize("seed", range(12))
def test_a_row_is_what_its_sequences_are(seed):
    sequences, groups = random_row(seed)
    packed = pack([s.layout for s in sequences], groups)
    tokens, sees = definition(sequences, groups)
    assert len(packed) == len(tokens)
    for t, (_, own, at) in enumerate(tokens):
        assert packed.sequence[t] in own and packed.token[t] == at
        assert packed.position_ids[t] == sequences[min(own)].response.positions[at]
    index = torch.arange(len(packed))
    visible = flex_mask_mod(torch.from_numpy(packed.hidden))
    found = visible(torch.tensor(0), torch.tensor(0), index[:, None], index[None, :])
    assert torch.equal(found, sees)


@pytest.mark.parametrize("seed", range(12))
def test_tiles_show_each_token_once_and_what_it_sees(seed):
    sequences, groups = random_row(seed)
    packed = pack([s.layout for s in sequences], groups)
    _, sees = definition(sequences, groups)
    tiles, where = packed.tiles(torch.device("cpu"), torch.float64)
    queries = torch.cat([tile.queries.flatten() for tile in tiles])
    assert queries[where].tolist() == list(range(len(packed)))
    rows = []
    for tile in tiles:
        assert tile.bias.dtype == torch.float64 and set(tile.bias.unique().tolist()) <= {0, -np.inf}
        assert (tile.bias == 0).any(dim=-1).all(), "a query that sees nothing is nan"
        for keys, bias in zip(tile.keys, tile.bias[:, 0], strict=True):
            seen = torch.zeros(len(bias), len(packed), dtype=torch.int64)
            seen.index_add_(1, keys, (bias == 0).long())
            rows.append(seen)
    assert torch.equal(torch.cat(rows)[where], sees.long()), "each key once"
    assert packed.tiles(torch.device("cpu"), torch.float64)[0] is tiles, "one for all layers"


@pytest.mark.parametrize("seed", range(12))
def test_blocks_hold_what_is_visible(seed, monkeypatch):
    monkeypatch.setattr(mask, "BLOCK", 4)
    sequences, groups = random_row(seed)
    packed = pack([s.layout for s in sequences], groups)
    _, sees = definition(sequences, groups)
    count = -(-len(packed) // 4)
    whole = torch.zeros(4 * count, 4 * count, dtype=torch.bool)
    whole[: len(packed), : len(packed)] = sees
    blocks = whole.view(count, 4, count, 4).transpose(1, 2).flatten(2)
    some, every = map(torch.from_numpy, block_visibility(packed.hidden))
    assert blocks[every].all() and not blocks[~some & ~every].any() and not (some & every).any()
    causal = torch.ones(count, count).tril().bool()
    if len(sequences) > 2:
        assert (some | every).sum() < causal.sum(), "what siblings hide is left out"
    made = packed.block_mask(torch.device("cpu"))
    assert made.seq_lengths == (len(packed), len(packed))
    for kind, chosen in (("", some), ("full_", every)):
        numbers = getattr(made, f"{kind}kv_num_blocks")[0, 0]
        for row, number, indices in zip(
            chosen, numbers, getattr(made, f"{kind}kv_indices")[0, 0], strict=True
        ):
            assert indices[:number].tolist() == row.nonzero()[:, 0].tolist()


def test_causal_blocks_are_whole_below_the_diagonal():
    some, every = block_visibility(pack([causal_layout(768)], [[0]]).hidden)
    assert np.array_equal(some, np.eye(6, dtype=bool))
    assert np.array_equal(every, np.tri(6, k=-1, dtype=bool))
    some, every = block_visibility(pack([causal_layout(700)], [[0]]).hidden)
    assert some[-1].all() and not every[-1].any(), "torch's own are whole blocks too"


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operation takes or makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs, out)):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def long_layouts(n):
    """Four responses of a group, n tokens in all, in blocks of three branches."""
    text = "<guideline><plan>1:A</plan><plan>2:B</plan><plan>3:C</plan></guideline>"
    text += "".join(f"<step>{i}:" + "1+2-3+" * 25 + "</step>" for i in (1, 2, 3)) + "<takeaway>"
    ids = TOKENIZER(text + "1</takeaway>", add_special_tokens=False)["input_ids"]
    count = n // 4 // len(ids)
    return [layout([5] * 8 + ids * count, TAGS, 8) for _ in range(4)]


def test_the_blocks_of_a_row_take_no_memory_above_its_length():
    packed = pack(long_layouts(8192), [[0, 1, 2, 3]])
    n, depth = len(packed), len(packed.hidden)
    assert n > 7000
    with Largest() as largest:
        packed.block_mask(torch.device("cpu"))
    blocks = (n // mask.BLOCK + 1) ** 2
    assert largest.elements <= max(2 * depth * n, blocks) < n * n / 256


def test_16k_tokens_take_half_a_second():
    ids = long_layouts(4 * 16_384)[0]
    assert 15_000 < len(ids) <= 16_384 + 8
    seconds = []
    for _ in range(3):
        begin = time.process_time()  # the machine may have others to serve
        made = dense_mask(ids)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.5
    some = torch.randint(len(ids), (200,))
    visible = flex_mask_mod(torch.from_numpy(ids.hidden))
    expected = visible(torch.tensor(0), torch.tensor(0), some[:, None], some[None, :])
    assert torch.equal(made[some][:, some], expected)
