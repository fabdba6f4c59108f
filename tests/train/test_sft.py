"""Parallel SFT: which tokens are learned, and that the loss is the dense masked one."""

import random

import pytest
import torch
from oracles import brute_force_mask, dense_logits, random_model

from npr_lib.engine.attention import use_npr_attention
from npr_lib.reasoning.tokens import TagIds, encode
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.train.sft import Collator, example

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)
RESPONSE = (
    "<guideline><plan>1:B</plan><plan>2:A</plan></guideline><step>1:B=4+1</step>"
    "<step>2:A=7-2+3</step><takeaway>B=5</takeaway>\\boxed{13}"
)


def learned(row):
    return TOKENIZER.decode([i for i in row["labels"] if i != -100])


def test_npr_beta_learns_exactly_what_the_engine_samples():
    row = example(encode("A=1;", TOKENIZER), RESPONSE, TOKENIZER, "parallel")
    assert learned(row) == (
        "<guideline><plan>1:B</plan><plan>2:A</plan></guideline>B=4+1</step>"
        "A=7-2+3</step>B=5</takeaway>\\boxed{13}<eos>"
    )


def test_sr_beta_learns_every_completion_token():
    row = example(encode("A=1;", TOKENIZER), RESPONSE, TOKENIZER, "sequential")
    assert learned(row) == RESPONSE + "<eos>"
    assert TOKENIZER.decode(row["input_ids"]) == "A=1;" + RESPONSE + "<eos>"


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_a_row_of_examples_equals_single_dense_forwards(mode):
    model = random_model(random.Random(1), TOKENIZER)
    shorter = RESPONSE.replace("7-2+3", "7").replace("4+1", "")
    rows = [
        example(encode(p, TOKENIZER), r, TOKENIZER, mode)
        for p, r in [("A=1;", RESPONSE), ("B", shorter)]
    ]
    batch = Collator(TAGS, mode)(rows)
    use_npr_attention(model)
    labels = batch.pop("labels")
    assert labels[0].tolist() == rows[0]["labels"] + rows[1]["labels"]
    logits = model(**batch, use_cache=False).logits[0]
    at = 0
    for row in rows:
        ids = row["input_ids"]
        n, prompt = len(ids), row["prompt_len"]
        paths, positions = hand_layout(ids, prompt) if mode == "parallel" else ([{}] * n, range(n))
        expected = dense_logits(model, ids, list(positions), brute_force_mask(paths))
        assert torch.allclose(logits[at : at + n], expected, atol=1e-4)
        at += n
    causal = dense_logits(model, ids, range(n), torch.ones(n, n).tril().bool())
    assert (mode == "sequential") == torch.allclose(causal, expected, atol=1e-2)


def hand_layout(ids, prompt):
    """Section 4 for one block, spelled out."""
    paths, positions, branch, fork, end = [], [], None, None, 0
    for t, token in enumerate(ids):
        position = positions[-1] + 1 if t else 0
        if token == TAGS.step:
            branch, position = (0 if branch is None else branch + 1), fork + 1
        if token == TAGS.takeaway:
            position = end + 1
        inside = token == TAGS.step or (paths and paths[-1] and ids[t - 1] != TAGS.step_end)
        paths.append({0: branch} if inside else {})
        positions.append(position)
        if token == TAGS.guideline_end:
            fork = position
        if token == TAGS.step_end:
            end = max(end, position)
    return paths, positions


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("where", ["<step>2:", "<takeaway>", "<guideline>"])
def test_stray_text_is_refused_not_dropped(mode, where):
    with pytest.raises(ValueError, match="not rendered, the graph has violations"):
        example(encode("A=1;", TOKENIZER), RESPONSE.replace(where, "so " + where), TOKENIZER, mode)


def test_wider_and_deeper_responses_than_the_paper_has_are_learned_whole():
    inner = RESPONSE.removesuffix("\\boxed{13}")
    nested = RESPONSE.replace("B=4+1", f"first{inner}then")
    plans = "".join(f"<plan>{i}:A</plan>" for i in range(1, 8))
    steps = "".join(f"<step>{i}:x</step>" for i in range(1, 8))
    wide = f"<guideline>{plans}</guideline>{steps}<takeaway>z</takeaway>\\boxed{{7}}"
    for response in (nested, wide):
        assert (
            learned(example(encode("A", TOKENIZER), response, TOKENIZER, "sequential"))
            == response + "<eos>"
        )
        example(encode("A", TOKENIZER), response, TOKENIZER, "parallel")


def test_rows_are_encoded_piece_by_piece():
    assert example(encode("A", TOKENIZER), RESPONSE, TOKENIZER, "parallel")["input_ids"][:3] == [
        *encode("A", TOKENIZER),
        TAGS.guideline,
        TAGS.plan,
    ]
