"""The trainer's one forward: the responses to a prompt share it, packed into rows.

A micro-batch goes through the model in rows of about TOKENS tokens, each a call of
`model(input_ids [1, T], ..., fused_lm_head=True)`, so that whatever wraps the model (DDP, FSDP,
peft, gradient checkpointing) does its part. The prompt is computed once a group and row, forward
and backward, and outside of attention nothing is padded (`reasoning/mask.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator

from npr_lib.reasoning.layout import Layout
from npr_lib.reasoning.mask import pack

TOKENS = 16_384  # of a row; a longer sequence has a row of its own

Row = list[list[int]]  # groups of sequences, by number, that share their prompt


def logprobs_and_entropies(
    model: torch.nn.Module,
    accelerator: Accelerator,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    layouts: Sequence[Layout],
    width: int,
    rows: Sequence[Row],
    silent: Sequence[bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    """logprobs and entropies, float32 [B, width], of the completion tokens that `attention_mask`
    has, 0 elsewhere.

    Args:
        model: with TRL's fused head and `npr` attention, wrapped or not.
        input_ids, attention_mask: [B, L] as TRL pads them, prompts on the left, completions,
            the last `width` columns, on the right.
        layouts: of each sequence without its padding.
        rows: every sequence once, as of `rows_of`.
        silent: sequences that need no backward pass. The first row makes one in any case: the loss
            needs something to go back from.
    """
    device, begin = input_ids.device, input_ids.shape[1] - width
    starts = torch.tensor([begin - layout.prompt_len for layout in layouts])
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    labels[:, :begin] = -100
    results = [torch.zeros(labels[:, begin:].shape, device=device) for _ in range(2)]
    for i, row in enumerate(rows):
        packed = pack(layouts, row)
        sequence = torch.from_numpy(packed.sequence)
        column = (starts[sequence] + torch.from_numpy(packed.token)).to(device)
        sequence = sequence.to(device)
        learns = torch.is_grad_enabled() and not (i and silent[row[0][0]])
        with accelerator.autocast(), torch.set_grad_enabled(learns):
            output = model(
                input_ids=input_ids[sequence, column][None],
                # all ones: without it transformers takes branches for packed sequences, and makes
                # a mask [T, T] of them
                attention_mask=torch.ones_like(column)[None],
                position_ids=torch.from_numpy(packed.position_ids)[None].to(device),
                npr_layout=packed,
                labels=labels[sequence, column][None],
                fused_lm_head=True,
            )
        own = (labels[sequence, column] != -100).nonzero()[:, 0]
        at = sequence[own], column[own] - begin
        for k, found in enumerate((output.log_probs, output.entropy)):
            results[k] = results[k].index_put(at, found[0, own - 1])  # told by the token before
    return results[0], results[1]


def rows_of(
    input_ids: torch.Tensor,
    layouts: Sequence[Layout],
    width: int,
    silent: Sequence[bool],
    accelerator: Accelerator,
) -> list[Row]:
    """The sequences of a micro-batch (as above) in rows: those that learn before those that don't,
    and as many rows as every other process has, since processes wait for one another in each call.
    """
    begin = input_ids.shape[1] - width
    groups: dict[tuple[bool, bytes], list[int]] = {}
    for i, (ids, layout) in enumerate(zip(input_ids.cpu(), layouts, strict=True)):
        prompt = ids[begin - layout.prompt_len : begin].numpy().tobytes()
        groups.setdefault((silent[i], prompt), []).append(i)
    rows = [
        row
        for kind in (False, True)
        for row in plan(layouts, [group for key, group in groups.items() if key[0] is kind])
    ]
    if accelerator.num_processes > 1:
        count = torch.tensor([len(rows)], device=accelerator.device)
        most = int(accelerator.gather(count).max())
        while len(rows) < most:
            widest = max(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
            rows[widest : widest + 1] = _halves(rows[widest])
    return rows


def plan(
    layouts: Sequence[Layout], groups: Iterable[Sequence[int]], limit: int = TOKENS
) -> list[Row]:
    """Groups, numbers of layouts with the same prompt, in rows of at most `limit` tokens. A prompt
    comes again only where its group is wider than a row."""
    rows: list[Row] = []
    room = 0
    for group in groups:
        prompt = layouts[group[0]].prompt_len - 1
        own = [len(layouts[i]) - prompt for i in group]
        if prompt + sum(own) > room:
            rows.append([])
            room = limit
        rows[-1].append([])
        room -= prompt
        for i, length in zip(group, own, strict=True):
            if length > room and rows[-1][-1]:
                rows.append([[]])
                room = limit - prompt
            rows[-1][-1].append(i)
            room -= length
    return rows


def _halves(row: Row) -> tuple[Row, Row]:
    """A row of at least two sequences as two."""
    if len(row) > 1:
        return row[: len(row) // 2], row[len(row) // 2 :]
    (group,) = row
    return [group[: len(group) // 2]], [group[len(group) // 2 :]]
