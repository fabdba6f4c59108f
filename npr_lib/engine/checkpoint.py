"""Model folders as the engine takes them: weights, tokenizer, mode and writing style."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from npr_lib import WorkbenchError
from npr_lib.engine.adapter import load_adapter, merge, save_adapter
from npr_lib.engine.api import EngineConfig
from npr_lib.files import ADAPTER, base_of
from npr_lib.reasoning.schema import TAGS
from npr_lib.reasoning.style import COMPACT, LINES, Style, named
from npr_lib.reasoning.tokens import TagIds
from npr_lib.reasoning.trajectory import Mode


def load_checkpoint(path: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Hugging Face folder as (model, tokenizer), an adapter merged into its base; WorkbenchError
    if it is none."""
    check_model(path)
    model, tokenizer = read_model(path)
    on_device(model)
    return model, tokenizer


def read_model(path: Path | str, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a folder or hub id, an adapter merged into its base. options: of
    the model's `from_pretrained`. Raises what transformers raises."""
    if base_of(path) is not None:
        adapter, tokenizer = load_adapter(Path(path), **options)
        return merge(adapter), tokenizer
    own = {key: value for key, value in options.items() if key == "gguf_file"}
    tokenizer = AutoTokenizer.from_pretrained(path, **own)
    return AutoModelForCausalLM.from_pretrained(path, **options), tokenizer


def on_device(model: torch.nn.Module) -> None:
    """To the GPU, where there is one, before an engine is made over it: the KV pool lies where the
    model is."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")


def eos_ids(model: PreTrainedModel) -> frozenset[int]:
    """The ids that end a response by the model's generation config, one or a list of them."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in ids if i is not None)


def check_model(path: Path | str) -> None:
    if not (Path(path) / "config.json").is_file() and base_of(path) is None:
        raise WorkbenchError(f"{path} is not a model folder: it has no config.json")


def checkpoint_mode(folder: Path | str) -> Mode:
    """The mode a checkpoint was trained for, as its `npr.json` says.

    Without one, a model with the eight tags as tokens is taken for a parallel one, which is said
    with the style it is written in, and any other for a sequential one.
    """
    said = _said(folder)
    if said is not None:
        return said["mode"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    try:
        TagIds.from_tokenizer(tokenizer)
    except ValueError:
        return "sequential"
    style, why = style_of(tokenizer)
    print(
        f"{folder} has no npr.json but the tags as tokens: decoded in mode parallel, style "
        f"{style.name} ({why}) unless engine.style names another"
    )
    return "parallel"


def style_of(tokenizer: PreTrainedTokenizerBase) -> tuple[Style, str]:
    """The style that a model with this tokenizer was trained to write, and what tells it.

    First what `npr.json` says in the folder that the tokenizer was read from (without a style:
    compact). Else how the tags are tokens: the authors' released models have them as special tokens
    (the chat template tells nothing, theirs is that of any Qwen3), `add_tag_tokens` makes them
    ordinary ones.
    """
    said = _said(tokenizer.name_or_path) if tokenizer.name_or_path else None
    if said is not None:
        return named(said.get("style", COMPACT.name)), "as its npr.json says"
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    if special.issuperset(TAGS):
        return LINES, "its tags are special tokens, as in the authors' released models"
    return COMPACT, "its tags are no special tokens"


def style_for(tokenizer: PreTrainedTokenizerBase, config: EngineConfig) -> Style:
    """The style that an engine of this configuration writes with this tokenizer."""
    name = config.style or style_of(tokenizer)[0].name
    return named(name, config.min_chars)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    mode: Mode,
    style: Style = COMPACT,
) -> None:
    """A Hugging Face folder (of an adapter, the adapter alone), and `npr.json`, which says in which
    mode the model is decoded and in which style, compact where it says none."""
    if isinstance(model, PeftModel):
        save_adapter(model, folder)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    said = {"mode": mode} | ({} if style.name == COMPACT.name else {"style": style.name})
    (folder / "npr.json").write_text(json.dumps(said) + "\n")


def merge_folder(adapter: Path, folder: Path) -> None:
    """An adapter folder merged into its base, as a model folder of its own: the same tokenizer,
    mode and style. WorkbenchError if it is no adapter."""
    if base_of(adapter) is None:
        raise WorkbenchError(f"{adapter} is no adapter: it has no {ADAPTER}")
    model, tokenizer = load_checkpoint(adapter)
    save_model(model, tokenizer, folder, checkpoint_mode(adapter), style_of(tokenizer)[0])


def _said(folder: Path | str) -> dict[str, Any] | None:
    """What a folder's `npr.json` says; None where there is none."""
    path = Path(folder) / "npr.json"
    return json.loads(path.read_text()) if path.exists() else None


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


def mend_generation(model: PreTrainedModel, name: str) -> None:
    """Sampling switched on in a generation config that has a temperature, top-p or the like and
    does not say so: transformers loads that, and refuses to save it. WorkbenchError for another
    fault, before a training ends at its first checkpoint."""
    config = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
        try:
            config.validate(strict=True)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise WorkbenchError(
                f"{name}: its generation config can't be saved: {reason}"
            ) from error
        print(
            f"{name}: its generation config sets how to sample, so do_sample: true is saved with it"
        )
