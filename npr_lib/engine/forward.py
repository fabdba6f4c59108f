"""A step on tensors: the rows' new tokens through the model, and a token for every turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedModel

from npr_lib.engine.attention import KVStep, RowGroup
from npr_lib.engine.branch import Responding, Response, Turn
from npr_lib.engine.kv import KVPool
from npr_lib.engine.sampling import sample
from npr_lib.engine.scheduler import Row

# Multiply-adds of a matrix product below which one thread of a CPU is faster than waking others:
# at 2 to 64 rows a 350k-parameter model takes 1.1 to 2.9 ms a step on one core, 3.8 to 5.2 on two.
_ONE_THREAD = 3e6


def matrix_size(model: PreTrainedModel) -> float:
    """Mean number of weights of a model's matrices."""
    return float(np.mean([weight.numel() for weight in model.parameters() if weight.dim() == 2]))


@contextmanager
def fitting_threads(model: PreTrainedModel, products: float) -> Iterator[None]:
    """On a CPU, one thread while matrix products take less than `_ONE_THREAD` multiply-adds."""
    threads = torch.get_num_threads()
    if model.device.type != "cpu" or products > _ONE_THREAD or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def forward(model: PreTrainedModel, kv: KVPool, rows: Sequence[Row]) -> torch.Tensor | None:
    """One model call over the rows' new tokens; float [rows with an owner, V] logits."""
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(len(row.ids), []).append(i)
    groups, order = [], []
    start = 0
    for new, members in by_length.items():
        groups.append(_group(start, new, [rows[i] for i in members]))
        order += members
        start += new * len(members)
    ordered = [rows[i] for i in order]
    ids = list(chain.from_iterable(row.ids for row in ordered))
    positions = list(chain.from_iterable(row.positions for row in ordered))
    ends = np.cumsum([len(row.ids) for row in ordered])
    last = dict(zip(order, (ends - 1).tolist(), strict=True))
    wanted = [last[i] for i, row in enumerate(rows) if row.owner is not None]
    device = model.device
    write_slots = np.concatenate([_new_slots(group, kv.tables) for group in groups])
    kv_step = KVStep(
        kv.keys,
        kv.values,
        kv.tables,
        torch.from_numpy(write_slots).to(device),
        groups,
    )
    # Router logits are the trainer's affair, and their loss would want a mask of two dimensions.
    routed = hasattr(model.config.get_text_config(), "output_router_logits")
    output = model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        # A 4-D mask is passed through unread; without one, transformers would build an n x n
        # mask (and take branch positions for packed sequences).
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        use_cache=False,
        # Only these tokens go through the output matrix; one, unread, where none is wanted.
        logits_to_keep=torch.tensor(wanted or [0], device=device),
        npr_step=kv_step,
        **({"output_router_logits": False} if routed else {}),
    )
    if kv_step.layers_done != len(kv.keys):
        raise ValueError(
            f"{model.config.model_type} is not supported: {kv_step.layers_done} of its "
            f"{len(kv.keys)} layers pass keyword arguments on to their attention"
        )
    return output.logits[0] if wanted else None


def choose(
    logits: torch.Tensor, turns: Sequence[tuple[Responding, Turn]]
) -> list[tuple[int, float, float, float]]:
    """(token, logprob, behaviour logprob, entropy) for every branch whose turn it is."""
    finite = logits.amax(dim=-1).isfinite()
    keys, counters = [], []
    forced: list[int | None] = []
    alike: dict[tuple[float, ...], list[int]] = {}
    for i, ((request, branch), sound) in enumerate(zip(turns, finite.tolist(), strict=True)):
        response = request.response
        try:
            if not sound:
                message = "the model's logits are not finite: its weights have diverged"
                raise FloatingPointError(message)
            forced.append(response.forced_token(branch))
        except Exception as error:
            name_response(error, response)
            raise
        keys.append(branch.key)
        counters.append(len(branch.sampled))
        alike.setdefault(response.distribution, []).append(i)
    tokens: list[tuple[int, float, float, float]] = [(0, 0.0, 0.0, 0.0)] * len(turns)
    for rows in alike.values():
        params = turns[rows[0]][0].response.params
        seen: list[Sequence[int]] = []
        if params.branch_penalty != 1:
            seen = [turns[i][1].sampled if turns[i][1].path else [] for i in rows]
        own = logits if len(rows) == len(turns) else logits[rows]
        noise = [keys[i] for i in rows], [counters[i] for i in rows]
        drawn = sample(own, *noise, params, seen, [forced[i] for i in rows])
        for i, token in zip(rows, zip(*drawn, strict=True), strict=True):
            tokens[i] = token
    return tokens


def name_response(error: Exception, response: Response) -> None:
    """Say in the notes of an exception which response it came from."""
    prompt = response.grammar.tokenizer.decode(response.prompt_ids[:40])
    error.add_note(f"while decoding response {response.index} of its call, to {prompt!r}")


def _group(start: int, new: int, rows: Sequence[Row]) -> RowGroup:
    """Rows of `new` tokens each, which begin at token `start` of the step."""
    return RowGroup(
        start,
        new,
        np.array([row.row for row in rows]),
        np.array([row.length for row in rows]),
        {r: (row.start, row.hidden) for r, row in enumerate(rows) if row.hidden is not None},
    )


def _new_slots(group: RowGroup, tables: np.ndarray) -> np.ndarray:
    """int64 [R * S], where the KV of a group's new tokens goes."""
    last = group.lengths[:, None] - group.new + np.arange(group.new)
    return tables[group.rows[:, None], last].reshape(-1)
