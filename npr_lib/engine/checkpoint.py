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
    """The mode a checkpoint was trained for; sequential where it doesn't say."""
    path = Path(folder) / "npr.json"
    return json.loads(path.read_text())["mode"] if path.exists() else "sequential"
