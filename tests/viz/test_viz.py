"""Pictures of a trajectory, checked against the trajectory and against definitions."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import plotly.graph_objects as go
import pytest
from figures import HOSTILE, assert_inert

from npr_lib import viz
from npr_lib.reasoning.layout import Layout, causal_layout, layout
from npr_lib.reasoning.tokens import TagIds, encode
from npr_lib.reasoning.trajectory import Trajectory
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.viz import theme

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


def figures_of(one: Trajectory) -> dict[str, go.Figure]:
    draws = (viz.timeline, viz.mask, viz.positions, viz.tokens)
    return {draw.__name__: draw(one, TOKENIZER) for draw in draws}


# ------------------------------------------------------------------ every figure


def test_figures_fetch_nothing_and_show_hostile_text_as_text() -> None:
    text = block([HOSTILE, "B"], [HOSTILE, "b"], HOSTILE) + HOSTILE + r"\boxed{1}"
    hostile = trajectory(text, HOSTILE)
    assert_inert(figures_of(hostile) | {"graph": viz.graph(hostile, HOSTILE)})


def test_figures_have_titles_and_named_axes(simple, nested) -> None:
    for one in (simple, nested):
        for name, figure in figures_of(one).items():
            assert re.match(r"<b>\w.+</b>", figure.layout.title.text), name
            assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)", name
            assert list(figure.select_xaxes())[-1].title.text, name
            axes = [axis for axis in figure.select_yaxes() if not axis.ticktext or name == "mask"]
            assert axes and all(axis.title.text for axis in axes), name


@pytest.mark.parametrize("text", [SIMPLE, NESTED])
def test_a_response_cut_in_any_segment_can_be_drawn(text: str) -> None:
    whole = trajectory(text)
    prompt = len(whole.prompt_ids)
    for length in [segment.start + 1 - prompt for segment in whole.segments[1:]]:
        part = cut(whole, length)
        assert len(viz.graph(part).data[0].x) == len(part.segments)
        assert f"{length} tokens" in viz.timeline(part).layout.title.text
        assert viz.html(part).count("<div") == viz.html(part).count("</div>")
    for draw in (viz.mask, viz.positions, viz.tokens):
        draw(cut(whole, 1))


def test_sequential_and_invalid_responses_can_be_drawn() -> None:
    sequential = trajectory(SIMPLE, parallel=False)
    assert "no parallel block" in viz.graph(sequential).layout.title.text
    assert [label.text[:15] for label in viz.graph(sequential).layout.annotations] == [
        "<b>Prompt</b> ·",
        "<b>Response</b>",
    ]
    invalid = trajectory(PLAIN, finish_reason="invalid", violation="step <outside> a block")
    subtitle = viz.graph(invalid).layout.title.text
    assert "ended: invalid (step &lt;outside&gt; a block)" in subtitle
    for draw in (viz.timeline, viz.mask, viz.positions, viz.tokens):
        assert draw(sequential).data


# ------------------------------------------------------------------ one trajectory


def boxes_of(figure: go.Figure) -> list[tuple[float, float, float, float]]:
    """(left, top, right, bottom) of the boxes, in drawing order."""
    found = []
    for shape in figure.layout.shapes:
        if shape.type == "path" and shape.fillcolor:
            numbers = [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", shape.path)]
            found.append(
                (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))
            )
    return found


def edges_of(figure: go.Figure) -> set[tuple[int, int]]:
    """(upper box, lower box) of every edge, by where the curve begins and ends."""
    boxes, found = boxes_of(figure), set()
    for shape in figure.layout.shapes:
        if shape.type == "path" and not shape.fillcolor:
            x0, y0, *_, x1, y1 = (float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", shape.path))
            upper = [
                i for i, b in enumerate(boxes) if b[3] == pytest.approx(y0) and b[0] < x0 < b[2]
            ]
            lower = [
                i for i, b in enumerate(boxes) if b[1] == pytest.approx(y1) and b[0] < x1 < b[2]
            ]
            assert len(upper) == len(lower) == 1
            found.add((upper[0], lower[0]))
    return found


def test_graph_draws_forks_and_joins(simple, nested) -> None:
    # prompt 0, guideline 1, steps 2 3 4, takeaway 5, answer 6
    assert edges_of(viz.graph(simple)) == {
        *((0, 1), (1, 2), (1, 3), (1, 4)),
        *((2, 5), (3, 5), (4, 5), (5, 6)),
    }
    # prompt 0, guideline 1, step 1 begins 2, its guideline 3, steps 1.1 and 1.2 4 5, takeaway 6,
    # step 1 continued 7, step 2 8, takeaway 9, text 10, second block 11 12 13, answer 14
    assert edges_of(viz.graph(nested)) == {
        *((0, 1), (1, 2), (1, 8), (2, 3), (3, 4), (3, 5), (4, 6), (5, 6), (6, 7)),
        *((7, 9), (8, 9), (9, 10), (10, 11), (11, 12), (12, 13), (13, 14)),
    }


def test_graph_names_counts_and_holds_all_text(nested) -> None:
    figure = viz.graph(nested, "the prompt")
    heads = [re.match(r"<b>(.+?)</b> · (\d+) token", a.text) for a in figure.layout.annotations]
    assert [head[1] for head in heads] == [
        *("Prompt", "Guideline", "Step 1", "Guideline", "Step 1.1", "Step 1.2", "Takeaway"),
        *("Step 1, cont.", "Step 2", "Takeaway", "Text", "Guideline", "Step 1", "Takeaway"),
        "Answer",
    ]
    assert [int(head[2]) for head in heads] == [s.end - s.start for s in nested.segments]
    hover = "\n".join(figure.data[0].hovertext)
    assert "the prompt" in hover and "x = 2 &lt; 3 &amp; so on" in hover
    assert f"work {nested.work} tokens, span {nested.span}" in figure.layout.title.text


@pytest.mark.parametrize("seed", range(5))
def test_graph_boxes_do_not_overlap_or_leave_the_figure(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def random_block(depth: int) -> str:
        k = int(rng.integers(1, 6 if depth == 0 else 4))
        steps = []
        for _ in range(k):
            step = "long text " * int(rng.integers(1, 9))
            while depth < 2 and rng.random() < 0.35:
                step += random_block(depth + 1) + "end"
            steps.append(step)
        return block(["a plan of some words"] * k, steps, "so")

    text = "".join(random_block(0) for _ in range(2)) + r"\boxed{1}"
    figure = viz.graph(trajectory(text), PROMPT)
    boxes = boxes_of(figure)
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    (left, right), (bottom, top) = figure.layout.xaxis.range, figure.layout.yaxis.range
    for (x0, _, x1, _), label in zip(boxes, figure.layout.annotations, strict=True):
        lines = re.sub(r"</?(b|span[^>]*)>", "", label.text).split("<br>")
        assert max(map(len, lines)) * 6.7 < x1 - x0 - 10, "text runs over the border"
    assert all(left < b[0] and b[2] < right and top < b[1] and b[3] < bottom for b in boxes)
    margin = figure.layout.margin
    assert right - left == pytest.approx(figure.layout.width - margin.l - margin.r)
    assert bottom - top == pytest.approx(figure.layout.height - margin.t - margin.b)


def test_timeline_shows_every_token_once_in_its_lane(nested) -> None:
    figure = viz.timeline(nested)
    width, *bars = figure.data
    names = list(figure.layout.yaxis2.ticktext)
    assert names == ["trunk", "branch 1", "branch 1.1", "branch 1.2", "branch 2"]
    shown, expected = [], []
    for bar in bars:
        assert bar.width == bars[0].width < 1
        for row, base, length, text in zip(bar.y, bar.base, bar.x, bar.hovertext, strict=True):
            step = round(base + length / 2)
            count = len(re.findall(r"id \d+", text))
            shown += [(names[row], step)] * count
    prompt = len(nested.prompt_ids)
    for segment in nested.segments[1:]:
        number = ".".join(str(branch + 1) for _, branch in segment.path)
        for i in range(segment.start, segment.end):
            lane = f"branch {number}" if number else "trunk"
            expected.append((lane, nested.decode_steps[i - prompt]))
    assert sorted(shown) == sorted(expected)
    assert sum(width.y[:-1]) == sum(nested.sampled)
    steps = len({s for s, own in zip(nested.decode_steps, nested.sampled, strict=True) if own})
    assert f"{nested.work} tokens in {steps} steps" in figure.layout.title.text


def test_timeline_of_a_long_response_is_drawn_in_runs() -> None:
    long = trajectory(block(["a", "b"], ["7 " * 400, "8 " * 300], "t") + r"\boxed{1}")
    figure = viz.timeline(long, TOKENIZER)
    assert sum(len(bar.y) for bar in figure.data[1:]) == len(long.segments) - 1
    assert "runs of tokens" in figure.layout.title.text


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
def test_mask_is_the_visibility_relation(text: str) -> None:
    t = trajectory(text)
    figure = viz.mask(t, TOKENIZER)
    n = len(t.position_ids)
    z = np.asarray(figure.data[0].z)
    visible = visible_by_definition(t)
    np.testing.assert_array_equal(~np.isnan(z), visible)
    hidden = np.zeros((n, n), dtype=bool)
    for shape in figure.layout.shapes:
        if shape.type == "rect":
            x0, x1, y0, y1 = (int(v + 0.5) for v in (shape.x0, shape.x1, shape.y0, shape.y1))
            hidden[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(hidden, np.tril(np.ones((n, n), dtype=bool)) & ~visible)
    kinds = [list(theme.KINDS).index(s.kind) for s in t.segments for _ in range(s.start, s.end)]
    np.testing.assert_array_equal(z[-1], np.where(visible[-1], kinds, np.nan))
    assert f"all {n} tokens" in figure.layout.title.text
    assert len(set(figure.data[0].x)) == n


def test_mask_of_a_long_response_is_sampled_and_says_so() -> None:
    t = trajectory(block(["a", "b"], ["7 " * 200, "8 " * 150], "t") + r"\boxed{1}")
    n = len(t.position_ids)
    assert 400 < n < 800
    figure = viz.mask(t)
    assert f"every 2nd of {n} tokens" in figure.layout.title.text
    z = np.asarray(figure.data[0].z)
    np.testing.assert_array_equal(~np.isnan(z), visible_by_definition(t)[::2, ::2])


def test_positions_and_tokens_show_the_trajectory(simple) -> None:
    figure = viz.positions(simple, TOKENIZER)
    points = {
        int(x): int(y) for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)
    }
    assert [points[i] for i in range(len(points))] == simple.position_ids.tolist()
    *bars, dashes = viz.tokens(simple, TOKENIZER).data
    surprise = {int(x): y for bar in bars for x, y in zip(bar.x, bar.y, strict=True)}
    prompt = len(simple.prompt_ids)
    assert set(surprise) == {prompt + i for i, own in enumerate(simple.sampled) if own}
    assert all(surprise[i] == -simple.logprobs[i - prompt] for i in surprise)
    entropy = dict(zip(map(int, dashes.x), dashes.y, strict=True))
    assert set(entropy) == set(surprise)
    assert all(entropy[i] == simple.entropies[i - prompt] for i in entropy)
    without = viz.tokens(replace(simple, entropies=[]), TOKENIZER)
    assert len(without.data) == len(bars) and "entropy" not in without.layout.title.text


class Elements(HTMLParser):
    """Collects element names, attributes and text; checks that elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.attributes, self.text, self.open = set(), set(), [], []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_is_text_in_boxes() -> None:
    text = block([HOSTILE, "B"], [HOSTILE + INNER + "c", "b"], "t") + r"\boxed{1}"
    t = trajectory(text, HOSTILE)
    page = Elements()
    page.feed(viz.html(t, HOSTILE))
    assert not page.open
    assert page.names == {"div", "span"}
    assert page.attributes == {"class", "style"}
    assert "mathjax_ignore" in viz.html(t)
    shown = "".join(page.text)
    for segment in t.segments[1:]:
        assert t.segment_text(segment) in shown
    assert shown.count(HOSTILE) == 3
    assert viz.html(t).count("display:flex") == 2
    assert viz.html(t).count("border:1px solid") == 4
