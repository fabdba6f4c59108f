"""Sampling with counter-based randomness: one uniform a token, from what the token *is*.

u = hash(request seed, sample index, branch path, index in the branch), then inverse CDF in
float64. Nothing depends on which rows happen to share a batch or in which order they came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from npr_lib.engine.api import SamplingParams

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(*words: int) -> int:
    """64-bit hash of integers (the splitmix64 finaliser, chained)."""
    state = 0
    for word in words:
        state = (state ^ (word & _MASK)) + _GOLDEN & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def hash_ids(token_ids: Sequence[int]) -> int:
    """64-bit hash of a prompt, the same in every process."""
    data = np.asarray(token_ids, np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def uniforms(keys: Sequence[int], counters: Sequence[int]) -> np.ndarray:
    """float64 [R] in [0, 1): row r is a function of (keys[r], counters[r]) alone."""
    state = np.asarray(keys, np.uint64)
    for word in (np.asarray(counters, np.uint64), np.uint64(0)):
        with np.errstate(over="ignore"):
            state = (state ^ word) + np.uint64(_GOLDEN)
            state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            state = state ^ state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def penalize(logits: torch.Tensor, seen: Sequence[Sequence[int]], penalty: float) -> torch.Tensor:
    """Divide positive and multiply negative logits [R, V] of each row's `seen` token ids."""
    logits = logits.clone()
    for row, ids in enumerate(seen):
        index = torch.tensor(sorted(set(ids)), dtype=torch.long, device=logits.device)
        values = logits[row, index]
        logits[row, index] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def truncate(probs: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """Zero all but the top_k largest, then all but the smallest set of mass >= top_p, of [R, V].

    Ties are broken by token id, so that the set never depends on a sort's whim.
    """
    ordered, index = probs.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        keep[:, top_k:] = False
    kept = ordered * keep
    before = kept.cumsum(-1) - kept
    keep &= before < top_p * kept.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter_(-1, index, ordered * keep)


def sample(
    logits: torch.Tensor,
    uniform: np.ndarray,
    params: SamplingParams,
    seen: Sequence[Sequence[int]] = (),
    forced: Sequence[int | None] = (),
) -> tuple[list[int], list[float], list[float]]:
    """Choose one token a row.

    logits [R, V] raw; uniform float64 [R]; seen[r]: ids the branch penalty applies to; forced[r]:
    the token to score instead of sampling (None: sample).
    Returns ids, logprobs (log_softmax(raw / T), T = 0 read as 1) and behaviour logprobs (of the
    distribution sampled from; 0 for greedy).
    """
    raw = logits.double()
    if not raw.amax(dim=-1).isfinite().all():
        raise FloatingPointError("the model's logits are not finite: its weights have diverged")
    logprobs = torch.log_softmax(raw / (params.temperature or 1.0), dim=-1)
    penalized = raw
    if params.branch_penalty != 1 and any(seen):
        penalized = penalize(raw, seen, params.branch_penalty)
    if params.temperature == 0:
        ids = best = penalized.argmax(-1)
    else:
        probs = torch.softmax(penalized / params.temperature, dim=-1)
        if params.top_p < 1 or params.top_k:
            probs = truncate(probs, params.top_p, params.top_k)
        cdf = probs.cumsum(-1)
        total = cdf[:, -1:].clone()
        point = torch.from_numpy(uniform).to(cdf.device)[:, None] * total
        # The second bound keeps u * total rounded up to the total from passing the last token
        # that has any probability.
        ids = torch.minimum(
            torch.searchsorted(cdf, point, right=True), torch.searchsorted(cdf, total)
        )[:, 0]
    if any(token is not None for token in forced):
        pairs = zip(ids.tolist(), forced, strict=True)
        ids = torch.tensor([own if token is None else token for own, token in pairs]).to(raw.device)
    if params.temperature == 0:
        behaviour = torch.where(ids == best, 0.0, -torch.inf)
    else:
        behaviour = (probs.gather(-1, ids[:, None]) / total).log()[:, 0]
    chosen = logprobs.gather(-1, ids[:, None])[:, 0]
    return ids.tolist(), chosen.tolist(), behaviour.tolist()
