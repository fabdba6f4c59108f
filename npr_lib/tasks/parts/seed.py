"""Stage 0: the tiny seed model, pretrained from nothing on a corpus of mixed quality.

The other profiles start from an instruct model; the tiny one has to make its own, and a useful
one: it can do the pieces and does not know how to arrange them. `corpus` writes what it
reads.

A plain loop on purpose: no trainer class, no gradient accumulation, no mixed precision, no
evaluation. Muon on the matrices of the layers, AdamW on embeddings and norms. Run by
`notebooks/00_seed.ipynb`, i.e. `python -m npr_lib run --profile tiny`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from npr_lib.progress import report_progress
from npr_lib.reasoning.tokens import encode
from npr_lib.tasks.parts.corpus import Document
from npr_lib.tasks.parts.settings import Seed
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

IGNORE = -100  # label of a token without loss


def train(
    settings: Seed,
    model_fields: Mapping[str, Any],
    documents: Iterator[Document],
    folder: Path,
    seed: int,
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerBase]:
    """Pretrain the seed model; `folder` gets its `log.jsonl`.

    Args:
        model_fields: of Qwen3Config.
        documents: without end, what it reads.
    """
    set_seed(seed)
    tokenizer = tiny_tokenizer()
    model = build_model(model_fields, tokenizer)
    optimizers = _optimizers(model, settings)
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    model.train()
    start, tokens = time.perf_counter(), 0
    with (folder / "log.jsonl").open("w") as log:
        batches = _batches(settings, documents, tokenizer, seed)
        for step, (ids_BT, labels_BT) in enumerate(batches, start=1):
            rate = _rate(step, settings.steps, settings.warmup)
            for optimizer, lrs in zip(optimizers, peaks, strict=True):
                for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = rate * lr
            logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
            loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            tokens += ids_BT.numel()
            if step % settings.log_every == 0 or step == settings.steps:
                speed = tokens / (time.perf_counter() - start)
                row = {"loss": loss.item(), "learning_rate": rate, "tokens_per_second": speed}
                report_progress(step, settings.steps, **row)
                log.write(json.dumps({"step": step, "num_tokens": tokens, **row}) + "\n")
                log.flush()
    model.eval()
    return model, tokenizer


def build_model(fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 with these config fields and the tokenizer's vocabulary."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **fields,
    )
    return Qwen3ForCausalLM(config).float()


class Muon(torch.optim.Optimizer):
    """Muon (Nesterov momentum, then orthogonalised updates) with all matrices of a shape at once.

    `torch.optim.Muon` takes them one by one in bfloat16, which most CPUs emulate: a fifth of a
    step at this size. Here: float32 and one batched product a shape. No weight decay.
    """

    def __init__(self, matrices: Sequence[torch.nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})
        self.averages = {matrix: torch.zeros_like(matrix) for matrix in matrices}

    # Without torch's optional closure, which nobody here has: a step has the gradients it has.
    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                shapes.setdefault(tuple(matrix.shape), []).append(matrix)
            for (rows, columns), matrices in shapes.items():
                updates = []
                for matrix in matrices:
                    average, gradient = self.averages[matrix], matrix.grad
                    assert gradient is not None, "a step comes after a backward pass"
                    average.lerp_(gradient, 1 - group["momentum"])
                    updates.append(torch.lerp(gradient, average, group["momentum"]))
                scale = group["lr"] * max(1, rows / columns) ** 0.5
                directions = orthogonalise(torch.stack(updates))
                for matrix, direction in zip(matrices, directions, strict=True):
                    matrix.sub_(direction, alpha=scale)


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Singular values of each matrix [B, M, N] pushed towards 1 by Newton-Schulz iterations."""
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.mT if matrices.shape[1] > matrices.shape[2] else wide


def _optimizers(model: Qwen3ForCausalLM, settings: Seed) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    adamw: dict[str, Any] = dict(settings.adamw)  # by name: no checker knows which are floats
    return [Muon(matrices, **settings.muon), torch.optim.AdamW(others, **adamw)]


def _rate(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then linear decay to (nearly) zero."""
    return min(step / max(1.0, warmup * steps), (steps - step + 1) / (steps * (1 - warmup)), 1.0)


def _batches(
    settings: Seed,
    documents: Iterator[Document],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` batches (ids [B, T], labels [B, T]), right-padded; B documents of like length.

    Documents are sorted by length within pools of 8 batches, whose order is then shuffled, so
    that little is padding.
    """
    draw = random.Random(seed)
    batch, left = settings.batch, settings.steps
    while left:
        count = min(8, left)
        pool = [_encode(next(documents), tokenizer) for _ in range(count * batch)]
        pool.sort(key=lambda pair: len(pair[0]))
        starts = [i * batch for i in range(count)]
        draw.shuffle(starts)
        for first in starts:
            yield _pad(pool[first : first + batch], tokenizer.pad_token_id)
        left -= count


def _encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    ids = encode(document.prompt, tokenizer)
    labels = [IGNORE] * len(ids)
    for text, trained in document.pieces:
        piece = encode(text, tokenizer)
        ids += piece
        labels += piece if trained else [IGNORE] * len(piece)
    if document.kind != "drill":  # a drill stops in the middle of a response
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id)
    return ids, labels


def _pad(
    pairs: Sequence[tuple[list[int], list[int]]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Padding on the right needs no mask: causal attention never looks there."""
    length = max(len(ids) for ids, _ in pairs)
    ids_BT = [ids + [pad_id] * (length - len(ids)) for ids, _ in pairs]
    labels_BT = [labels + [IGNORE] * (length - len(labels)) for _, labels in pairs]
    return torch.tensor(ids_BT), torch.tensor(labels_BT)
