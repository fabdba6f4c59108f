"""The tiny task family: parts, their dependence on each other, and reading them back."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npr_lib.tasks.parts import task
from npr_lib.tasks.problems import load_problems

EXAMPLE = {"A": "C-5+2-1", "B": "4+1-2+6", "C": "7-2+3+1", "D": "A+1-2+3"}


def test_every_expression_stays_within_single_digits():
    assert len(task.expressions(3)) == 729 and len(task.expressions(4)) == 6561
    for text in task.expressions(4):
        running = [eval(text[:end]) for end in (1, 3, 5, 7)]
        assert task.values(text) == running and all(0 <= value <= 9 for value in running)
    assert len(set(task.expressions(4))) == 6561


def test_an_example_by_hand():
    assert task.resolve(EXAMPLE) == EXAMPLE | {"A": "9-5+2-1", "D": "5+1-2+3"}
    assert task.solve(EXAMPLE) == {"A": 5, "B": 9, "C": 9, "D": 7}
    assert task.answer(EXAMPLE) == "5,9,9,7"
    assert task.levels(EXAMPLE) == {"A": 1, "B": 0, "C": 0, "D": 2}
    assert task.write(EXAMPLE) == "A=C-5+2-1;B=4+1-2+6;C=7-2+3+1;D=A+1-2+3;values?"
    assert task.read(task.write(EXAMPLE)) == EXAMPLE


@pytest.mark.parametrize("text", ["", "values?", "A=7;values?", "A=7-2;B=3+1", "What is 2+2?"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="not a problem of kind 'parts'"):
        task.read(text)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.floats(0, 1), st.floats(0, 1))
def test_drawn_parts_come_from_the_pool(seed, count, dependent, shuffled):
    draw = random.Random(seed)
    pool = draw.sample(task.expressions(4), 300)
    drawn = task.draw_parts(pool, count, dependent, shuffled, draw)
    assert list(drawn) == list("ABCDE"[:count])
    assert set(task.resolve(drawn).values()) <= set(pool)
    assert task.read(task.write(drawn)) == drawn
    assert min(task.levels(drawn).values()) == 0
    if not dependent:
        assert set(task.levels(drawn).values()) == {0}
    if not shuffled:
        assert all(task.parent(text) is None or task.parent(text) < p for p, text in drawn.items())


def test_problems_are_wide_and_deep_in_either_order():
    spec = {"kind": "parts", "parts": [4, 4], "dependent": 0.5, "shuffled": 0.5, "train": 2000}
    independent, depth, later = Counter(), Counter(), Counter()
    for problem in load_problems(spec, "train", 0):
        above = task.levels(problem.meta["parts"])
        independent[sum(level == 0 for level in above.values())] += 1
        depth[max(above.values())] += 1
        for label, text in problem.meta["parts"].items():
            if task.parent(text):
                later[task.parent(text) > label] += 1
    # three draws at a half
    for count, share in zip((4, 3, 2, 1), (0.125, 0.375, 0.375, 0.125), strict=True):
        assert abs(independent[count] / 2000 - share) < 0.045
    assert set(depth) == {0, 1, 2, 3}
    # half of the problems have random labels, in which half of the parents come later
    assert abs(later[True] / later.total() - 0.25) < 0.04


def test_a_share_of_the_problems_has_no_dependent_part():
    spec = {"kind": "parts", "parts": [3, 3], "linked": 0.7, "dependent": 0.75, "train": 2000}
    depths = Counter(
        max(task.levels(problem.meta["parts"]).values())
        for problem in load_problems(spec, "train", 0)
    )
    assert abs(depths[0] / 2000 - (0.3 + 0.7 * 0.25**2)) < 0.04
