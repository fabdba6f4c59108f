"""One response as a fragment of HTML: what the front end is given is the trajectory, and inert."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from figures import HOSTILE
from pages import sources

from npr_lib import viz
from npr_lib.reasoning.layout import Layout, causal_layout, layout
from npr_lib.reasoning.tokens import TagIds, encode
from npr_lib.reasoning.trajectory import Trajectory
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.viz.explorer import data

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)
PROMPT = "A=7-2+3;B=4-3+6;values?\n"


def block(plans: list[str], steps: list[str], takeaway: str) -> str:
    head = "".join(f"<plan>{i}:{text}</plan>" for i, text in enumerate(plans, 1))
    body = "".join(f"<step>{i}:{text}</step>" for i, text in enumerate(steps, 1))
    return f"<guideline>{head}</guideline>{body}<takeaway>{takeaway}</takeaway>"


SIMPLE = block(["A", "B", "C"], ["7-2=5;5+3=8", "4-3=1", "4+3=7;7"], "A=8") + r"so \boxed{18}"
INNER = block(["x", "y"], ["x = 2 < 3 & so on", "y"], "x=2")
NESTED = (
    block(["solve", "bound"], [f"Begin. {INNER} hence", "12 is the largest"], "one pair")
    + "between"
    + block(["verify"], ["2+5=7"], "verified")
    + r"\boxed{7}"
)
PLAIN = r"no block, only \boxed{7}"


def trajectory(text: str, prompt: str = PROMPT, parallel: bool = True, **fields) -> Trajectory:
    """A response that decoded a position a step, as an engine with nothing else to do would."""
    prompt_ids, completion_ids = encode(prompt, TOKENIZER), encode(text, TOKENIZER)
    ids = prompt_ids + completion_ids
    n = len(prompt_ids)
    executed = layout(ids, TAGS, n) if parallel else causal_layout(len(ids), n)
    sampled = []
    for segment in executed.segments[1:]:
        for i in range(segment.start, segment.end):
            opening = ids[segment.start] == TAGS.step and i < segment.start + 3
            sampled.append(not parallel or not (opening or ids[i] == TAGS.takeaway))
    # An engine-written token takes no step: it belongs to the last one decided before it.
    decided = sorted({p for p, own in zip(executed.position_ids[n:], sampled, strict=True) if own})
    steps = np.searchsorted(decided, executed.position_ids[n:], side="right") - 1 + 40
    texts = [
        "".join(TOKENIZER.decode([i]) for i in ids[s.start : s.end]) for s in executed.segments[1:]
    ]
    logprobs = [-0.1 * (i % 7) if own else float("nan") for i, own in enumerate(sampled)]
    entropies = [0.07 * (i % 11) if own else float("nan") for i, own in enumerate(sampled)]
    defaults = {"finish_reason": "stop", "mode": "parallel" if parallel else "sequential"}
    return Trajectory(
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        logprobs=logprobs,
        behaviour_logprobs=logprobs,
        entropies=entropies,
        sampled=sampled,
        decode_steps=[int(step) for step in steps],
        layout=executed,
        text=text,
        segment_texts=texts,
        **(defaults | fields),
    )


def cut(whole: Trajectory, length: int) -> Trajectory:
    """The first `length` completion tokens, as a budget leaves a response."""
    n = len(whole.prompt_ids) + length
    segments = [s._replace(end=min(s.end, n)) for s in whole.segments if s.start < n]
    ids = [*whole.prompt_ids, *whole.completion_ids]
    texts = ["".join(TOKENIZER.decode([i]) for i in ids[s.start : s.end]) for s in segments[1:]]
    return Trajectory(
        prompt_ids=whole.prompt_ids,
        completion_ids=whole.completion_ids[:length],
        logprobs=whole.logprobs[:length],
        behaviour_logprobs=whole.behaviour_logprobs[:length],
        sampled=whole.sampled[:length],
        decode_steps=whole.decode_steps[:length],
        layout=Layout(
            whole.position_ids[:n],
            whole.layout.hidden[:, :n],
            whole.layout.prompt_len,
            segments,
        ),
        text="".join(texts),
        segment_texts=texts,
        finish_reason="length",
    )


@pytest.fixture(scope="module")
def simple() -> Trajectory:
    return trajectory(SIMPLE)


@pytest.fixture(scope="module")
def nested() -> Trajectory:
    return trajectory(NESTED)


# ------------------------------------------------------------------ what is drawn


def record(one: Trajectory, prompt: str = PROMPT) -> dict:
    return data.record(one, data.reader(TOKENIZER), prompt)


def edges_of(one: Trajectory) -> set[tuple[int, int]]:
    edges = [tuple(edge) for edge in record(one)["edges"]]
    assert len(edges) == len(set(edges))
    return set(edges)


def test_edges_are_forks_and_joins(simple, nested) -> None:
    # prompt 0, guideline 1, steps 2 3 4, takeaway 5, answer 6
    assert edges_of(simple) == {
        *((0, 1), (1, 2), (1, 3), (1, 4)),
        *((2, 5), (3, 5), (4, 5), (5, 6)),
    }
    # prompt 0, guideline 1, step 1 begins 2, its guideline 3, steps 1.1 and 1.2 4 5, takeaway 6,
    # step 1 continued 7, step 2 8, takeaway 9, text 10, second block 11 12 13, answer 14
    assert edges_of(nested) == {
        *((0, 1), (1, 2), (1, 8), (2, 3), (3, 4), (3, 5), (4, 6), (5, 6), (6, 7)),
        *((7, 9), (8, 9), (9, 10), (10, 11), (11, 12), (12, 13), (13, 14)),
    }


def test_parts_have_names_lanes_and_all_their_text(nested) -> None:
    shown = record(nested, "the prompt")
    nodes = shown["segments"]
    assert [node["name"] for node in nodes] == [
        *("prompt", "guideline", "step 1", "guideline", "step 1.1", "step 1.2", "takeaway"),
        *("step 1, cont.", "step 2", "takeaway", "text", "guideline", "step 1", "takeaway"),
        "answer",
    ]
    assert shown["lanes"] == ["trunk", "branch 1", "branch 1.1", "branch 1.2", "branch 2"]
    assert [shown["lanes"][nodes[i]["lane"]] for i in (2, 5, 7, 12)] == [
        *("branch 1", "branch 1.2", "branch 1", "branch 1")
    ]
    texts = ["".join(node["tokens"]) for node in nodes]
    assert texts == ["the prompt", *nested.segment_texts]


@pytest.mark.parametrize("text", [SIMPLE, NESTED])
def test_a_response_cut_in_any_segment_can_be_drawn(text: str) -> None:
    whole = trajectory(text)
    prompt = len(whole.prompt_ids)
    for length in [1, *(segment.start + 1 - prompt for segment in whole.segments[1:])]:
        part = cut(whole, length)
        shown = given(viz.response(part, TOKENIZER)._repr_html_())["record"]
        kept = [(node["start"], node["end"]) for node in shown["segments"]]
        assert kept == [(s.start, s.end) for s in part.segments]
        assert {b for _, b in shown["edges"]} == set(range(1, len(kept)))
        assert shown["work"] == len(shown["steps"]) == length
        assert shown["ended"] == "length"


def test_sequential_and_invalid_responses_can_be_drawn() -> None:
    sequential = viz.response(trajectory(SIMPLE, parallel=False)).shown["record"]
    assert [node["name"] for node in sequential["segments"]] == ["prompt", "response"]
    assert sequential["edges"] == [[0, 1]] and sequential["lanes"] == ["trunk"]
    invalid = trajectory(PLAIN, finish_reason="invalid", violation="step <outside> a block")
    assert viz.response(invalid).shown["record"]["ended"] == "step <outside> a block"


def visible_by_definition(t: Trajectory) -> np.ndarray:
    """Design section 4: k <= q, and no block holds q and k in two different branches."""
    paths = [dict(s.path) for s in t.segments for _ in range(s.start, s.end)]
    n = len(paths)
    visible = np.zeros((n, n), dtype=bool)
    for q in range(n):
        for k in range(q + 1):
            shared = paths[q].keys() & paths[k].keys()
            visible[q, k] = all(paths[q][b] == paths[k][b] for b in shared)
    return visible


@pytest.mark.parametrize("text", [SIMPLE, NESTED, PLAIN])
def test_the_mask_is_the_visibility_relation(text: str) -> None:
    t = trajectory(text)
    n = len(t.position_ids)
    visible = np.tril(np.ones((n, n), dtype=bool))
    for node in record(t)["segments"]:
        for low, high in node["hidden"]:
            visible[node["start"] : node["end"], low:high] = False
    np.testing.assert_array_equal(visible, visible_by_definition(t))


def test_what_a_token_was_chosen_with_is_shown(simple) -> None:
    shown, prompt = record(simple), len(simple.prompt_ids)
    for name, nats in (("logprobs", simple.logprobs), ("entropies", simple.entropies)):
        known = [x for x in shown[name] if x is not None]
        assert known == [round(1000 * x) for x in nats if not np.isnan(x)]
        assert [x is not None for x in shown[name]] == simple.sampled
    for node in shown["segments"]:
        own = simple.position_ids[node["start"] : node["end"]].tolist()
        assert own == [*range(node["positions"][0], node["positions"][1] + 1)]
    assert shown["prompt_len"] == prompt and shown["steps"] == simple.decode_steps
    older = viz.response(replace(simple, entropies=[]), TOKENIZER).shown
    assert not older["table"]["entropies"]


# ------------------------------------------------------------------ the fragment


class Elements(HTMLParser):
    """Collects elements, attributes and the text of each; checks that elements nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.open.append(tag)
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[-1] += data


def given(fragment: str) -> dict:
    """What the front end in a fragment is given."""
    return json.loads(Elements(fragment).texts[3])


def test_the_fragment_is_a_place_and_what_draws_in_it(simple) -> None:
    shown = viz.response(simple, TOKENIZER, "a problem", answer="18", accuracy=0.0, stage="npr")
    fragment = shown._repr_html_()
    page = Elements(fragment)
    assert page.names == ["div", "pre", "style", "script", "script"]
    assert page.attributes == ["id", "class", "type", "id"]
    assert page.texts[1] == simple.text  # for where no script may run
    assert given(fragment) == json.loads(json.dumps(shown.shown))
    columns = shown.shown["table"]["columns"]
    assert columns["problem"] == ["a problem"] and columns["verdict"] == ["wrong"]
    assert columns["answer"] == ["18"] and columns["stage"] == ["npr"]
    assert shown.shown["record"] == record(simple)
    assert "mathjax_ignore" in fragment and sources(fragment) == []
    assert repr(shown) == "Response(7 segments, 63 tokens: graph, text, timeline, mask)"


def test_fragments_in_one_page_share_no_name(simple) -> None:
    shown = viz.response(simple)
    pages = [shown._repr_html_(), shown._repr_html_(), viz.response(simple)._repr_html_()]
    assert len({name for page in pages for name in re.findall(r'id="([^"]+)"', page)}) == 6
    script = Elements(pages[0]).texts[4].strip()
    assert script.startswith("(() => {") and script.endswith("})();")
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    assert not re.search(r"\b(window|globalThis|customElements)\b", script)


def test_hostile_text_is_text() -> None:
    text = block([HOSTILE, "B"], [HOSTILE + INNER + "c", "b"], HOSTILE) + r"\boxed{1}"
    hostile = trajectory(text, HOSTILE)
    for tokenizer in (TOKENIZER, None):
        shown = viz.response(hostile, tokenizer, HOSTILE, answer=HOSTILE, stage=HOSTILE)
        fragment = shown._repr_html_()
        page = Elements(fragment)
        assert page.names == ["div", "pre", "style", "script", "script"]
        assert sources(fragment) == [] and "<a" not in fragment
        assert fragment.count("</script>") == fragment.count("<script") == 2
        assert page.texts[1] == hostile.text
        nodes = given(fragment)["record"]["segments"]
        assert "".join("".join(n["tokens"]) for n in nodes[1:]) == hostile.text
        assert "".join(nodes[0]["tokens"]) == HOSTILE
        assert given(fragment)["table"]["columns"]["problem"] == [HOSTILE]


def test_only_known_views_are_drawn(simple) -> None:
    assert viz.response(simple, views=("mask",)).shown["views"] == ["mask"]
    with pytest.raises(ValueError, match="no view 'tree': one of graph, text, timeline"):
        viz.response(simple, views=("graph", "tree"))
    with pytest.raises(ValueError, match="no view"):
        viz.response(simple, views=())
