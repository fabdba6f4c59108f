"""LoRA: what trains is a small adapter beside frozen weights (peft).

The profile's section `lora` holds the fields of peft.LoraConfig; without one all weights train.
Where the tags are tokens, their rows of the embedding (and of an untied output matrix) train with
the adapter: stage 2 makes them, and nothing else could teach the model to write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from npr_lib import WorkbenchError
from npr_lib.engine.adapter import load_adapter, whole
from npr_lib.engine.checkpoint import (
    check_precision,
    load_checkpoint,
    mend_generation,
    on_device,
)
from npr_lib.files import base_of
from npr_lib.reasoning.schema import TAGS


def load_trainable(
    path: Path, lora: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model folder for a training; WorkbenchError for weights that hardly would learn.

    An adapter goes on training in place (`lora`: as the profile has it, which must be as it was
    made), or, where the profile has no `lora`, merged into its base as all weights.
    """
    if base_of(path) is None or not lora:
        model, tokenizer = load_checkpoint(path)
        if base_of(path) is not None:
            print(f"{path} is an adapter, the profile has no lora: merged, and all weights train")
    else:
        model, tokenizer = load_adapter(path, trainable=True)
        on_device(model)
        _check_same(model.peft_config["default"], lora, path)
    check_precision(model, str(path))
    mend_generation(model, str(path))
    return model, tokenizer


def add_adapter(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lora: Mapping[str, Any], seed: int
) -> PreTrainedModel | PeftModel:
    """The model with a new adapter, drawn with this seed, that trains in its place; itself where
    the profile has no `lora`, and where it has an adapter already. WorkbenchError where peft can't
    make it."""
    if not lora or isinstance(model, PeftModel):
        return model
    vocabulary = tokenizer.get_vocab()
    tags = [vocabulary[tag] for tag in TAGS if tag in vocabulary]
    rows = dict.fromkeys(_matrices(model), tags) if tags else None
    set_seed(seed)
    try:
        config = LoraConfig(**lora, task_type="CAUSAL_LM", trainable_token_indices=rows)
        return whole(get_peft_model(model, config))
    except (TypeError, ValueError) as error:
        raise WorkbenchError(f"lora: {error}") from error


def trainable_share(model: PreTrainedModel) -> float:
    """Trained weights / all weights."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained / sum(p.numel() for p in model.parameters())


def _matrices(model: PreTrainedModel) -> list[str]:
    """The names of the embedding and of an output matrix of its own."""
    wanted = [model.get_input_embeddings(), model.get_output_embeddings()]
    if wanted[1] is not None and wanted[1].weight is wanted[0].weight:
        wanted.pop()  # peft lets it follow
    return [name for name, module in model.named_modules() if any(module is w for w in wanted)]


def _check_same(config: LoraConfig, lora: Mapping[str, Any], path: Path) -> None:
    made = config.to_dict()
    for name, value in LoraConfig(**lora).to_dict().items():
        found = value == INCLUDE_LINEAR_LAYERS_SHORTHAND  # peft writes down which those are
        if name in lora and not found and made[name] != value:
            raise WorkbenchError(
                f"lora.{name} = {lora[name]}, but the adapter {path} has {made[name]}: train with "
                "that, or from a merged model (python -m npr_lib merge)"
            )
