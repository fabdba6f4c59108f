"""Writing styles: the same graph written in each, and what real models write around a response."""

import re
import string
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
from broken_responses import VALID, response
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import PATIENT, graphs
from test_tokens import BPE
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from npr_lib.engine import EngineConfig
from npr_lib.reasoning.layout import layout, sampled_tokens
from npr_lib.reasoning.schema import Block, Plan, ReasoningGraph, Step, parse, render
from npr_lib.reasoning.style import COMPACT, LINES, STYLES, named
from npr_lib.reasoning.tokens import StyleIds, TagIds, decode_with_tags, encode, render_ids
from npr_lib.rewards import format_reward
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TINY = tiny_tokenizer()
ANY_LENGTH = replace(LINES, min_chars=(1, 1, 1))
PRINTABLE = "".join(c for c in string.printable if c.isprintable()) + "\n"
INNER = Block([Plan(1, " x + 1")], [Step(1, " 1 + 1")], "two")
GRAPH = ReasoningGraph(
    [
        Block(
            [Plan(1, " add them"), Plan(2, " check")],
            [Step(1, " 1 + 2 = 3"), Step(2, " first", [INNER], " then")],
            "It is 3.",
        )
    ],
    r"So \boxed{3}",
)
# As the authors' released models write it.
WRITTEN = (
    "<guideline>\n<plan>1: add them</plan>\n<plan>2: check</plan>\n</guideline>"
    "\n<step>\n1: 1 + 2 = 3\n</step>\n"
    "\n<step>\n2: first"
    "<guideline>\n<plan>1: x + 1</plan>\n</guideline>"
    "\n<step>\n1: 1 + 1\n</step>\n<takeaway>\ntwo</takeaway>\n\n"
    " then\n</step>\n"
    "<takeaway>\nIt is 3.</takeaway>\n\n"
    r"So \boxed{3}"
)


def test_the_styles_have_their_names_in_a_profile():
    hint = get_type_hints(EngineConfig)["style"]
    assert {name for arg in get_args(hint) for name in get_args(arg)} == set(STYLES)
    assert all(style.name == name for name, style in STYLES.items())
    with pytest.raises(ValueError, match="unknown writing style 'line'; there are compact, lines"):
        named("line")
    assert named("lines") is LINES and named("lines", [1, 2, 3]).min_chars == (1, 2, 3)
    with pytest.raises(ValueError, match="min_chars"):
        EngineConfig(min_chars=(1, 2))


def test_lines_is_what_the_released_models_write():
    assert render(GRAPH, LINES) == WRITTEN
    assert parse(WRITTEN, max_depth=2, style=ANY_LENGTH) == GRAPH
    assert re.sub(r"\n", "", WRITTEN) == render(GRAPH)


@settings(PATIENT, max_examples=60)
@given(graphs(max_branches=3, max_depth=3))
def test_a_graph_is_the_same_in_every_style(graph):
    for style in (COMPACT, ANY_LENGTH):
        text = render(graph, style)
        assert parse(text, 3, 3, style=style) == graph
        # what is written in one style is a response in the other, but for white space
        other = parse(text, 3, 3)
        assert other.valid and len(other.blocks) == len(graph.blocks)


def test_texts_keep_all_but_one_style_of_white_space():
    text = response(steps="<step>1: c \n\n</step><step>\n2:d</step>", takeaway="<takeaway>\n\n e")
    graph = parse(text + "</takeaway>\n\n\n\\boxed{5}", style=ANY_LENGTH)
    (block,) = graph.blocks
    assert [step.text for step in block.steps] == [" c \n", "d"]
    assert block.takeaway.startswith("\n e") and graph.answer.endswith("\n\\boxed{5}")
    assert text[block.start :].startswith("<guideline>")


@settings(max_examples=60, deadline=None)
@given(graphs(max_depth=2, alphabet=st.sampled_from(PRINTABLE)), st.sampled_from([*STYLES]))
def test_render_ids_is_the_rendering_and_has_a_layout(graph, name):
    style = STYLES[name]
    for tokenizer in (TINY, BPE):
        ids, tags = render_ids(graph, tokenizer, style), TagIds.from_tokenizer(tokenizer)
        text, spelled = decode_with_tags(ids, tokenizer, tags)
        assert text == render(graph, style) and not spelled
        structure = layout(ids, tags, 0, StyleIds.from_tokenizer(tokenizer, style))
        sampled = sampled_tokens(ids, structure, tokenizer, style)
        written = [i for i, own in zip(ids, sampled, strict=True) if not own]
        parts = [part for block in graph.blocks for part in engine_writes(block, style)]
        assert tokenizer.decode(written) == "".join(parts)


def engine_writes(block, style):
    """By hand: what the engine writes of a block, in the order of the response."""
    line = "\n" if style.name == "lines" else ""
    for step in block.steps:
        yield f"{line}<step>{line}{step.index}:"
        for inner in step.blocks:
            yield from engine_writes(inner, style)
        yield line
    yield f"<takeaway>{line}"


def test_what_the_policy_writes_is_encoded_in_one_piece():
    """With the style's white space at its end, as a model tokenizes it that was trained on whole
    texts; what the engine writes is encoded apart."""
    ids = render_ids(GRAPH, BPE, LINES)
    tags = TagIds.from_tokenizer(BPE)
    start = ids.index(tags.step) - 1
    label = encode("1:", BPE)
    expected = [*encode("\n", BPE), tags.step, *encode("\n", BPE), *label]
    expected += [*encode(" 1 + 2 = 3\n", BPE), tags.step_end, *encode("\n", BPE)]
    assert ids[start : start + len(expected)] == expected


def test_a_tokenizer_that_cannot_write_a_line_is_refused():
    core = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert StyleIds.from_tokenizer(tokenizer, COMPACT) == StyleIds()
    with pytest.raises(ValueError, match=r"style lines writes '\\n', .* no tokens"):
        StyleIds.from_tokenizer(tokenizer, LINES)


def test_least_lengths_are_the_styles_or_given():
    plans, steps = "<plan>1:ab</plan>", "<step>1:abcde</step>"
    short = response(plans, steps, "<takeaway>abcde</takeaway>")
    kinds = [str(v.kind) for v in parse(short, style=LINES).violations]
    assert kinds == ["short_plan", "short_step", "short_takeaway"]
    assert format_reward(short, style=LINES) == -1.2 and format_reward(short) == 0
    assert format_reward(short, style=named("lines", (2, 5, 5))) == 0
    assert format_reward(short, style=named("compact", (2, 5, 6))) == -0.4


# ---------------------------------------------------------------- as real models write


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize(
    "before", ["\ufeff", "<think>\n\n</think>\n\n", "\n<think></think>", "\ufeff <think> </think>"]
)
def test_nothing_said_before_a_response_is_white_space(before, style):
    graph = parse(before + VALID, style=style, min_chars=1)
    assert graph.valid and graph == parse(VALID, style=style, min_chars=1)
    assert render(graph) == VALID
    assert [v.kind for v in parse(before).violations] == ["empty"]
    assert parse(before + "so \\boxed{5}").answer.strip() == "so \\boxed{5}"


@pytest.mark.parametrize(
    "text, kind, reward",
    [
        ("I divide it." + VALID, "stray_text_outside_blocks", -0.2),
        ("<think>5</think>" + VALID, "stray_text_outside_blocks", -0.2),
        ("<think></think>" + VALID + "<think></think>" + VALID, "stray_text_outside_blocks", -0.2),
        (VALID.replace("<plan>1:", "<plan>1."), "plan_index", -1.0),
        (VALID.replace("<plan>1:", "<plan>**1:**"), "plan_index", -1.0),
        (VALID.replace("<plan>1:", "<plan>1："), "plan_index", -1.0),
        (VALID.replace("<plan>1:", "<plan>(1):"), "plan_index", -1.0),
        (VALID.replace("<step>1:", "<step>1."), "step_index", -1.0),
    ],
)
def test_anything_else_is_a_violation_that_says_what_was_found(text, kind, reward):
    graph = parse(text)
    assert {str(v.kind) for v in graph.violations} == {kind}
    assert format_reward(graph) == reward
    if kind.endswith("index"):
        assert "should begin with '1:', not '" in graph.violations[0].message
