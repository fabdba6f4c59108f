"""The parser on long and hostile texts: linear time, no recursion with the text."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from broken_responses import ANSWER, VALID, response

from npr_lib.reasoning.schema import MAX_DEPTH, MAX_LISTED, TAGS, ViolationKind, parse

_FORK = "<guideline><plan>1:a</plan></guideline><step>1:"
ADVERSARIAL: dict[str, Callable[[int], str]] = {
    "opening guidelines": lambda n: "<guideline>" * (n // 11),
    "opening steps": lambda n: "<guideline>" + "<step>" * (n // 6),
    "all tags": lambda n: "".join(TAGS) * (n // len("".join(TAGS))),
    "all tags from the end": lambda n: "".join(TAGS[::-1]) * (n // len("".join(TAGS))),
    "never joined": lambda n: _FORK * (n // len(_FORK)),
    "joined": lambda n: _FORK * (n // 80) + "</step><takeaway>b</takeaway>" * (n // 80),
    "steps in a step": lambda n: f"{_FORK}{'<step>' * (n // 13)}{'</step>' * (n // 13)}",
    "unclosed, closed": lambda n: f"{_FORK}{'<step>' * (n // 9)}{'<plan>' * (n // 18)}</plan>",
    "valid blocks": lambda n: response(after="") * (n // len(VALID)) + ANSWER,
    "boxes": lambda n: "\\boxed{" * (n // 7),
    "boxes closed": lambda n: "\\boxed{" * (n // 8) + "}" * (n // 8),
    "backslashes": lambda n: "\\" * n,
    "spaces in plans": lambda n: "<guideline>" + ("<plan>" + " " * 500) * (n // 506),
    "spaces": lambda n: f"<guideline><plan>{' ' * n}1:a",
    "digits": lambda n: f"<guideline><plan>{'1' * n}:a",
    "almost tags": lambda n: "<guidelin" * (n // 9),
}


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def reference() -> int:
    """About 0.02 s of Python on an idle core: what the machine is worth at the moment."""
    return sum(i * i for i in range(250_000))


@pytest.mark.parametrize(
    ("name", "max_depth"),
    [*((name, 1) for name in ADVERSARIAL), ("never joined", MAX_DEPTH), ("joined", MAX_DEPTH)],
)
def test_time_is_linear(name: str, max_depth: int) -> None:
    small, large = (ADVERSARIAL[name](n) for n in (50_000, 400_000))
    for _ in range(4):  # the machine may be busy with something else
        unit = 4 * seconds(reference)
        short = seconds(lambda: parse(small, max_depth=max_depth))
        long = seconds(lambda: parse(large, max_depth=max_depth))
        # less than 2 s a megabyte on an idle core, and not 64 times as long as an eighth takes
        if good := long < 0.4 * 28 * unit and long < 28 * max(short, unit / 20):
            break
    assert good, f"{short} s for {len(small)} characters, {long} s for {len(large)}"


@pytest.mark.parametrize("tag", TAGS[::2])
@pytest.mark.parametrize("max_depth", [1, MAX_DEPTH])
def test_a_hundred_thousand_nested_tags(tag: str, max_depth: int) -> None:
    text = tag * 100_000 + tag.replace("<", "</") * 100_000
    assert not parse(text, max_depth=max_depth).valid


def test_thousands_of_nested_forks() -> None:
    graph = parse(_FORK * 30_000, max_depth=MAX_DEPTH)
    depth, blocks = 0, graph.blocks
    while blocks:
        depth, blocks = depth + 1, blocks[0].steps[0].blocks
    assert depth == MAX_DEPTH
    assert graph == parse(_FORK * 30_000, max_depth=MAX_DEPTH)


def test_violations_of_a_kind_are_listed_up_to_a_limit() -> None:
    violations = parse("<guideline>" + "<plan>" * 1000).violations
    kinds = [violation.kind for violation in violations]
    assert kinds.count(ViolationKind.UNCLOSED) == MAX_LISTED
