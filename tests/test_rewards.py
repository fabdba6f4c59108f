"""The reward table of section 7, answers that are equal, and answers that would never end."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import strategies
from broken_responses import ANSWER, BROKEN, NESTED_STEP, VALID, response
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import PATIENT

from npr_lib.reasoning.schema import ReasoningGraph, ViolationKind, parse, render
from npr_lib.rewards import (
    PENALTIES,
    PER_ITEM,
    accuracy_reward,
    format_reward,
    progress,
    stage1_reward,
    stage3_reward,
)

SIX = "".join(f"<plan>{i}:a</plan>" for i in range(1, 7))
SIX_STEPS = SIX.replace("plan>", "step>")

# Written down from section 7, not computed from the table in the code.
FORMAT_CASES = [
    (VALID, 0.0),
    ("", -2.0),
    (" \n", -2.0),
    (ANSWER, -1.5),
    (response(before="</plan>"), -1.5),
    (response(after="</plan>" + VALID), -1.5),
    (response(guideline=""), -1.0),
    (response(steps="<step>1:c</step>"), -1.0),
    (response(after=f"</plan>{ANSWER}"), -1.0),
    (response(after="five"), -1.0),
    (response(after="\\boxed{}"), -1.0),
    (response(after="\\boxed{5"), -1.0),
    (response(steps="<plan>3:c</plan><step>1:c</step><step>2:d</step>"), -1.0),
    (response("<plan>1:a</plan><plan>3:b</plan>"), -1.0),
    (response("<plan>1:a<plan>2:b</plan>"), -1.0),
    (response(SIX, SIX_STEPS), -1.0),
    (response(steps=NESTED_STEP), -1.0),
    (response("<plan>1:</plan><plan>2:b</plan>"), -0.4),
    (response("<plan>1:</plan><plan>2:</plan>"), -0.8),
    (response("<plan>1:</plan><plan>2:</plan>", "<step>1:</step><step>2:</step>"), -1.6),
    (response(SIX.replace(":a", ":"), SIX_STEPS), -2.0),
    (response("<plan>1:<step></plan><plan>2:b</plan>"), -0.4),
    (response(steps="<step>1:c</plan></guideline></step><step>2:d</step>"), -0.4),
    (response(takeaway="<takeaway>e<plan></takeaway>"), -0.4),
    (response("x<plan>1:a</plan>y<plan>2:b</plan>z"), -0.2),
    (response(steps="<step>1:c</step>x<step>2:d</step>"), -0.2),
    (response(before="x"), -0.2),
    (response(after="x" + VALID), -0.2),
    (response("x<plan>1:</plan><plan>2:b</plan>", before="x", after="five"), -1.8),
    (response(guideline="", after="five"), -2.0),
    (response(guideline="", after="five", before="x"), -2.0),
]


@pytest.mark.parametrize(("text", "reward"), FORMAT_CASES)
def test_format_reward(text: str, reward: float) -> None:
    assert format_reward(text) == reward
    assert format_reward(parse(text)) == reward


def test_every_kind_has_a_penalty() -> None:
    assert set(PENALTIES) == set(ViolationKind)
    assert all(-2 <= penalty < 0 for penalty in PENALTIES.values())
    assert {str(kind).partition("_")[0] for kind in PER_ITEM} == {"short", "tags"}


@pytest.mark.parametrize("name", BROKEN)
def test_format_reward_is_the_sum_over_kinds(name: str) -> None:
    text, kinds = BROKEN[name]
    total = sum(PENALTIES[kind] * (n if kind in PER_ITEM else 1) for kind, n in kinds.items())
    assert format_reward(text) == pytest.approx(max(-2, total))


@settings(PATIENT, max_examples=150)
@given(
    st.text() | strategies.tag_soup(60) | strategies.broken_renderings(max_depth=2),
    st.integers(1, 2),
)
def test_format_reward_is_zero_exactly_when_valid(text: str, max_depth: int) -> None:
    reward = format_reward(text, max_depth=max_depth)
    assert -2 <= reward <= 0
    assert (reward == 0) == parse(text, max_depth=max_depth).valid


@settings(PATIENT, max_examples=30)
@given(strategies.graphs(max_depth=2))
def test_valid_graphs_lose_nothing(graph: ReasoningGraph) -> None:
    assert format_reward(graph) == 0
    assert format_reward(render(graph), max_depth=2) == 0
    assert math.copysign(1, format_reward(graph)) == 1  # and not -0.0


def test_format_reward_passes_parse_options_on() -> None:
    spelled = [VALID.index("<step>")]
    assert format_reward(VALID, min_chars=2) == -2
    assert format_reward(VALID, spelled=spelled) < -1
    assert format_reward(response(SIX, SIX_STEPS), max_branches=6) == 0
    with pytest.raises(TypeError, match="parse options"):
        format_reward(parse(VALID), max_depth=2)


def test_accuracy_is_about_the_last_box() -> None:
    assert accuracy_reward("\\boxed{4} no, \\boxed{5}", "5") == 1
    assert accuracy_reward("\\boxed{5} no, \\boxed{4}", "5") == -1
    assert accuracy_reward("5", "5") == -1


def test_another_equality_may_judge() -> None:
    asked = []

    def equal(predicted: str, answer: str) -> bool:
        asked.append((predicted, answer))
        return len(asked) == 1

    assert accuracy_reward("\\boxed{ cat }", "thing", equal) == 1
    assert accuracy_reward("\\boxed{dog}", "none", equal) == -1
    assert accuracy_reward("no box", "none", equal) == -1
    assert asked == [(" cat ", "thing"), ("dog", "none")]


def rollout(format_reward: float, correct: bool, span: int = 100) -> SimpleNamespace:
    response = SimpleNamespace(span=span, work=100)
    return SimpleNamespace(trajectory=response, format_reward=format_reward, correct=correct)


def test_stage_rewards() -> None:
    assert stage1_reward(rollout(-0.2, True)) == -0.2
    assert stage1_reward(rollout(0.0, True)) == 1
    assert stage1_reward(rollout(0.0, False)) == -1
    for invalid in ("filter", "penalize"):
        assert stage3_reward(rollout(0.0, True), invalid=invalid) == 1
        assert stage3_reward(rollout(0.0, False), invalid=invalid) == -1
    assert math.isnan(stage3_reward(rollout(-0.2, True), invalid="filter"))
    assert stage3_reward(rollout(-0.2, True), invalid="penalize") == -1
    with pytest.raises(ValueError, match="invalid must be"):
        stage3_reward(rollout(0.0, True), invalid="ignore")


def test_partial_credit_ranks_what_a_beginner_tries() -> None:
    """(r_f - 2 + 2 p) / 2 with p the sevenths of the form that are there; valid ones as ever."""
    dotted = VALID.replace("1:", "1.").replace("2:", "2.")
    tries = {
        "prose": 0,
        f"prose {ANSWER}": 0,
        "<guideline><plan>1:a": 1,
        "<guideline><plan>1:a</plan><plan>2:b</plan></guideline>": 3,
        "<guideline><plan>1:a</plan></guideline><step>1:c</step>": 5,
        dotted: 7,
    }
    earned = []
    for text, sevenths in tries.items():
        assert progress(text) == pytest.approx(sevenths / 7), text
        r_f = format_reward(text)
        tried = SimpleNamespace(
            trajectory=SimpleNamespace(text=text), format_reward=r_f, correct=True
        )
        assert stage1_reward(tried) == r_f < 0
        earned.append(stage1_reward(tried, partial_credit=True))
        expected = (r_f - 2 + 2 * sevenths / 7) / 2 if sevenths else -2
        assert earned[-1] == pytest.approx(expected)
    assert earned == sorted(earned) and len(set(earned)) == len(earned) - 1  # prose, prose
    assert stage1_reward(rollout(0.0, True), partial_credit=True) == 1
    assert stage1_reward(rollout(0.0, False), partial_credit=True) == -1


def test_the_span_bonus_is_for_right_answers_with_a_short_span() -> None:
    """r = 1 + rho (1 - span/work) for a right answer; rho = 0.5, span 60 of 100 tokens."""
    bonus = {"invalid": "penalize", "span_bonus": 0.5}
    assert stage3_reward(rollout(0.0, True, 60), **bonus) == pytest.approx(1.2)
    assert stage3_reward(rollout(0.0, True, 100), **bonus) == 1
    assert stage3_reward(rollout(0.0, False, 60), **bonus) == -1
    assert stage3_reward(rollout(-0.2, True, 60), **bonus) == -1
    assert stage3_reward(rollout(0.0, True, 60), invalid="penalize") == 1
