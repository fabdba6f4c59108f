"""The one attention function, `npr`, of engine and trainer (design section 6).

Registered with transformers' attention *and* mask interfaces (a name missing from the latter
silently drops the padding mask). Three ways to be called, told apart by the keyword that comes
through `model(...)`:

- `npr_step=KVStep`: the engine. New keys and values go to their pool slots, queries read theirs.
- `npr_layout=PackedLayout`: the trainer. One row of packed sequences, by sdpa on its tiles, and on
  CUDA by FlexAttention, where no n x n tensor is made.
- neither: plain sdpa.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from npr_lib.engine import paged
from npr_lib.reasoning.mask import PackedLayout

NAME = "npr"
_FEW = 8  # new tokens of a row up to which paged.c beats gathering its KV for a matrix product


@dataclass(slots=True)
class RowGroup:
    """R rows of S new tokens each, tokens `start : start + R * S` of the step.

    rows: int64 [R], the row of the pool's `tables` each reads. lengths: int64 [R], slots that the
    last new token sees. hidden: for row r, the slots before its own run and intervals of that run,
    int32 [D, S, 2], that its new tokens don't see.
    """

    start: int
    new: int
    rows: np.ndarray
    lengths: np.ndarray
    hidden: dict[int, tuple[int, np.ndarray]]
    gathered: tuple[torch.Tensor, torch.Tensor] | None = None  # one for all layers of a forward


@dataclass(slots=True)
class KVStep:
    """One engine step of T new tokens: where their KV goes and what they read.

    keys, values: one [num_slots, kv_heads, head_dim] tensor a layer. tables: int64 [*, width],
    slots. write_slots: int64 [T].
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    tables: np.ndarray
    write_slots: torch.Tensor
    groups: list[RowGroup]
    layers_done: int = 0


def use_npr_attention(model: PreTrainedModel) -> None:
    """Switch a model to `npr`, for good: engine and trainer share it. ValueError for models whose
    attention is another one: sliding windows, or code that transformers can't switch."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        windowed = getattr(config, "sliding_window", None) is not None
        kinds = ["sliding_attention"] if windowed else []
    other = [kind for kind in kinds if kind != "full_attention"]
    if other:
        raise ValueError(f"{config.model_type}: layers of type {other[0]} are not supported")
    if config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    if config._attn_implementation != NAME:
        raise ValueError(f"{config.model_type}: its attention can't be switched to {NAME!r}")


def npr_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    npr_step: KVStep | None = None,
    npr_layout: PackedLayout | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """query [B, heads, n, d], key and value [B, kv_heads, n, d] -> ([B, n, heads, d], None).

    ValueError for variants of attention that come as further keywords and are not done here.
    """
    if npr_step is not None or npr_layout is not None:
        for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
            if kwargs.get(name) is not None:
                raise ValueError(f"attention with {name} is not supported")
    if npr_step is not None:
        npr_step.layers_done += 1
        layer = module.layer_idx
        assert isinstance(layer, int), "transformers numbers its attention layers"
        return _slot_attention(layer, query, key, value, scaling, npr_step), None
    if npr_layout is not None:
        return _row_attention(query, key, value, dropout, scaling, npr_layout), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


def _slot_attention(
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    step: KVStep,
) -> torch.Tensor:
    keys, values = step.keys[layer], step.values[layer]
    for given in (key, value):
        if (given.shape[1], given.shape[3]) != keys.shape[1:]:
            raise ValueError(
                f"keys or values of {given.shape[1]} heads x {given.shape[3]} are not supported: "
                f"the model's configuration tells of {keys.shape[1]} x {keys.shape[2]}"
            )
    # All new KV is written before anything is read, so that rows of one step may see each other:
    # a join's <takeaway> sees the </step> tokens forwarded beside it.
    # Under a trainer's autocast the new KV has another dtype than the pool.
    keys.index_copy_(0, step.write_slots, key[0].transpose(0, 1).to(keys.dtype))
    values.index_copy_(0, step.write_slots, value[0].transpose(0, 1).to(values.dtype))
    heads, kv_heads, dim = query.shape[1], key.shape[1], query.shape[3]
    # Contiguous, as paged.c writes it, which `empty_like` is not for every query: those of partial
    # rotary families (GLM, Phi-3, GPT-NeoX) lie head by head in memory.
    output = query.new_empty(query.shape[2], heads, dim)  # [T, heads, d]
    in_place = query.device.type == "cpu" and query.dtype == keys.dtype == torch.float32
    in_place = in_place and query.stride(3) == 1 and paged.kernel() is not None
    # Under autocast the trainer attends in bfloat16, and so does the engine.
    in_place = in_place and not torch.is_autocast_enabled("cpu")
    for group in step.groups:
        rows, new = len(group.rows), group.new
        tokens = slice(group.start, group.start + rows * new)
        if in_place and new <= _FEW and not group.hidden:
            scale, out = scaling or dim**-0.5, output[tokens]
            at = (step.tables, group.rows, group.lengths, new, scale, out)
            paged.paged_attention(query[0, :, tokens], keys, values, *at)
            continue
        slots, mask = _gathered(group, step.tables, query.device)
        # Query heads that share a KV head become further query rows: no copy of the KV.
        q = query[0, :, tokens].view(kv_heads, heads // kv_heads, rows, new, dim)
        q = q.permute(2, 0, 1, 3, 4).reshape(rows, kv_heads, -1, dim)
        k, v = (_gather(pool, slots).to(q.dtype) for pool in (keys, values))
        mask = mask[:, None, None].expand(-1, 1, heads // kv_heads, -1, -1)
        mask = mask.reshape(rows, 1, -1, mask.shape[-1])
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        out = out.reshape(rows, heads, new, dim).transpose(1, 2)
        output[tokens] = out.reshape(rows * new, heads, dim)
    return output[None]


def _gathered(
    group: RowGroup, tables: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The slots each row of a group reads, int64 [R, L] padded with slot 0, and which of them each
    new token sees, bool [R, S, L]."""
    if group.gathered is None:
        longest, new = group.lengths.max(), group.new
        keys = np.arange(longest)
        visible = (group.lengths[:, None] - new) + np.arange(1, new + 1)
        mask = keys < visible[..., None]
        for r, (start, hidden) in group.hidden.items():
            for level in hidden:
                own = keys - start
                mask[r] &= (own < level[:, :1]) | (own >= level[:, 1:])
        slots = np.where(keys < group.lengths[:, None], tables[group.rows, :longest], 0)
        group.gathered = torch.from_numpy(slots).to(device), torch.from_numpy(mask).to(device)
    return group.gathered


def _gather(pool: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Keys or values [R, kv_heads, L, d] of slots [R, L]."""
    # index_select over whole slots is 2-3 times as fast on a CPU as pool[slots]
    flat = pool.view(pool.shape[0], -1).index_select(0, slots.view(-1))
    return flat.view(*slots.shape, *pool.shape[1:]).transpose(1, 2)


def _row_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    layout: PackedLayout,
) -> torch.Tensor:
    if (query.shape[0], query.shape[2]) != (1, len(layout)):
        raise ValueError(f"queries {tuple(query.shape)} for a row of {len(layout)} tokens")
    device, groups = query.device, query.shape[1] // key.shape[1]
    # Under autocast rotary embeddings leave float32 beside bfloat16, which FlexAttention refuses,
    # and a bias of another dtype would be converted, and kept for the backward, in every layer.
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else query.dtype
    query, key, value = (states.to(dtype) for states in (query, key, value))
    if _by_blocks(query):
        if dropout:
            raise ValueError("FlexAttention has no dropout: set the model's attention_dropout to 0")
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        out = _compiled()(query, key, value, block_mask=layout.block_mask(device), scale=scaling)
        return out.transpose(1, 2)
    tiles, where = layout.tiles(device, dtype)
    outputs = []
    for tile in tiles:
        q, k, v = _take(query, tile.queries), _take(key, tile.keys), _take(value, tile.keys)
        k, v = repeat_kv(k, groups), repeat_kv(v, groups)
        out = scaled_dot_product_attention(q, k, v, tile.bias, dropout, scale=scaling)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[where][None]


def _by_blocks(query: torch.Tensor) -> bool:
    return query.is_cuda  # FlexAttention has no backward on a CPU


def _take(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, d] at tokens [N, R] -> [N, heads, R, d]."""
    heads, dim = states.shape[1], states.shape[3]
    # whole tokens, by what is the fastest both ways on a CPU
    flat = embedding(tokens, states[0].transpose(0, 1).reshape(-1, heads * dim))
    return flat.unflatten(-1, (heads, dim)).transpose(1, 2)


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    return torch.compile(flex_attention)


ALL_ATTENTION_FUNCTIONS.register(NAME, npr_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
