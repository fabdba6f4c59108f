"""Model folders as the engine takes them: weights, tokenizer, and the mode they decode in."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from npr_lib import WorkbenchError
from npr_lib.reasoning.tokens import TagIds
from npr_lib.reasoning.trajectory import Mode


def load_checkpoint(path: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Hugging Face folder as (model, tokenizer); WorkbenchError if it is none."""
    check_model(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    # before an engine is made over it: the KV pool lies where the model is
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, AutoTokenizer.from_pretrained(path)


def check_model(path: Path | str) -> None:
    if not (Path(path) / "config.json").is_file():
        raise WorkbenchError(f"{path} is not a model folder: it has no config.json")


def checkpoint_mode(folder: Path | str) -> Mode:
    """The mode a checkpoint was trained for, as its `npr.json` says.

    Without one, a model with the eight tags as tokens is taken for a parallel one, which is said,
    and any other for a sequential one.
    """
    path = Path(folder) / "npr.json"
    if path.exists():
        return json.loads(path.read_text())["mode"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    try:
        TagIds.from_tokenizer(tokenizer)
    except ValueError:
        return "sequential"
    print(f"{folder} has no npr.json but the tags as tokens: decoded in mode parallel")
    return "parallel"


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, mode: Mode
) -> None:
    """A Hugging Face folder, and `npr.json`, which says in which mode the model is decoded."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "npr.json").write_text(json.dumps({"mode": mode}) + "\n")


def check_precision(model: PreTrainedModel, name: str) -> None:
    """WorkbenchError if weights that train are of a type narrower than float32.

    AdamW moves a weight by about the learning rate. bfloat16 has 8 bits: its next value is at least
    0.4 % away, so the step is rounded to nothing and the loss is as if nothing were amiss.
    """
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    narrow = sorted(str(t).removeprefix("torch.") for t in trained if t.itemsize < 4)
    if narrow:
        raise WorkbenchError(
            f"{name} has {' and '.join(narrow)} weights to train, which round small updates away: "
            "of bfloat16 weights 20 steps of AdamW change 2 % at learning rate 1e-6 and 0.2 % at "
            "1e-7, of float32 ones 100 %. Train float32 weights (model.path without a dtype, or "
            "with dtype: float32) and compute in bfloat16 by autocast: grpo.bf16: true and "
            "sft.trl.bf16: true"
        )
