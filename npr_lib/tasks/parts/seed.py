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
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from npr_lib import WorkbenchError
from npr_lib.engine.checkpoint import check_precision, save_model
from npr_lib.progress import report_progress
from npr_lib.reasoning.tokens import encode
from npr_lib.tasks.parts.corpus import Document, corpus
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

IGNORE = -100  # label of a token without loss


def train(profile: Mapping[str, Any], run_dir: str | Path, seed: int) -> Path:
    """Pretrain the seed model; returns `run_dir/"seed"`, a Hugging Face folder with `log.jsonl`.

    A profile whose `model` section has a `path` starts from that model instead (see `adopt`).
    Otherwise `profile["model"]` holds `Qwen3Config` fields, `profile["seed"]` `steps`, `batch`
    (documents), `muon` and `adamw` (their optimizers' arguments), `warmup` (a share of the steps),
    `log_every` and `corpus`.
    """
    spec, folder = profile.get("seed"), Path(run_dir) / "seed"
    folder.mkdir(parents=True, exist_ok=True)
    if "path" in profile["model"]:
        return adopt(profile["model"], folder)
    set_seed(seed)
    tokenizer = tiny_tokenizer()
    model = build_model(profile["model"], tokenizer)
    optimizers = _optimizers(model, spec)
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    model.train()
    start, tokens = time.perf_counter(), 0
    with (folder / "log.jsonl").open("w") as log:
        batches = _batches(profile, tokenizer, seed)
        for step, (ids_BT, labels_BT) in enumerate(batches, start=1):
            rate = _rate(step, spec["steps"], spec["warmup"])
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
            if step % spec["log_every"] == 0 or step == spec["steps"]:
                speed = tokens / (time.perf_counter() - start)
                row = {"loss": loss.item(), "learning_rate": rate, "tokens_per_second": speed}
                report_progress(step, spec["steps"], **row)
                log.write(json.dumps({"step": step, "num_tokens": tokens, **row}) + "\n")
                log.flush()
    model.eval()
    save_model(model, tokenizer, folder, "sequential")
    return folder


def adopt(fields: Mapping[str, Any], folder: Path) -> Path:
    """Save an existing causal LM and its tokenizer as the seed, its weights in float32.

    `fields["path"]`: a Hugging Face folder or hub id; further fields go to `from_pretrained`
    (`gguf_file`, ...). WorkbenchError if it can't be loaded, or in a `dtype` too narrow to train.
    Its tags are ordinary text until stage 2 makes them tokens. Whatever it was trained for, as the
    seed it decodes sequentially.
    """
    path, options = fields["path"], {k: v for k, v in fields.items() if k != "path"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, **{k: v for k, v in options.items() if k == "gguf_file"}
        )
        # by default it would be loaded as it is stored, mostly in bfloat16
        model = AutoModelForCausalLM.from_pretrained(path, **{"dtype": "float32", **options})
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise WorkbenchError(f"model.path = {path} can't be loaded: {reason}") from error
    check_precision(model, f"model.path = {path}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # stage 1 rolls out sequentially, so that is how its starting point is measured
    save_model(model, tokenizer, folder, "sequential")
    (folder / "log.jsonl").write_text("")
    return folder


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

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                shapes.setdefault(tuple(matrix.shape), []).append(matrix)
            for (rows, columns), matrices in shapes.items():
                updates = []
                for matrix in matrices:
                    average = self.averages[matrix]
                    average.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(matrix.grad, average, group["momentum"]))
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


def _optimizers(model: Qwen3ForCausalLM, spec: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [Muon(matrices, **spec["muon"]), torch.optim.AdamW(others, **spec["adamw"])]


def _rate(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then linear decay to (nearly) zero."""
    return min(step / max(1.0, warmup * steps), (steps - step + 1) / (steps * (1 - warmup)), 1.0)


def _batches(
    profile: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` batches (ids [B, T], labels [B, T]), right-padded; B documents of like length.

    Documents are sorted by length within pools of 8 batches, whose order is then shuffled, so
    that little is padding.
    """
    spec = profile["seed"]
    documents, draw = corpus(profile, seed), random.Random(seed)
    batch, left = spec["batch"], spec["steps"]
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
