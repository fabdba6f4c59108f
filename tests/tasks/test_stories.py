"""Word problems: the answer read back from the text, splits that share no arithmetic, responses."""

from __future__ import annotations

import itertools
import re

import pytest

from npr_lib.reasoning.schema import parse
from npr_lib.tasks.parts.corpus import MALFORMATIONS, corpus
from npr_lib.tasks.parts.divisions import divide, reading
from npr_lib.tasks.parts.settings import Corpus
from npr_lib.tasks.parts.stories import read, value
from npr_lib.tasks.problems import SPLITS, load_problems

SPEC = {"kind": "stories", "train": 600, "validation": 100, "test": 100}
LEGS = {"human": 2, "ant": 6, "crab": 10, "spider": 8, "cow": 4, "snake": 0}


@pytest.fixture(scope="module")
def problems():
    return {split: load_problems(SPEC, split, 0) for split in SPLITS}


def solved(text):
    """The sum, by a reading of the sentences that knows nothing of how they were made."""
    amounts, waiting = {}, []
    for sentence in re.split(r"(?<=[.?]) ", text):
        words = sentence.rstrip(".?").split()
        numbers = [int(word) for word in words if word.isdigit()]
        if "than" in words:
            waiting.append((words[0], words[-1], numbers[0] * (1 if "more" in words else -1)))
        elif "of" in words and len(numbers) == 2:
            amounts[words[0]] = numbers[0] * numbers[1]
        elif len(numbers) == 2:
            amounts[words[0]] = numbers[0] + numbers[1] * (1 if "more" in words else -1)
    while waiting:
        who, above, change = waiting.pop(0)
        if above in amounts:
            amounts[who] = amounts[above] + change
        else:
            waiting.append((who, above, change))
    return str(sum(amounts.values()))


def test_the_answer_is_what_the_sentences_say(problems):
    stories = [p for split in SPLITS for p in problems[split] if p.meta["of"] != "legs"]
    assert len(stories) > 500
    for problem in stories:
        assert solved(problem.problem) == problem.answer, problem


def test_wide_deep_and_legs_all_occur(problems):
    train = problems["train"]
    legs = sum(p.meta["of"] == "legs" for p in train) / len(train)
    deep = sum(any(e[0].isalpha() for e in p.meta["parts"].values()) for p in train) / len(train)
    assert 0.18 < legs < 0.32 and 0.25 < deep < 0.6
    assert {len(p.meta["parts"]) for p in train} == {2, 3, 4}
    assert all(problems["test"].verify(p.answer, p) for p in problems["test"])
    assert not any(problems["test"].verify(str(int(p.answer) + 1), p) for p in problems["test"])


def test_splits_share_no_piece_of_arithmetic(problems):
    def pieces(split):
        found = set()
        for problem in problems[split]:
            parts, who = problem.meta["parts"], problem.meta["who"]
            for label, text in parts.items():
                if problem.meta["of"] == "legs":
                    found.add(f"{text.split('*')[0]} {who[label]}")
                else:
                    chain = [text]
                    while chain[-1][0].isalpha():
                        chain.append(parts[chain[-1][0]])
                    total = value(chain.pop())
                    while chain:
                        resolved = f"{total}{chain.pop()[1:]}"
                        total = value(resolved)
                        found.add(resolved)
                    found.add(text) if not text[0].isalpha() else None
        return found

    for one, other in itertools.combinations(SPLITS, 2):
        assert not pieces(one) & pieces(other)
    assert len(pieces("train")) > 200


def test_a_problem_is_read_back_from_its_text(problems):
    for problem in problems["train"]:
        assert read(problem.problem) == (problem.meta["parts"], problem.meta["who"])
    with pytest.raises(ValueError, match="not a problem of kind 'stories'"):
        read("Why?")


@pytest.fixture(scope="module")
def documents():
    settings = Corpus(problems=300, careless=0.0)
    return list(itertools.islice(corpus(settings, SPEC, "{problem}", 0), 1500))


def test_exactly_the_documents_called_valid_are_valid_and_right(documents, problems):
    answers = {p.problem: p.answer for p in load_problems({**SPEC, "train": 300}, "train", 0)}
    for document in documents:
        if document.kind == "drill":
            continue
        graph = parse(document.response)
        assert graph.valid == (document.kind == "valid"), (document, graph.violations)
        if document.kind == "valid":  # decoded in sequence, every earlier step is in sight
            assert graph.boxed == answers[document.prompt], document
    assert set(MALFORMATIONS) <= {d.kind for d in documents}


def test_what_a_step_writes_is_right(documents):
    for document in documents:
        for left, sign, right, result in re.findall(
            r"(\d+) ([-+*]) (\d+) = (\d+)", document.response
        ):
            assert eval(f"{left}{sign}{right}") == int(result), document.response


def test_responses_are_read_as_they_were_divided(documents):
    kinds = {}
    for document in documents:
        if document.kind == "valid":
            parts, planned, worked = reading(document.prompt)
            division = divide(parts, parse(document.response), planned, worked)
            assert division.wrong_parts == 0, document.response
            kinds[division.kind] = kinds.get(division.kind, 0) + 1
    assert set(kinds) == {"divided", "shared", "blind"} and min(kinds.values()) > 30


def test_legs_are_those_of_the_animals(problems):
    for problem in problems["train"]:
        for label, name in problem.meta["who"].items():
            if name.removesuffix("s") in LEGS:
                legs = problem.meta["parts"][label].split("*")[1]
                assert int(legs) == LEGS[name.removesuffix("s")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"legs": 1.0, "parts": [1, 1], "test": 300},
            "300 distinct stories asked of the test split",
        ),
        ({"shares": {"train": 1.0}}, "the test split has no share of the arithmetic"),
        ({"legs": 2.0}, "legs is a chance, from 0 to 1"),
        ({"parts": [0, 2]}, "fewest, most"),
    ],
)
def test_what_can_not_be_made_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        load_problems({**SPEC, **fields}, "test", 0)
