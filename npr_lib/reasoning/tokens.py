"""Tag tokens: adding them to a model, finding their ids, encoding text without merges across.

From stage 2 on the eight tags are single tokens, so that structure is a matter of ids: the engine
forks on an id, the layout reads ids, and no BPE merge can straddle a piece the engine writes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npr_lib.reasoning.schema import TAGS, ReasoningGraph, render
from npr_lib.reasoning.style import COMPACT, Style, pieces
from npr_lib.reasoning.tags import TAG


@dataclass(frozen=True, slots=True)
class TagIds:
    """Token ids of the eight tags, in the order of `schema.TAGS`."""

    guideline: int
    guideline_end: int
    plan: int
    plan_end: int
    step: int
    step_end: int
    takeaway: int
    takeaway_end: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> TagIds:
        """Look the tags up in a tokenizer; ValueError if one is not a single token of it."""
        vocabulary = tokenizer.get_vocab()
        missing = [tag for tag in TAGS if tag not in vocabulary]
        if missing:
            raise ValueError(
                f"the tokenizer lacks the tag tokens {' '.join(missing)}: "
                "call npr_lib.reasoning.tokens.add_tag_tokens(model, tokenizer) and save both"
            )
        return cls(*(vocabulary[tag] for tag in TAGS))

    @property
    def ids(self) -> tuple[int, ...]:
        return astuple(self)


def add_tag_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TagIds:
    """Add the eight tags as ordinary added tokens and initialise their embedding rows.

    Each new row of the input embedding (and of an untied output embedding) is the mean over the
    base tokens of the tag's name ("step", "/step"), so that it starts near its meaning and the
    opening tag differs from the closing one. Tags that both vocabulary and embedding already have
    are left alone, so that a second call changes nothing. `special=False`, because decoding with
    `skip_special_tokens=True` (TRL's way) would delete the structure.
    """
    vocabulary, size = tokenizer.get_vocab(), model.get_input_embeddings().num_embeddings
    new_tags = [tag for tag in TAGS if vocabulary.get(tag, size) >= size]
    unknown = [tag for tag in TAGS if tag not in vocabulary]
    pieces = {tag: encode(tag[1:-1], tokenizer) for tag in TAGS}
    tokenizer.add_tokens(unknown, special_tokens=False)
    tags = TagIds.from_tokenizer(tokenizer)
    new_tags += [tag for tag in unknown if tag not in new_tags]
    if not new_tags:
        return tags
    # Vocabularies are often padded beyond the tokenizer's length: never shrink them.
    if len(tokenizer) > size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weights = [model.get_input_embeddings().weight]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not weights[0]:
        weights.append(output.weight)
    with torch.no_grad():
        for weight in weights:
            for tag in new_tags:
                weight[tokenizer.convert_tokens_to_ids(tag)] = weight[pieces[tag]].mean(dim=0)
    return tags


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of `text` without special tokens around it."""
    return tokenizer.encode(text, add_special_tokens=False)


def encode_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt: with one BOS in front where the tokenizer begins texts with it (Gemma,
    Llama 2), whether or not a chat template has written it already."""
    ids, bos = encode(text, tokenizer), tokenizer.bos_token_id
    begins = bos is not None and tokenizer.encode("")[:1] == [bos]
    return [bos, *ids] if begins and ids and ids[0] != bos else ids


@dataclass(frozen=True, slots=True)
class StyleIds:
    """A style as token ids: the white space that the engine writes, each piece encoded apart.

    Without a tokenizer it is `compact`, which writes none.
    """

    style: Style = COMPACT
    before_step: tuple[int, ...] = ()
    in_step: tuple[int, ...] = ()
    after_step: tuple[int, ...] = ()
    in_takeaway: tuple[int, ...] = ()

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, style: Style) -> StyleIds:
        """ValueError where the tokenizer has no tokens for the style's white space."""
        written = [style.before_step, style.in_step, style.after_step, style.in_takeaway]
        ids = [tuple(encode(text, tokenizer)) if text else () for text in written]
        for text, own in zip(written, ids, strict=True):
            if tokenizer.decode(own) != text:
                raise ValueError(
                    f"style {style.name} writes {text!r}, for which the tokenizer has no tokens: "
                    f"it reads back as {tokenizer.decode(own)!r}"
                )
        return cls(style, *ids)


COMPACT_IDS = StyleIds()


def step_prefix(
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    tags: TagIds,
    writes: StyleIds = COMPACT_IDS,
) -> list[int]:
    """What the engine writes at the start of branch `index` (from 1): `<step>` and "i:", with the
    style's white space before and between."""
    return [*writes.before_step, tags.step, *writes.in_step, *encode(f"{index}:", tokenizer)]


def render_ids(
    graph: ReasoningGraph, tokenizer: PreTrainedTokenizerBase, style: Style = COMPACT
) -> list[int]:
    """Token ids of the canonical rendering, encoded piece by piece (no EOS).

    Tags, what the engine writes, and each text are encoded apart, exactly as they come to stand in
    the KV cache when the engine decodes the same response. ValueError for a graph that
    `schema.render` refuses: what its violations are about would be missing from the ids.
    """
    render(graph, style)  # for its checks
    tags = dict(zip(TAGS, TagIds.from_tokenizer(tokenizer).ids, strict=True))
    ids: list[int] = []
    for piece in filter(None, pieces(graph, style)):
        ids += [tags[piece]] if piece in tags else encode(piece, tokenizer)
    return ids


def decode_with_tags(
    token_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    tags: TagIds | None,
    eos_ids: Collection[int] = (),
) -> tuple[str, tuple[int, ...]]:
    """Text of `token_ids`, and the offsets in it of tags spelled with ordinary tokens.

    With tag tokens the pieces between them are decoded apart, so that what looks like a tag in
    the text but was not decoded from a tag token can be told from a real one. The end tokens
    `eos_ids` are left out. Without (`tags=None`, stage 1 of a pretrained model) the text is decoded
    whole and every tag in it is as good as any other.
    """
    ids = [i for i in token_ids if i not in eos_ids]
    if tags is None:
        return tokenizer.decode(ids, skip_special_tokens=False), ()
    names = dict(zip(tags.ids, TAGS, strict=True))
    spelled: list[int] = []
    piece: list[int] = []
    parts: list[str] = []
    length = 0

    def flush() -> None:
        nonlocal length
        if piece:
            decoded = tokenizer.decode(piece, skip_special_tokens=False)
            spelled.extend(length + match.start() for match in TAG.finditer(decoded))
            parts.append(decoded)
            length += len(decoded)
            piece.clear()

    for i in ids:
        if i in names:
            flush()
            parts.append(names[i])
            length += len(names[i])
        else:
            piece.append(i)
    flush()
    return "".join(parts), tuple(spelled)
