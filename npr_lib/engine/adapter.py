"""LoRA adapters (peft): a folder of a few megabytes that stands on a base model.

`base_model_name_or_path` in its adapter_config.json is the base's path from the folder itself, so
that both move together, or a hub id. The rows of the tags are in the adapter, since the base need
not have them.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from npr_lib import WorkbenchError
from npr_lib.files import ADAPTER, base_of


def load_adapter(
    folder: Path, trainable: bool = False, **options: Any
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """An adapter in place over its base; options: of the base's `from_pretrained`. WorkbenchError
    if the base can't be loaded."""
    base = base_of(folder)
    own = (folder / "tokenizer_config.json").is_file()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder if own else base)
        model = AutoModelForCausalLM.from_pretrained(base, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise WorkbenchError(
            f"{folder}: its base model {base} can't be loaded: {reason}"
        ) from error
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return whole(PeftModel.from_pretrained(model, folder, is_trainable=trainable)), tokenizer


def whole(model: PeftModel) -> PeftModel:
    """The model with its output matrix's bias in reach, which TRL's fused head reads and peft's
    wrapper of trained rows hides."""
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.register_parameter("bias", head.original_module.bias)
    return model


def save_adapter(model: PeftModel, folder: Path) -> None:
    """The adapter alone, with the way to its base."""
    base = str(model.get_base_model().name_or_path)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    point(folder, base)


def point(folder: Path, base: Path | str) -> None:
    """Let an adapter folder name this base: a folder by the way to it, a hub id as it is."""
    path = folder / ADAPTER
    way = os.path.relpath(base, folder) if Path(base).is_dir() else str(base)
    said = json.loads(path.read_text()) | {"base_model_name_or_path": way}
    path.write_text(json.dumps(said, indent=2) + "\n")


def merge(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter merged into it, its weights no longer frozen."""
    return model.merge_and_unload().requires_grad_(True)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A merged copy of a model with an adapter, for whoever knows no adapters; any other model as
    it is."""
    return merge(copy.deepcopy(model)) if isinstance(model, PeftModel) else model
