"""The tokenizer of the tiny profile: the vocabulary of its toy, tags included."""

from __future__ import annotations

import re
import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from npr_lib.reasoning.schema import TAGS

# Words of the task family; every other printable character is a token of its own.
TINY_WORDS = ("values",)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the tiny profile: tags, integers 0..99, `\\boxed{`, words, characters.

    Word-level with an exact decoder: decoding concatenates the tokens, so that any text of
    printable ASCII survives a round trip. Other characters become `<unk>`.
    """
    numbers = [str(i) for i in range(100)]
    characters = [c for c in string.printable if c.isprintable() and not c.isdigit()] + ["\n"]
    tokens = ["<pad>", "<eos>", "<unk>", *TAGS, *numbers, r"\boxed{", *TINY_WORDS, *characters]
    core = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>")
    )
    whole = [*TAGS, "<eos>", "<pad>", r"\boxed{", *TINY_WORDS]
    alternatives = [*(re.escape(token) for token in whole), r"[1-9]\d", r"\d", r"[\s\S]"]
    core.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(alternatives)), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
