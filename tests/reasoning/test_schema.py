"""The grammar: round trip, an independent reading of validity, every violation, linear time."""

from __future__ import annotations

import dataclasses
import re

import pytest
import strategies
from broken_responses import ANSWER, BROKEN, NESTED_STEP, VALID, response
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import PATIENT

from npr_lib.reasoning.schema import (
    MAX_DEPTH,
    Block,
    Plan,
    ReasoningGraph,
    Step,
    ViolationKind,
    last_boxed,
    parse,
    render,
)

K = ViolationKind


def kinds(graph: ReasoningGraph) -> dict[ViolationKind, int]:
    found = [violation.kind for violation in graph.violations]
    return {kind: found.count(kind) for kind in found}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_text_has_exactly_these_violations(name: str) -> None:
    text, expected = BROKEN[name]
    assert kinds(parse(text)) == expected


def test_every_kind_has_a_case() -> None:
    covered = {kind for _, expected in BROKEN.values() for kind in expected}
    assert covered == set(ViolationKind) - {K.SPELLED_TAG}  # which has a test of its own


def test_offsets_point_at_the_fault() -> None:
    text = response(before="Well. ", steps="<step>1:c</step>, <step>7:d</step>")
    stray, between, index = parse(text).violations
    assert stray.offset == 0
    assert text[between.offset :].startswith(", <step>7")
    assert text[index.offset :].startswith("<step>7")


def test_parse_reads_a_response() -> None:
    guideline = "\n<plan>1: a </plan>\n<plan> 2 :b</plan> "
    graph = parse(response(guideline, before="\n", steps="\n<step>1:c</step> <step>2:d</step>\n"))
    block = Block([Plan(1, " a "), Plan(2, "b")], [Step(1, "c"), Step(2, "d")], "e")
    assert graph == ReasoningGraph([block], ANSWER)
    assert graph.valid
    assert graph.boxed == "5"
    assert render(graph) == response("<plan>1: a </plan><plan>2:b</plan>")


def test_nodes_know_where_they_are() -> None:
    text = response(before="\n", steps=NESTED_STEP)
    graph = parse(text, max_depth=2)
    assert graph.valid
    (block,) = graph.blocks
    inner = block.steps[0].blocks[0]
    assert text[block.start : block.end] == text[1:].removesuffix(ANSWER)
    assert text[inner.start : inner.end] == response(after="")
    for nodes, opening in ((block.plans, "<plan>"), (block.steps, "<step>")):
        for node in nodes:
            span = text[node.start : node.end]
            assert span.startswith(f"{opening}{node.index}:{node.text}")
            assert span.endswith(opening.replace("<", "</"))
    assert text[graph.answer_start :] == graph.answer == ANSWER


def test_nested_steps() -> None:
    graph = parse(response(steps=NESTED_STEP), max_depth=2)
    assert graph.valid
    step = graph.blocks[0].steps[0]
    assert (step.text, step.conclusion, len(step.blocks)) == ("c", "f", 1)
    two = response(after="\n") * 2
    graph = parse(response(steps=f"<step>1: {two}</step><step>2:d</step>"), max_depth=2)
    step = graph.blocks[0].steps[0]
    assert (step.text, step.conclusion, len(step.blocks)) == ("", "", 2)


INNER = response(after="")


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        (f"c{INNER}x{INNER}", {K.STRAY_TEXT_OUTSIDE_BLOCKS: 1}),
        (f"c{INNER}<plan>{INNER}", {K.TAGS_IN_STEP: 1}),
        (f"c</plan>{INNER}f<step>1:x</step>", {K.TAGS_IN_STEP: 1}),
        (f"c{response(takeaway='', after='')}", {K.UNCLOSED: 1}),
        (f"c{response(steps=NESTED_STEP, after='')}", {K.TOO_DEEP: 1}),
        (f"c{response('<plan>1:</plan><plan>2:b</plan>', after='')}", {K.SHORT_PLAN: 1}),
    ],
)
def test_nested_violations(inside: str, expected: dict[ViolationKind, int]) -> None:
    graph = parse(response(steps=f"<step>1:{inside}</step><step>2:d</step>"), max_depth=2)
    assert kinds(graph) == expected
    assert len(graph.blocks) == 1
    assert [step.index for step in graph.blocks[0].steps] == [1, 2]


def test_a_cut_nested_response_keeps_its_shape() -> None:
    fork = "<guideline><plan>1:a</plan></guideline><step>1:"
    text = f"{fork}c{fork}d"
    graph = parse(text, max_depth=2)
    assert set(kinds(graph)) == {K.TRUNCATED, K.MISSING_BOX}
    assert graph.blocks[0].steps[0].blocks[0].steps[0].text == "d"
    assert set(kinds(parse(text))) == {K.TRUNCATED, K.MISSING_BOX, K.TOO_DEEP}


def test_broken_text_is_still_read() -> None:
    graph = parse(response("<plan>1:a<plan>2:b</plan>", "<step>1:c<step>7:d</step>x"))
    assert [plan.text for plan in graph.blocks[0].plans] == ["a", "b"]
    assert [(step.index, step.text) for step in graph.blocks[0].steps] == [(1, "c"), (7, "d")]
    assert (graph.blocks[0].takeaway, graph.boxed) == ("e", "5")
    assert parse("no tags \\boxed{3}").answer == "no tags \\boxed{3}"


def test_options() -> None:
    assert parse(VALID, max_branches=2).valid
    assert kinds(parse(VALID, max_branches=1)) == {K.TOO_MANY_BRANCHES: 1}
    short = {K.SHORT_PLAN: 2, K.SHORT_STEP: 2, K.SHORT_TAKEAWAY: 1}
    assert kinds(parse(VALID, min_chars=2)) == short
    assert parse(response(takeaway="<takeaway></takeaway>"), min_chars=0).valid
    for options in (
        {"max_branches": 0},
        {"max_depth": 0},
        {"max_depth": MAX_DEPTH + 1},
        {"min_chars": -1},
    ):
        with pytest.raises(ValueError, match="parse needs"):
            parse(VALID, **options)


def test_spelled_tags_are_text_and_violations() -> None:
    text = response(steps="<step>1:a <step> b</step><step>2:d</step>")
    offset = text.index("<step> b")
    graph = parse(text, spelled=(offset,))
    assert kinds(graph) == {K.SPELLED_TAG: 1}
    assert graph.violations[0].offset == offset
    assert graph.blocks[0].steps[0].text == "a <step> b"
    everything = [match.start() for match in strategies.TAG.finditer(text)]
    graph = parse(text, spelled=everything)
    assert kinds(graph) == {K.SPELLED_TAG: len(everything), K.NO_BLOCK: 1}
    for offset in (-1, 1, len(text) + 5):
        with pytest.raises(ValueError, match="no tag at offset"):
            parse(text, spelled=[offset])


# ---------------------------------------------------------------- rendering


@settings(PATIENT, max_examples=60)
@given(strategies.graphs(max_branches=3, max_depth=3))
def test_round_trip(graph: ReasoningGraph) -> None:
    text = render(graph)
    assert parse(text, max_branches=3, max_depth=3) == graph
    between = re.sub(strategies.TAG, "", text)
    assert re.sub(r"\s", "", between) == re.sub(r"\s", "", _texts(graph))  # nothing but texts


def _texts(graph: ReasoningGraph) -> str:
    def of(blocks: list[Block]) -> str:
        return "".join(
            "".join(f"{p.index}:{p.text}" for p in block.plans)
            + "".join(f"{s.index}:{s.text}{of(s.blocks)}{s.conclusion}" for s in block.steps)
            + block.takeaway
            for block in blocks
        )

    return of(graph.blocks) + graph.answer


@settings(PATIENT, max_examples=50)
@given(strategies.graphs(max_branches=3, max_depth=2), st.data())
def test_whitespace_between_tags_is_insignificant(
    graph: ReasoningGraph, data: st.DataObject
) -> None:
    blank = st.text(" \n\t", max_size=2)
    spaced = re.sub(
        r"((?:</guideline>|</plan>|</step>|<guideline>))(?=<)",
        lambda match: match[1] + data.draw(blank),
        data.draw(blank) + render(graph),
    )
    assert render(parse(spaced, max_depth=2)) == render(graph)


def test_render_refuses_what_would_not_read_back() -> None:
    def graph(answer: str = ANSWER, **changes: object) -> ReasoningGraph:
        block = Block([Plan(1, "a")], [Step(1, "c")], "e")
        return ReasoningGraph([dataclasses.replace(block, **changes)], answer)

    assert render(graph())
    assert render(
        graph(
            plans=[Plan(i, "a") for i in range(1, 41)], steps=[Step(i, "b") for i in range(1, 41)]
        )
    )
    refused = [
        ReasoningGraph([], ANSWER),
        graph(answer="so 5"),
        graph(answer=f"<step>{ANSWER}"),
        graph(plans=[Plan(1, "a <step> b")]),
        graph(plans=[Plan(1, "a</plan><plan>2:b")]),
        graph(plans=[Plan(2, "a")]),
        graph(plans=[]),
        graph(plans=[Plan(1, "a"), Plan(2, "b")]),
        graph(steps=[Step(1, "c", [], "conclusion without blocks")]),
        graph(steps=[Step(1, " ", graph().blocks)]),
        graph(steps=[Step(1, "c</step><step>2:d")]),
        graph(takeaway="</takeaway>"),
        parse(response(before="Well. ")),
    ]
    for broken in refused:
        with pytest.raises(ValueError, match="not rendered"):
            render(broken)


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 5000])
def test_the_deepest_graph(depth: int) -> None:
    step = Step(1, "c")
    for _ in range(depth - 1):
        step = Step(1, "c", [Block([Plan(1, "a")], [step], "e")])
    graph = ReasoningGraph([Block([Plan(1, "a")], [step], "e")], ANSWER)
    if depth <= MAX_DEPTH:
        assert parse(render(graph), max_depth=MAX_DEPTH) == graph
    else:
        with pytest.raises(ValueError, match="deep"):
            render(graph)


# ---------------------------------------------------------------- an independent reading

_TEXT = f"(?:(?!{strategies.TAG.pattern}|[\0\1\2]).)*"
_INSIDE = f"{_TEXT}(?:[\0\1](?:\\s*[\0\1])*{_TEXT})?"
_BLOCK = re.compile(
    rf"<guideline>\s*((?:<plan>{_TEXT}</plan>\s*)+)</guideline>"
    rf"\s*((?:<step>{_INSIDE}</step>\s*)+)<takeaway>({_TEXT})</takeaway>",
    re.DOTALL,
)


def is_valid(text: str, max_depth: int) -> bool:
    """The grammar by regular expressions: well-formed blocks become marks, innermost first."""
    for height in range(max_depth):
        mark = "\0\1\2"[height]
        text = _BLOCK.sub(lambda match, mark=mark: mark if _well_formed(match) else match[0], text)
    answer = re.fullmatch(rf"\s*(?:[\0\1]\s*)+({_TEXT})", text, re.DOTALL)
    return answer is not None and bool((naive_boxed(answer[1]) or "").strip())


def _well_formed(match: re.Match[str]) -> bool:
    plans = re.findall("<plan>(.*?)</plan>", match[1], re.DOTALL)
    steps = re.findall("<step>(.*?)</step>", match[2], re.DOTALL)
    labels = [re.match(r"\s*(\d+)\s*:(.*)", body, re.DOTALL) for body in plans + steps]
    expected = [str(i) for i in range(1, len(plans) + 1)]
    return (
        len(plans) <= 5
        and None not in labels
        and [label[1] for label in labels] == expected * 2
        and all(label[2].strip() for label in labels)
        and bool(match[3].strip())
    )


@settings(PATIENT, max_examples=150)
@given(strategies.broken_renderings(max_depth=1) | strategies.tag_soup())
def test_validity_agrees_with_regular_expressions(text: str) -> None:
    assume(not re.search("[\0\1\2]", text))
    assert parse(text).valid == is_valid(text, 1)


@settings(PATIENT, max_examples=80)
@given(strategies.broken_renderings(max_branches=2, max_depth=2))
def test_nested_validity_agrees_with_regular_expressions(text: str) -> None:
    assume(not re.search("[\0\1\2]", text))
    assert parse(text, max_depth=2).valid == is_valid(text, 2)


def test_the_regular_expressions_can_tell() -> None:
    assert is_valid(VALID, 1)
    assert is_valid(response(steps=NESTED_STEP), 2)
    assert not is_valid(response(steps=NESTED_STEP), 1)
    assert [name for name, (text, _) in BROKEN.items() if is_valid(text, 1)] == []


# ---------------------------------------------------------------- any text


def check_graph(text: str, max_depth: int) -> None:
    graph = parse(text, max_depth=max_depth)
    offsets = [violation.offset for violation in graph.violations]
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len(text) for offset in offsets)
    assert text.endswith(graph.answer)
    if graph.valid:
        assert parse(render(graph), max_depth=max_depth) == graph

    def check(blocks: list[Block], start: int, end: int, depth: int) -> None:
        assert not blocks or depth <= max_depth
        for block in blocks:
            assert start <= block.start <= block.end <= end
            start = block.end
            for node in [*block.plans, *block.steps]:
                assert block.start <= node.start <= node.end <= block.end
                assert node.text in text[node.start : node.end]
            for step in block.steps:
                check(step.blocks, step.start, step.end, depth + 1)

    check(graph.blocks, 0, len(text), 1)


@settings(PATIENT)
@given(st.text(), st.integers(1, 3))
def test_any_text_is_read(text: str, max_depth: int) -> None:
    check_graph(text, max_depth)


@settings(PATIENT, max_examples=150)
@given(strategies.tag_soup(60) | strategies.broken_renderings(max_depth=2), st.integers(1, 3))
def test_tag_soup_is_read(text: str, max_depth: int) -> None:
    check_graph(text, max_depth)


@settings(PATIENT, max_examples=50)
@given(strategies.graphs(max_branches=3, max_depth=2), st.data())
def test_every_prefix_is_read(graph: ReasoningGraph, data: st.DataObject) -> None:
    text = render(graph)
    cut = data.draw(st.integers(0, len(text) - 1))
    check_graph(text[:cut], 2)
    if cut <= len(text) - len(graph.answer):
        assert not parse(text[:cut], max_depth=2).valid


@settings(PATIENT, max_examples=50)
@given(strategies.graphs())
def test_tags_spelled_with_ordinary_tokens_are_never_valid(graph: ReasoningGraph) -> None:
    text = render(graph)
    for match in list(strategies.TAG.finditer(text))[:4]:
        assert not parse(text, spelled=[match.start()]).valid


# ---------------------------------------------------------------- boxes


def naive_boxes(text: str) -> list[tuple[int, int, str]]:
    """(where it opens, where it ends, content) of every box, by counting braces from each."""
    found = []
    for opening in re.finditer(r"\\f?boxed\s*{|\\fbox\s*{|\\boxed\s*([0-9]+)", text):
        if opening[1]:
            found.append((opening.start(), opening.end(), opening[1]))
            continue
        depth, i = 1, opening.end()
        while i < len(text) and depth:
            pair, rest = text[i : i + 2], text[i + 2 :]
            if pair in ("\\{", "\\}") or (
                pair == "\\\\" and not rest.startswith(("boxed", "fbox"))
            ):
                i += 1
            elif text[i] in "{}":
                depth += 1 if text[i] == "{" else -1
            i += 1
        if not depth:
            found.append((opening.start(), i, text[opening.end() : i - 1]))
    return found


def naive_boxed(text: str) -> str | None:
    """The last box that isn't empty (else an empty one), and those that it is joined to."""
    boxes = naive_boxes(text)
    while len(boxes) > 1 and not boxes[-1][2].strip():
        boxes.pop()
    pieces = []
    following = None
    for start, end, content in reversed(boxes):
        if following is not None and text[end:following].strip() not in (",", "and"):
            break
        pieces.append(content)
        following = start
    if not pieces:
        return None
    return pieces[0] if len(set(pieces)) == 1 else ", ".join(reversed(pieces))


@settings(PATIENT, max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [
                "\\boxed{",
                "\\fbox{",
                "\\boxed ",
                "{",
                "}",
                "\\",
                "a",
                "boxed",
                "7",
                ", ",
                " and ",
                " ",
            ]
        ),
        max_size=25,
    )
)
def test_last_boxed_agrees_with_counting(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert last_boxed(text) == naive_boxed(text)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", None),
        ("\\boxed", None),
        ("\\boxed{}", ""),
        ("\\boxed{1} and \\boxed{2}", "1, 2"),
        ("\\boxed{3}, \\boxed{5} and $\\boxed{7}$", "3, 5, 7"),
        ("\\boxed{3}, \\boxed{5}, and \\boxed{7}", "3, 5, 7"),
        ("\\boxed{3}. Wrong, \\boxed{5}", "5"),
        ("\\boxed{5}, \\boxed{5}", "5"),
        ("so $\\boxed 3$.", "3"),
        ("so \\boxed-12.5.", "-12.5"),
        ("so $\\fbox{70}$.", "70"),
        ("\\boxed{42}. (Put in \\boxed{} as asked.)", "42"),
        ("\\boxed{42}. (Marked with \\boxed as asked.)", "42"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{\\{1}", "\\{1"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("} } \\boxed {5} }", "5"),
        ("{ \\boxed{5}", "5"),
        ("\\\\boxed{5}", "5"),
        ("a \\\\ \\boxed{b \\\\} c}", "b \\\\"),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


BLOCK = "<guideline><plan>1:a</plan></guideline><step>1:b</step>"


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (BLOCK + "<takeaway>c</takeaway>so \\boxed{5}", "5"),
        (BLOCK + "so \\boxed{5}", "5"),
        (BLOCK + "<takeaway>so \\boxed{5}", "5"),
        (BLOCK + "<takeaway>c</takeaway>so \\boxed{5}<plan>", "5"),
        (BLOCK + "<takeaway>c</takeaway>so \\boxed{5} <step> \\boxed{", "5"),
        ("plainly \\boxed{5}", "5"),
        ("<guideline><plan>1:\\boxed{4}</plan> \\boxed{5}", "5"),
        (BLOCK.replace("b", "\\boxed{4}"), None),
        (BLOCK + "<takeaway>\\boxed{4}</takeaway>so", None),
    ],
)
def test_the_box_does_not_depend_on_the_format(text: str, boxed: str | None) -> None:
    assert parse(text).boxed == boxed
