"""Positions and visibility against a brute-force reading of the definition (design section 4)."""

import random
import time

import numpy as np
import pytest
import torch
from oracles import brute_force_mask, dense_logits, random_model, random_response

from npr_lib.reasoning.layout import (
    LayoutError,
    causal_layout,
    layout,
)
from npr_lib.reasoning.mask import dense_mask
from npr_lib.reasoning.style import STYLES
from npr_lib.reasoning.tokens import StyleIds, TagIds, encode
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)


def ids(text):
    return encode(text, TOKENIZER)


def writes(style):
    return StyleIds.from_tokenizer(TOKENIZER, STYLES[style])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(40))
def test_equals_brute_force(seed, style):
    response, prompt_len = random_response(random.Random(seed), TOKENIZER, style=style)
    result = layout(response.ids, TAGS, prompt_len, writes(style))
    assert result.position_ids.tolist() == response.positions
    assert torch.equal(dense_mask(result), brute_force_mask(response.paths))
    assert result.span == max(response.positions) + 1 - prompt_len
    covered = [t for s in result.segments for t in range(s.start, s.end)]
    assert covered == list(range(len(response.ids)))
    for segment in result.segments:
        for t in range(segment.start, segment.end):
            assert dict(segment.path) == response.paths[t]


def test_prompt_is_plain_whatever_it_contains():
    prompt = ids("<step></plan><guideline>1")
    result = layout(prompt + ids("2"), TAGS, len(prompt))
    assert result == causal_layout(len(prompt) + 1, len(prompt))


@pytest.mark.parametrize(
    "text, index, reason",
    [
        ("<step>", 0, "outside"),
        ("<guideline><step>", 1, "step in state guideline"),
        ("<guideline></guideline>", 1, "without a plan"),
        ("<guideline><plan>1</plan></guideline>+<step>", 5, "between two steps"),
        ("<guideline><plan>1</plan></guideline><step>1</step> ", 8, "between two steps"),
        ("<guideline><plan>1</plan></guideline><takeaway>", 5, "takeaway in state fork"),
        ("<guideline><plan></plan><plan></plan></guideline><step></step><takeaway>", 8, "1 steps"),
        ("<guideline><plan>1", 3, "ends inside"),
        ("<guideline><guideline>", 1, "guideline in state"),
        ("</takeaway>", 0, "outside"),
    ],
)
def test_malformed_ids_name_the_token(text, index, reason):
    with pytest.raises(LayoutError, match=reason) as error:
        layout(ids(text), TAGS)
    assert error.value.index == index


LINES = (TAGS, 0, writes("lines"))
GUIDELINE = "<guideline>\n<plan>1:A</plan>\n<plan>2:B</plan>\n</guideline>"


@pytest.mark.parametrize(
    "text, index, reason",
    [
        ("<step>\n1:A\n</step>\n", 15, "step without '.n'"),
        ("\n\n<step>\n1:A\n</step>\n", 15, "between two steps"),
        ("\n<step>\n1:A\n</step><takeaway>", 22, "step_end without '.n'"),
        ("\n<step>\n1:A\n</step>\n<step>", 24, "step without '.n'"),
        ("\n<step>\n1:A\n</step>\n\n\n<step>", 24, "between two steps"),
        ("\n<step>1:A</step>\n\n<step>2:B</step>\n\n<takeaway>", 29, "between two steps"),
        ("\n<step>1:A</step>\n<takeaway>", 22, "1 steps for 2 plans"),
        ("\n</step>", 15, "between two steps"),
        ("\n<plan>", 15, "between two steps"),
    ],
)
def test_in_lines_white_space_around_a_step_is_its_branchs_or_an_error(text, index, reason):
    layout(ids(GUIDELINE + "\n<step>1:A</step>\n\n<step>2:B</step>\n<takeaway></takeaway>"), *LINES)
    with pytest.raises(LayoutError, match=reason) as error:
        layout(ids(GUIDELINE + text), *LINES)
    assert error.value.index == index


def test_time_is_linear():
    block = "<guideline><plan>1:A</plan><plan>2:B</plan></guideline>"
    unit = ids(block + "<step>1:1</step><step>2:2</step><takeaway>3</takeaway>")

    def seconds(count):
        begin = time.perf_counter()
        layout(unit * count, TAGS)
        return time.perf_counter() - begin

    seconds(100)
    small, large = min(seconds(200) for _ in range(3)), min(seconds(1600) for _ in range(3))
    assert large < 8 * small * 3, f"8 times the tokens took {large / small:.1f} times as long"


@pytest.mark.parametrize(
    "seed, style", [(i, s) for s, n in (("compact", 50), ("lines", 25)) for i in range(n)]
)
def test_branches_are_isolated_exactly(seed, style):
    """Changing any one token of a branch, the white space at its ends among them, changes no logit
    of a sibling, by exactly 0."""
    rng = random.Random(1000 + seed)
    model = random_model(rng, TOKENIZER)
    response, prompt_len = random_response(rng, TOKENIZER, depth=1, style=style)
    result = layout(response.ids, TAGS, prompt_len, writes(style))
    mask = dense_mask(result)
    base = dense_logits(model, response.ids, result.position_ids, mask)
    branches = {path for path in (tuple(p.items()) for p in response.paths) if path}
    for path in branches:
        own = [t for t, p in enumerate(response.paths) if tuple(p.items()) == path]
        (block, branch) = path[0]
        for t in (rng.choice(own), *((own[0], own[-1]) if style == "lines" else ())):
            changed = list(response.ids)
            changed[t] = (changed[t] + 1) % len(TOKENIZER)
            logits = dense_logits(model, changed, result.position_ids, mask)
            for q, other in enumerate(response.paths):
                if other.get(block, branch) != branch:
                    assert torch.equal(logits[q], base[q])
            assert not torch.equal(logits[t], base[t])


def test_equality_ignores_unused_depth():
    plain = causal_layout(5, 2)
    deeper = causal_layout(5, 2)
    deeper.hidden = np.zeros((2, 5, 2), np.int32)
    assert plain == deeper and plain != causal_layout(5, 1)
