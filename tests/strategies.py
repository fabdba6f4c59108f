"""Hypothesis strategies for responses: valid graphs, broken renderings, tag soup."""

from __future__ import annotations

import re

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from npr_lib.reasoning.schema import TAGS, Block, Plan, ReasoningGraph, Step, render

TAG = re.compile("|".join(TAGS))
# Whole responses take a while to draw, longer on a busy machine: nothing to complain about.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Texts that nearly are structure.
_NASTY = [
    " a b ",
    "1:",
    "2 : x",
    ":",
    "<",
    ">",
    "plan>",
    "</",
    "<step",
    "< plan >",
    "<PLAN>",
    "{",
    "}",
    "\\",
    "\\boxed{7}",
    "\\boxed{",
    "\n\n3:\tx\n",
    "\u00a0\u0661:\u2003x",
    "<|im_end|>",
]


def texts(alphabet: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[str]:
    """Texts a plan, step or takeaway may have: not blank, no tag in them.

    alphabet: a strategy for single characters, for tokenizers that don't know every character.
    """
    if alphabet is None:
        source = st.sampled_from(_NASTY) | st.text(min_size=1, max_size=6)
    else:
        source = st.text(alphabet, min_size=1, max_size=8)
    return source.filter(lambda text: text.strip() and not TAG.search(text))


@st.composite
def answers(draw: st.DrawFn, alphabet: st.SearchStrategy[str] | None = None) -> str:
    r"""Answers whose last `\boxed{}` is not empty."""
    around = st.one_of(st.just(""), texts(alphabet)).filter(lambda text: "\\boxed" not in text)
    content = st.sampled_from(["5", "-12", "\\frac{1}{2}", "\\{1,2\\}", " x = 3 ", "\\text{a}"])
    return f"{draw(around)}\\boxed{{{draw(content)}}}{draw(around)}"


@st.composite
def blocks(
    draw: st.DrawFn,
    max_branches: int = 5,
    max_depth: int = 1,
    alphabet: st.SearchStrategy[str] | None = None,
) -> Block:
    """Valid blocks, nested down to `max_depth`."""
    count = draw(st.integers(1, max_branches))
    text = texts(alphabet)
    plans = [Plan(i, draw(text)) for i in range(1, count + 1)]
    steps = []
    for i in range(1, count + 1):
        if max_depth > 1 and draw(st.booleans()):
            inner = st.lists(
                blocks(min(max_branches, 2), max_depth - 1, alphabet), min_size=1, max_size=2
            )
            step_text, conclusion = draw(st.one_of(st.just(""), text)), draw(st.just("") | text)
            steps.append(Step(i, step_text, draw(inner), conclusion))
        else:
            steps.append(Step(i, draw(text)))
    return Block(plans, steps, draw(text))


def graphs(
    max_branches: int = 5, max_depth: int = 1, alphabet: st.SearchStrategy[str] | None = None
) -> st.SearchStrategy[ReasoningGraph]:
    """Valid graphs: `parse(render(graph), max_branches, max_depth) == graph`."""
    some = st.lists(blocks(max_branches, max_depth, alphabet), min_size=1, max_size=2)
    return st.builds(ReasoningGraph, some, answers(alphabet))


def tag_soup(max_size: int = 30) -> st.SearchStrategy[str]:
    """Tags, indices, boxes and bits of text in any order."""
    pieces = [*TAGS, "1:", "2:", "3:x", " ", "\n", "text", "\\boxed{", "\\boxed{5}", "}", "<", ""]
    return st.lists(st.sampled_from(pieces), max_size=max_size).map("".join)


def pieces_of(text: str) -> list[str]:
    """A text cut before and after every tag, index and box; joined it is the text again."""
    pattern = f"({TAG.pattern}|[0-9]:|\\\\boxed{{)"
    return [piece for piece in re.split(pattern, text) if piece]


@st.composite
def broken_renderings(draw: st.DrawFn, max_branches: int = 2, max_depth: int = 1) -> str:
    """A valid rendering with up to three pieces dropped, doubled, swapped or put in."""
    pieces = pieces_of(render(draw(graphs(max_branches, max_depth))))
    for _ in range(draw(st.integers(0, 3))):
        i = draw(st.integers(0, len(pieces) - 1))
        change = draw(st.sampled_from(["drop", "double", "swap", "insert"]))
        if change == "drop" and len(pieces) > 1:
            del pieces[i]
        elif change == "double":
            pieces.insert(i, pieces[i])
        elif change == "swap":
            j = draw(st.integers(0, len(pieces) - 1))
            pieces[i], pieces[j] = pieces[j], pieces[i]
        else:
            pieces.insert(i, draw(st.sampled_from([*TAGS, " ", "\n\t", "word", "1:", "2:"])))
    return "".join(pieces)
