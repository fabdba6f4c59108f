"""Tag tokens: initialisation, idempotence, piecewise encoding, look-alikes."""

import random
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import random_model
from strategies import graphs
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from npr_lib.engine import SamplingParams, TorchEngine
from npr_lib.reasoning.layout import layout
from npr_lib.reasoning.schema import TAGS, parse, render
from npr_lib.reasoning.tokens import (
    TagIds,
    add_tag_tokens,
    decode_with_tags,
    encode,
    encode_prompt,
    render_ids,
    step_prefix,
)
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TINY = tiny_tokenizer()
PRINTABLE = "".join(c for c in string.printable if c.isprintable()) + "\n"
TEXTS = [f"1:=plan the step, then step {i}:=guideline takeaway /step> x" for i in range(50)]


def bpe():
    """A byte-level BPE tokenizer whose merges would straddle tags and indices."""
    core = ByteLevelBPETokenizer()
    core.train_from_iterator(TEXTS * 3, vocab_size=400)
    core.add_special_tokens(["<eos>", "<pad>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, eos_token="<eos>", pad_token="<pad>"
    )


def small_model(vocab, tied):
    torch.manual_seed(0)
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=vocab, tie_word_embeddings=tied, **config, **heads)
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [0, 64])
def test_tags_are_initialised_to_the_mean_of_their_names(tied, padding):
    tokenizer = bpe()
    model = small_model(len(tokenizer) + padding, tied)
    size = model.get_input_embeddings().num_embeddings
    pieces = {tag: tokenizer.encode(tag[1:-1]) for tag in TAGS}
    before = model.get_input_embeddings().weight.detach().clone()
    tags = add_tag_tokens(model, tokenizer)
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for weight in weights:
        assert len(weight) == max(size, len(tokenizer))
        rows = weight[list(tags.ids)]
        assert len({tuple(row.tolist()) for row in rows}) == 8, "two tags start as the same row"
    for tag, token in zip(TAGS, tags.ids, strict=True):
        assert torch.allclose(weights[0][token], before[pieces[tag]].mean(0))
        assert tokenizer.encode(f"a{tag}b", add_special_tokens=False).count(token) == 1
    assert tokenizer.decode(tags.ids, skip_special_tokens=True) == "".join(TAGS)
    again = [w.detach().clone() for w in weights]
    assert add_tag_tokens(model, tokenizer) == tags
    assert len(tokenizer) == len(bpe()) + 8
    other = small_model(len(bpe()), tied)
    assert add_tag_tokens(other, tokenizer) == tags, "a second model of the same tokenizer"
    rows = other.get_input_embeddings().weight[list(tags.ids)]
    assert len({tuple(row.tolist()) for row in rows}) == 8
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert all(torch.equal(a, b) for a, b in zip(again, after, strict=True))


def test_a_tokenizer_without_tags_is_refused_by_name():
    with pytest.raises(ValueError, match="lacks the tag tokens <guideline> </guideline>"):
        TagIds.from_tokenizer(bpe())


@given(st.text(alphabet=PRINTABLE))
def test_tiny_tokenizer_round_trips_any_text(text):
    assert TINY.decode(encode(text, TINY)) == text


def test_tiny_tokens_are_what_they_should_be():
    assert [TINY.decode([i]) for i in encode("<plan>1:42+7;\\boxed{99}values007", TINY)] == [
        *["<plan>", "1", ":", "42", "+", "7", ";", "\\boxed{", "99", "}", "values", "0", "0", "7"]
    ]


def with_tags():
    tokenizer = bpe()
    add_tag_tokens(small_model(len(tokenizer), True), tokenizer)
    return tokenizer


BPE = with_tags()


@settings(max_examples=60, deadline=None)
@given(graphs(max_depth=2, alphabet=st.sampled_from(PRINTABLE)))
def test_render_ids_is_the_rendering_and_has_a_layout(graph):
    for tokenizer in (TINY, BPE):
        ids = render_ids(graph, tokenizer)
        text, spelled = decode_with_tags(ids, tokenizer, TagIds.from_tokenizer(tokenizer))
        assert text == render(graph) and not spelled
        layout(ids, TagIds.from_tokenizer(tokenizer))


@pytest.mark.parametrize("where", ["<step>1:", "<takeaway>", "<guideline>"])
def test_render_ids_refuses_what_render_refuses(where):
    text = "<guideline><plan>1:A</plan></guideline><step>1:x</step><takeaway>z</takeaway>\\boxed{7}"
    graph = parse(text.replace(where, "stray" + where))
    for function in (render, lambda graph: render_ids(graph, TINY)):
        with pytest.raises(ValueError, match=r"not rendered, .* violations: .*stray"):
            function(graph)


def test_pieces_are_encoded_apart():
    """BPE would merge "1:" with what follows; the engine writes it alone."""
    tags = TagIds.from_tokenizer(BPE)
    graph = parse(
        "<guideline><plan>1: plan the</plan></guideline><step>1:=plan the step</step>"
        "<takeaway>t</takeaway>\\boxed{1}"
    )
    prefix = step_prefix(1, BPE, tags)
    ids = render_ids(graph, BPE)
    start = ids.index(tags.step)
    assert ids[start : start + len(prefix)] == prefix
    merged = BPE.encode("1:=plan the step", add_special_tokens=False)
    assert merged[: len(prefix) - 1] != prefix[1:], "the test's BPE has no such merge"


def test_spelled_tags_are_told_from_tokens():
    tags = TagIds.from_tokenizer(BPE)
    spelled = [i for c in "<step>" for i in BPE.encode(c, add_special_tokens=False)]
    ids = [tags.plan, *spelled, tags.plan_end]
    text, offsets = decode_with_tags(ids, BPE, tags)
    assert text == "<plan><step></plan>" and offsets == (len("<plan>"),)
    assert decode_with_tags(ids, BPE, None) == (text, ())
    kinds = [v.kind for v in parse(text, spelled=offsets).violations]
    assert "spelled_tag" in kinds


def with_bos(begins=True):
    """A tokenizer that has a BOS; begins: and writes it in front of every text, as Gemma's does."""
    tokenizer = bpe()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    if begins:
        pairs = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=pairs
        )
    return tokenizer


@pytest.mark.parametrize("prompt", ["plan the step", "<bos>plan the step"])
def test_a_prompt_begins_with_one_bos_where_texts_do(prompt):
    """Also where a chat template, like Gemma's and Llama 3's, has written it."""
    tokenizer = with_bos()
    ids = encode_prompt(prompt, tokenizer)
    assert ids == [tokenizer.bos_token_id, *encode("plan the step", tokenizer)]
    engine = TorchEngine(small_model(len(tokenizer), True), tokenizer)
    (trajectory,) = engine.generate([prompt], SamplingParams(max_tokens=1), mode="sequential")
    assert trajectory.prompt_ids == ids


def test_a_prompt_gets_no_bos_where_texts_have_none():
    for tokenizer in (with_bos(begins=False), bpe(), TINY):
        assert encode_prompt("plan", tokenizer) == encode("plan", tokenizer)
    assert encode_prompt("", with_bos()) == [], "an empty prompt stays one, and is refused"


def test_the_random_models_of_the_tests_differ():
    configs = {str(random_model(random.Random(s), TINY).config.to_dict()) for s in range(8)}
    assert len(configs) > 4
