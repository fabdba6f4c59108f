"""How large a run's model is, without its weights: shapes on torch's meta device."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from npr_lib import WorkbenchError
from npr_lib.analysis.ladder import rungs
from npr_lib.files import PACKAGE
from npr_lib.profiles.sections import Profile
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.train.adopt import located

STATE = 3  # numbers of four bytes a parameter in a checkpoint: the weight, two moments of Adam
KEPT = 3  # checkpoints of one training at a time: the best, the last, one being written


def config(profile: Profile) -> PreTrainedConfig | None:
    """The configuration of the profile's model: of the folder that is here, or as it is written
    down in `profiles/NAME.json` for one of the hub; None where nothing tells."""
    if "path" not in profile.model:
        made = {"vocab_size": len(tiny_tokenizer()), **profile.model}
        return AutoConfig.for_model("qwen3", **made)
    path = Path(located(profile.model["path"]))
    if (file := profile.model.get("gguf_file")) and path.is_dir():
        return AutoConfig.from_pretrained(path, gguf_file=file)
    written = PACKAGE / "profiles" / f"{path.name}.json"
    for file in (path / "config.json", written):
        if file.is_file():
            try:
                return AutoConfig.for_model(**json.loads(file.read_text(encoding="utf-8")))
            except (TypeError, ValueError) as error:
                raise WorkbenchError(f"{file}: {error}") from error
    return None


def parameters(shape: PreTrainedConfig) -> int:
    """Numbers that a model of this configuration holds, tied ones once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    return sum(p.numel() for p in model.parameters())


def kv_bytes(shape: PreTrainedConfig, width: int) -> int:
    """Bytes of a token's keys and values in numbers of `width` bytes."""
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return 2 * shape.num_hidden_layers * heads * size * width


def disk(profile: Profile) -> int | None:
    """Bytes that the checkpoints of a whole run take, in float32; None: the size isn't known.
    Adapters count nothing."""
    if (shape := config(profile)) is None:
        return None
    trainings = 2 if profile.baselines else 1  # at a time
    trained = len(rungs(profile.baselines)) - 1 + KEPT * STATE * trainings
    return 4 * parameters(shape) * (1 + (0 if profile.lora else trained))
