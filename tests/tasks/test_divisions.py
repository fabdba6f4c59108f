"""How responses divide their problems: examples by hand, and the gain against a brute force."""

import random

import numpy as np
import pandas as pd
import pytest

from npr_lib.analysis.branching import kind_shares, split_gain, wrong_part_rate
from npr_lib.reasoning.schema import parse
from npr_lib.tasks.parts.divisions import KINDS, divide, divisions

PARTS = {"A": "7-2+3+1", "B": "A+1-2-3", "C": "4+1-2+6"}


def block(plans, steps=None):
    steps = steps or [",".join(f"{p}=1+1=2" for p in plan.split(",")) for plan in plans]
    guideline = "".join(f"<plan>{i}:{plan}</plan>" for i, plan in enumerate(plans, start=1))
    written = "".join(f"<step>{i}:{step}</step>" for i, step in enumerate(steps, start=1))
    return f"<guideline>{guideline}</guideline>{written}<takeaway>t</takeaway>"


def kind(*blocks, end="\\boxed{1}"):
    return divide(PARTS, parse("".join(map(block, blocks)) + end)).kind


@pytest.mark.parametrize(
    "blocks, expected",
    [
        ([["A", "C"], ["B"]], "divided"),
        ([["C"], ["A"], ["B"]], "divided"),
        ([["A,C"], ["B"]], "shared"),
        ([["A,B", "C"]], "shared"),  # within a branch B sees A
        ([["B,A", "C"]], "blind"),
        ([["A", "B", "C"]], "blind"),
        ([["B"], ["A", "C"]], "blind"),
        ([["A", "C"]], "broken"),  # B is missing
        ([["A", "C"], ["B", "A"]], "broken"),
        ([["A", "C"], ["B"], ["D"]], "broken"),
    ],
)
def test_kinds(blocks, expected):
    assert kind(*blocks) == expected
    assert kind(*blocks, end="") == "broken"  # no box: not valid


def test_wrong_parts_and_block_widths():
    text = block(["A", "C"], ["C=4+1=5", "C=4+1=5,A=7"]) + block(["B"]) + "\\boxed{1}"
    division = divide(PARTS, parse(text))
    assert (division.branches, division.wrong_parts) == (3, 2)
    assert division.blocks == ((2, 2), (1, 1))


def test_a_step_is_held_against_the_plan_of_its_index():
    """Steps in another order (a violation, which sequential decoding permits), and parts in another
    order within a step, are no work on a wrong part; a step without a plan is."""
    guideline = "<guideline><plan>1:A,C</plan><plan>2:B</plan></guideline>"
    steps = "<step>2:B=5+1=6</step><step>1:C=4+1=5,A=7-2=5</step>{}<takeaway>t</takeaway>"
    division = divide(PARTS, parse(guideline + steps.format("") + "\\boxed{1}"))
    assert (division.branches, division.wrong_parts) == (2, 0)
    more = steps.format("<step>3:B=5+1=6</step>")
    division = divide(PARTS, parse(guideline + more + "\\boxed{1}"))
    assert (division.branches, division.wrong_parts) == (3, 1)


def frame(rng, problems=30, samples=4):
    rows = []
    for p in range(problems):
        shares = rng.dirichlet(np.ones(4))
        for s in range(samples):
            k = int(rng.choice(4, p=shares))
            right = float(rng.random() < 0.2 + 0.2 * k)
            rows.append(
                dict(problem_id=f"p{p}", sample=s, kind=KINDS[k], accuracy=right, branches=3)
            )
    return pd.DataFrame(rows).assign(wrong_parts=lambda d: (d.index % 7 == 0).astype(int))


def test_the_two_parts_of_a_gain_add_up_and_equal_the_formula():
    rng = np.random.default_rng(0)
    before, after = frame(rng), frame(rng)
    gain = split_gain(before, after, resamples=200)
    expected = [0.0, 0.0]
    for k in KINDS:
        share = [(f["kind"] == k).mean() for f in (before, after)]
        rate = [f.loc[f["kind"] == k, "accuracy"].mean() for f in (before, after)]
        expected[0] += (share[1] - share[0]) * sum(rate) / 2
        expected[1] += (rate[1] - rate[0]) * sum(share) / 2
    assert [e.value for e in gain.values()] == pytest.approx(expected, abs=1e-12)
    assert sum(expected) == pytest.approx(after["accuracy"].mean() - before["accuracy"].mean())
    assert all(e.low < e.value < e.high for e in gain.values())


def test_a_kind_that_only_one_side_shows_is_decomposition():
    """Before, all blind and wrong; after, all divided and right: no kind has gained anything."""
    rows = [dict(problem_id=f"p{i}", sample=0, accuracy=0.0, kind="blind") for i in range(9)]
    before = pd.DataFrame(rows)
    gain = split_gain(before, before.assign(kind="divided", accuracy=1.0), resamples=20)
    assert [e.value for e in gain.values()] == [1.0, 0.0]
    with pytest.raises(ValueError, match="same problems"):
        split_gain(before, before.assign(problem_id="q"))


def test_a_better_skill_alone_is_within_the_same_decomposition():
    rng = random.Random(0)
    rows = [dict(problem_id=f"p{i}", kind=rng.choice(KINDS), accuracy=0.0) for i in range(50)]
    before = pd.DataFrame(rows)
    gain = split_gain(before, before.assign(accuracy=1.0), resamples=20)
    assert [e.value for e in gain.values()] == pytest.approx([0.0, 1.0])


def test_shares_and_wrong_part_rate():
    rows = frame(np.random.default_rng(1))
    table = kind_shares(rows)
    assert list(table.index) == list(KINDS) and table["share"].sum() == pytest.approx(1)
    assert wrong_part_rate(rows).value == rows["wrong_parts"].sum() / rows["branches"].sum()


def test_divisions_of_rollouts():
    text = block(["A", "C"]) + block(["B"]) + "\\boxed{1}"
    problem = "A=7-2+3+1;B=A+1-2-3;C=4+1-2+6;values?"
    row = dict(problem=problem, text=text, max_branches=5, max_depth=1, spelled=[], accuracy=1.0)
    found = divisions(pd.DataFrame([row]))
    assert found.loc[0, ["kind", "parts", "independent", "depth"]].tolist() == ["divided", 3, 2, 2]
    with pytest.raises(ValueError, match="not a problem of kind"):
        divisions(pd.DataFrame([row | {"problem": "2+2?"}]))
