r"""Word problems of parts, a sentence a part, for a model that knows the language.

    Mia has 3 bags of 4 pens. Leo had 15 pens and gave 6 away. Ida has 5 pens more than Leo.
    How many pens do they have altogether?                             12 + 9 + 14 = 35

The parts need each other as those of "parts" do (`npr_lib.tasks.parts.task`, whose labels and
parents are used): who has so many more than somebody else needs that one's number first. So wide
and deep both occur. A share `legs` of the problems are reasoning-gym's `leg_counting`, a part an
animal, all independent. The answer is the sum.

The *resolved* text of a part ("3*4", "9+5", "7 crickets") belongs to one split: no stage trains on
a piece of arithmetic that a test problem asks for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from npr_lib.tasks.parts.corpus import Known
from npr_lib.tasks.parts.divisions import Reading
from npr_lib.tasks.parts.task import LABELS, Parts, parent
from npr_lib.tasks.problems import (
    SHARES,
    Problem,
    ProblemSet,
    Split,
    number,
    required,
    split_of,
    text_id,
)

NAMES = (
    *("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon"),
    *("Kim", "Leo", "Mia", "Nora", "Otto", "Pia", "Rui", "Sam", "Tess", "Uma"),
)
OBJECTS = (
    *("apples", "beads", "books", "cards", "coins", "eggs"),
    *("keys", "nuts", "pens", "shells", "stamps", "stones"),
)
HOLDERS = ("bags", "boxes", "jars", "nests", "piles", "rows")
BARREN = 2000  # draws in a row without a new problem after which there is none left
LARGEST = 20  # value of a part
MORE, TIMES = range(2, 10), range(2, 10)
COMPARED = {"+": "{n} {things} more than {above}", "-": "{n} {things} fewer than {above}"}
GAINS, LOSSES = ("found {n} more", "bought {n} more"), ("gave {n} away", "lost {n}")


def load(
    split: Split,
    seed: int,
    count: int | None,
    parts: list[int] | tuple[int, int] = (2, 4),
    linked: float = 0.6,
    dependent: float = 0.5,
    shuffled: float = 0.3,
    legs: float = 0.25,
    shares: dict[Split, float] = SHARES,
) -> ProblemSet:
    """parts: [fewest, most] of a problem; linked: the share of stories in which parts may depend on
    each other; dependent: the chance that one does; shuffled: that it stands before its parent;
    legs: the share of leg counting."""
    fewest, most = parts
    if not 1 <= fewest <= most <= len(NAMES):
        raise ValueError(f"parts: [fewest, most] must lie in 1..{len(NAMES)}: {[fewest, most]}")
    count = required(count, split, "stories")
    for name, chance in (("linked", linked), ("dependent", dependent), ("legs", legs)):
        if not 0 <= chance <= 1:
            raise ValueError(f"{name} is a chance, from 0 to 1: {chance}")
    pool = _pool(split, tuple(shares.items()))
    if not all(any(sign in text for text in pool) for sign in "+-*"):
        raise ValueError(f"the {split} split has no share of the arithmetic: {shares}")
    draw = random.Random(number("stories", split, seed))
    animals = _leg_counting(split, seed, fewest, most, shares)
    problems: dict[str, Problem] = {}
    barren = 0
    while len(problems) < count:
        known = len(problems)
        if draw.random() < legs:
            problem = next(animals)
        else:
            chance = dependent if draw.random() < linked else 0.0
            problem = _story(pool, draw.randint(fewest, most), chance, shuffled, draw)
        problems.setdefault(problem.id, problem)
        barren = 0 if len(problems) > known else barren + 1
        if barren == BARREN:
            raise ValueError(f"{count} distinct stories asked of the {split} split: found {known}")
    return ProblemSet(problems.values())


# ---------------------------------------------------------------- what is asked


@lru_cache
def _pool(split: Split, shares: tuple[tuple[Split, float], ...]) -> tuple[str, ...]:
    """The resolved texts that a split owns, values 1 to `LARGEST`."""
    products = [f"{a}*{b}" for a in TIMES for b in range(2, 21) if a * b <= LARGEST]
    sums = [f"{a}+{b}" for a in range(2, LARGEST) for b in MORE if a + b <= LARGEST]
    differences = [f"{a}-{b}" for a in range(3, LARGEST + 1) for b in MORE if a > b]
    every = (*products, *sums, *differences)
    return tuple(text for text in every if split_of(text, dict(shares)) == split)


def value(resolved: str) -> int:
    """The value of "3*4", "9+5" or "15-6"."""
    left, sign, right = re.fullmatch(r"(\d+)([-+*])(\d+)", resolved).groups()  # type: ignore[union-attr]
    a, b = int(left), int(right)
    return a * b if sign == "*" else a + b if sign == "+" else a - b


def _story(
    pool: Sequence[str], count: int, dependent: float, shuffled: float, draw: random.Random
) -> Problem:
    """A story of `count` parts whose resolved texts are all of the pool."""
    names, things = draw.sample(NAMES, count), draw.choice(OBJECTS)
    labels = list(LABELS[:count])
    if draw.random() < shuffled:
        draw.shuffle(labels)
    parts: dict[str, str] = {}
    known: dict[str, int] = {}
    for label in labels:
        above = draw.choice(list(known)) if known and draw.random() < dependent else None
        start = f"{known[above]}" if above is not None else ""
        fitting = [text for text in pool if re.match(rf"{start}[-+]", text)] if above else []
        if not fitting:
            above, sign = None, draw.choice("+-*")  # there are fewer products than sums
            fitting = [text for text in pool if sign in text]
        resolved = draw.choice(fitting)
        parts[label] = resolved if above is None else above + resolved[len(start) :]
        known[label] = value(resolved)
    parts = dict(sorted(parts.items()))
    who = dict(zip(parts, names, strict=True))
    sentences = [_sentence(who, label, parts[label], things, draw) for label in parts]
    text = f"{' '.join(sentences)} How many {things} do they have altogether?"
    answer = str(sum(known.values()))
    return Problem(text_id("story", text), text, answer, {"parts": parts, "who": who, "of": things})


def _sentence(who: dict[str, str], label: str, part: str, things: str, draw: random.Random) -> str:
    """A part in words."""
    name, above = who[label], parent(part)
    left, sign, n = re.split(r"([-+*])", part)
    if above is not None:
        return f"{name} has {COMPARED[sign].format(n=n, things=things, above=who[above])}."
    if sign == "*":
        return f"{name} has {left} {draw.choice(HOLDERS)} of {n} {things}."
    change = draw.choice(GAINS if sign == "+" else LOSSES).format(n=n)
    return f"{name} had {left} {things} and {change}."


def _leg_counting(split: Split, seed: int, fewest: int, most: int, shares: dict[Split, float]):
    """reasoning-gym's problems without end, those whose every part the split owns."""
    from reasoning_gym import create_dataset
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    sizes = {"min_animals": fewest, "max_animals": most, "min_instances": 2, "max_instances": 6}
    for chunk in range(2**31):
        source = number("legs", split, seed, chunk) % 2**31
        for entry in create_dataset("leg_counting", seed=source, size=1000, **sizes):
            counts = entry["metadata"]["animals"]
            if all(split_of(f"{n} {animal}", shares) == split for animal, n in counts.items()):
                parts = {
                    label: f"{n}*{ANIMALS[animal]}"
                    for label, (animal, n) in zip(LABELS, counts.items(), strict=False)
                }
                who = dict(zip(parts, (f"{animal}s" for animal in counts), strict=True))
                text = entry["question"].strip().split("\n")[-1]
                meta = {"parts": parts, "who": who, "of": "legs"}
                yield Problem(text_id("legs", text), text, entry["answer"], meta)


# A sentence, with the signs of what it says
_SENTENCES = {
    rf"(?P<who>\w+) has (?P<a>\d+) (?:{'|'.join(HOLDERS)}) of (?P<b>\d+) \w+\.": "*",
    r"(?P<who>\w+) had (?P<a>\d+) \w+ and (?:found|bought) (?P<b>\d+) more\.": "+",
    r"(?P<who>\w+) had (?P<a>\d+) \w+ and (?:gave|lost) (?P<b>\d+)(?: away)?\.": "-",
    r"(?P<who>\w+) has (?P<b>\d+) \w+ more than (?P<a>\w+)\.": "+",
    r"(?P<who>\w+) has (?P<b>\d+) \w+ fewer than (?P<a>\w+)\.": "-",
    r"(?P<a>\d+) (?P<who>[a-z ]+)(?=[,?])": "legs",
}


def read(problem: str) -> tuple[dict[str, str], dict[str, str]]:
    """The parts of a problem's text, and whose they are, as in its `meta`. ValueError for any other
    text."""
    found = [
        (match.start(), match["who"], match["a"], sign, match["b"] if sign != "legs" else "")
        for pattern, sign in _SENTENCES.items()
        for match in re.finditer(pattern, problem)
    ]
    found.sort()
    who = {label: item[1] for label, item in zip(LABELS, found, strict=False)}
    label_of = {name: label for label, name in who.items()}
    parts = {}
    for label, (_, name, a, sign, b) in zip(LABELS, found, strict=False):
        if sign == "legs":
            parts[label] = f"{a}*{_legs(name)}"
        else:
            parts[label] = f"{label_of.get(a, a)}{sign}{b}"
    if not parts:
        raise ValueError(f"not a problem of kind 'stories': {problem!r}")
    return parts, who


def reading(problem: str) -> Reading:
    """How responses to a problem of this kind are read (`tasks.parts.divisions`)."""
    parts, who = read(problem)
    label_of = {name: label for label, name in who.items()}
    names = "|".join(sorted(map(re.escape, label_of), key=len, reverse=True))
    begins = re.compile(rf"({names}) (?:has |have )?[\d?]")
    return Reading(
        parts,
        lambda plan: [label_of.get(name, name) for name in plan.strip().split(" and ")],
        lambda step: [label_of[name] for name in begins.findall(step)],
    )


def _legs(animals: str) -> int:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    return ANIMALS[animals.removesuffix("s")]


# ---------------------------------------------------------------- how it is answered


@dataclass(frozen=True)
class Story:
    """The writing of a word problem (`tasks.parts.corpus.Writing`). A step with one part writes its
    arithmetic down; a step with several does it in its head, and is off by one with probability
    `careless`, each."""

    who: dict[str, str]
    things: str

    def plan(self, labels: Sequence[str]) -> str:
        return " " + " and ".join(self.who[label] for label in labels)

    def step(
        self,
        labels: Sequence[str],
        parts: Parts,
        known: Known,
        careless: float,
        draw: random.Random,
    ) -> tuple[str, Known]:
        found: Known = {}
        for label in labels:
            above = parent(parts[label])
            start = "" if above is None else (known | found).get(above)
            if start is None:
                found[label] = None
                continue
            resolved = parts[label] if above is None else f"{start}{parts[label][1:]}"
            found[label] = value(resolved)
            if len(labels) > 1 and draw.random() < careless:
                found[label] += draw.choice((-1, 1))  # type: ignore[operator]
        if len(labels) > 1 or found[labels[0]] is None:
            return f" {', '.join(map(self._has(found), labels))}.", found
        shown = re.sub(r"([-+*])", r" \1 ", resolved)
        return f" {self._subject(labels[0])} {shown} = {found[labels[0]]} {self.things}.", found

    def takeaway(self, found: Known) -> str:
        return f"{', '.join(map(self._has(found), found))}."

    def plain(self, steps: Sequence[str]) -> str:
        return "".join(steps).strip() + " "

    def answer(self, parts: Parts, known: Known, boxed: bool) -> str:
        numbers = [known.get(label) for label in parts]
        if None in numbers:
            total, sums = "?", ""
        else:
            running = [sum(numbers[: i + 1]) for i in range(len(numbers))]  # type: ignore[arg-type]
            pairs = zip(running, numbers[1:], running[1:], strict=False)
            total, sums = str(running[-1]), ", ".join(f"{a} + {b} = {c}" for a, b, c in pairs)
        box = f"\\boxed{{{total}}}" if boxed else total
        return f"{sums}{', so ' if sums else 'So '}{box} {self.things}."

    def _subject(self, label: str) -> str:
        return f"{self.who[label]} {'have' if self.things == 'legs' else 'has'}"

    def _has(self, found: Known):
        return lambda label: f"{self.who[label]} {'?' if found[label] is None else found[label]}"


def writing(problem: Problem) -> Story:
    """How responses to a problem of this kind are written."""
    return Story(problem.meta["who"], problem.meta["of"])
