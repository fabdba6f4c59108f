"""What a seed model reads: responses of mixed quality to problems of parts, as their kind writes
them (`Writing`; here for "parts", in `npr_lib.tasks.parts.stories` for word problems).

The corpus is meant to be uneven: the pieces are right, the way they are put together is as often
bad as good, so that there is something to decide and something to gain.

- *valid* responses. Where parts need each other, half of them are *deep*: each block takes on the
  parts whose parents are done. The others are *wide*: one block takes on all, in the same order.
  Decoded one token after the other that does no harm; in parallel a branch can't see its sibling's
  result. A part whose parent's value is not in sight ends in "?" and the answer is wrong. The two
  part at one token. So that both are practised alike and the first is still a matter of chance
  `wide`, that token is in the loss with chance `wide` in a wide response, 1 - `wide` in a deep one.
- Where all parts are independent a plan holds one of them (chance `split`) or several. A step with
  one part is right ("A=7-2-3+1=5-3+1=2+1=3"); a step with several is long, and careless: it forgets
  a final subtraction with probability `careless` ("A=7-2+3-1=5+3-1=8-1~8,C=...").
- *malformed* responses in `MALFORMATIONS` ways, and *plain* ones without tags, so that the format
  is there to be learnt. It is the first block that is spoilt, so that more blocks are no more risk.
- *drills*: one step, any, straight after a `</guideline>`, with the loss on its content only. A
  sequential model could find its part in what its siblings did; in parallel the index of its plan
  is the only key, and here too. The plans are in any order, so that nothing but the index helps.
  The blocks are never wide: a step that had to do without a value would learn to write "?", and
  then does so, now and then, where the value is in sight.
- Altogether a wide response and a deep one earn the same while decoding is sequential. What one of
  them earned less, stage 1 would drop, whichever that was, and stage 3 have nothing to choose from.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from npr_lib.identity import resolve
from npr_lib.tasks.parts.settings import Corpus
from npr_lib.tasks.parts.task import Parts, parent, ready, values
from npr_lib.tasks.problems import Problem, Prompt, build_prompt, load_problems

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedTokenizerBase

KINDS = ("valid", "malformed", "plain", "drill")
Known = dict[str, int | None]  # label -> the value written for it; None: "?"
# Kinds of problems whose responses can be written: what gives a problem's `Writing`.
WRITINGS = {"parts": f"{__name__}:toy", "stories": "npr_lib.tasks.parts.stories:writing"}


class Writing(Protocol):
    """How the pieces of a response to one problem are written. Labels name parts."""

    def plan(self, labels: Sequence[str]) -> str:
        """The text of a plan on these parts."""

    def step(
        self,
        labels: Sequence[str],
        parts: Parts,
        known: Known,
        careless: float,
        draw: random.Random,
    ) -> tuple[str, Known]:
        """The text of a step on these parts, and the values it comes to, given those in sight."""

    def takeaway(self, found: Known) -> str:
        """The values that the steps of a block came to."""

    def plain(self, steps: Sequence[str]) -> str:
        """Steps without tags."""

    def answer(self, parts: Parts, known: Known, boxed: bool) -> str:
        """What ends a response."""


@dataclass(frozen=True, slots=True)
class Document:
    """A prompt and a response in pieces `(text, trained)`; `kind` says what it teaches."""

    prompt: str
    pieces: tuple[tuple[str, bool], ...]
    kind: str

    @property
    def response(self) -> str:
        return "".join(text for text, _ in self.pieces)


def corpus(
    settings: Corpus,
    problems: Mapping[str, Any],
    prompt: Prompt,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[Document]:
    """Documents without end, over training problems only; a function of its arguments.

    Args:
        problems: a profile's section; of a kind in `WRITINGS`, else ValueError.
        prompt: the template.
        tokenizer: for its chat template.
    """
    if problems.get("kind") not in WRITINGS:
        known = ", ".join(WRITINGS)
        raise ValueError(f"nobody can write responses to {problems.get('kind')!r}, only to {known}")
    writing_of = resolve(WRITINGS[problems["kind"]])
    chosen = load_problems({**problems, "train": settings.problems}, "train", seed)
    prompts = [build_prompt(problem, prompt, tokenizer) for problem in chosen]
    draw = random.Random(seed)
    shares = [getattr(settings, kind) for kind in KINDS]
    while True:
        i = draw.randrange(len(chosen))
        kind = draw.choices(KINDS, shares)[0]
        parts, writing = chosen[i].meta["parts"], writing_of(chosen[i])
        if kind == "drill":
            blocks = plan_blocks(parts, 0.0, 0.8, draw)
            pieces = _drill(writing, parts, blocks, settings.careless, draw)
        else:
            wide = 0.5 if kind == "valid" else settings.wide
            blocks = plan_blocks(parts, wide, settings.split, draw)
            if kind == "malformed":
                alone = all(len(plans) == 1 for plans in blocks)
                names = [k for k in MALFORMATIONS if not (alone and k in NEED_TWO_STEPS)]
                kind = draw.choice(names)
            response = _response(kind, writing, parts, blocks, settings.careless, draw)
            pieces = ((response, True),)
            if kind == "valid" and (first := len(ready(parts, set()))) < len(parts):
                chance = settings.wide if len(blocks) == 1 else 1 - settings.wide
                pieces = _decided(response, first, draw.random() < chance)
        yield Document(prompts[i], pieces, kind)


# ---------------------------------------------------------------- how a problem is divided


def plan_blocks(
    parts: Parts, wide: float, split: float, draw: random.Random
) -> list[list[list[str]]]:
    """The labels of every plan of every block, by the chances of the corpus."""
    rounds: list[list[str]] = []
    done: set[str] = set()
    while chosen := ready(parts, done):
        # Which part plan i names must be looked up. In cyclic order, because token-wise greedy
        # decoding prefers to end a list whose next entry is uniform.
        start = draw.randrange(len(chosen))
        rounds.append(chosen[start:] + chosen[:start])
        done.update(chosen)
    if len(rounds) == 1:
        return [_groups(rounds[0], draw, split)]
    if draw.random() < wide:
        rounds = [[label for labels in rounds for label in labels]]
    return [[[label] for label in labels] for labels in rounds]


def _groups(labels: list[str], draw: random.Random, split: float) -> list[list[str]]:
    """The labels in their order, cut between neighbours with chance `split`."""
    groups = [labels[:1]]
    for label in labels[1:]:
        if draw.random() < split:
            groups.append([label])
        else:
            groups[-1].append(label)
    return groups


# ---------------------------------------------------------------- what is written


class Toy:
    """The writing of "parts": terse, every intermediate value of a part that stands alone."""

    def plan(self, labels: Sequence[str]) -> str:
        return ",".join(labels)

    def step(
        self,
        labels: Sequence[str],
        parts: Parts,
        known: Known,
        careless: float,
        draw: random.Random,
    ) -> tuple[str, Known]:
        found: Known = {}
        lines = []
        for label in labels:
            above = parent(parts[label])
            start = parts[label][0] if above is None else (known | found).get(above)
            line = f"{label}={parts[label]}"
            if start is None:
                found[label], line = None, f"{line}=?"
            else:
                resolved = f"{start}{parts[label][1:]}"
                running = values(resolved)
                line += "" if above is None else f"={resolved}"
                for i, value in enumerate(running[1:-1], start=1):
                    line += f"={value}{resolved[2 * i + 1 :]}"
                alone = len(labels) == 1
                forgets = not alone and resolved[-2] == "-" and draw.random() < careless
                found[label] = running[-2] if forgets else running[-1]
                line += f"{'=' if alone else '~'}{found[label]}"
            lines.append(line)
        return ",".join(lines), found

    def takeaway(self, found: Known) -> str:
        return ",".join(f"{label}={'?' if v is None else v}" for label, v in found.items())

    def plain(self, steps: Sequence[str]) -> str:
        return f"{','.join(steps)};"

    def answer(self, parts: Parts, known: Known, boxed: bool) -> str:
        text = ",".join("?" if known.get(p) is None else str(known[p]) for p in parts)
        return f"\\boxed{{{text}}}" if boxed else text


def toy(problem: Problem) -> Writing:
    return Toy()


def guideline(writing: Writing, plans: Sequence[Sequence[str]]) -> str:
    """The guideline with these labels in its plans."""
    texts = [writing.plan(labels) for labels in plans]
    inner = "".join(f"<plan>{i}:{text}</plan>" for i, text in enumerate(texts, start=1))
    return f"<guideline>{inner}</guideline>"


def _write_steps(
    writing: Writing,
    plans: Sequence[Sequence[str]],
    parts: Parts,
    known: Known,
    careless: float,
    draw: random.Random,
) -> tuple[list[str], Known]:
    """The steps of a block one after the other, each seeing those before it, and their values."""
    steps: list[str] = []
    found: Known = {}
    for labels in plans:
        step, come_to = writing.step(labels, parts, known | found, careless, draw)
        steps.append(step)
        found |= come_to
    return steps, found


def _block(
    writing: Writing,
    plans: Sequence[Sequence[str]],
    order: Sequence[int],
    steps: Sequence[str],
    found: Known,
) -> str:
    """A block with these plans, and the steps of those in `order`."""
    written = "".join(f"<step>{i + 1}:{s}</step>" for i, s in zip(order, steps, strict=True))
    return f"{guideline(writing, plans)}{written}<takeaway>{writing.takeaway(found)}</takeaway>"


def _response(
    kind: str,
    writing: Writing,
    parts: Parts,
    blocks: list[list[list[str]]],
    careless: float,
    draw: random.Random,
) -> str:
    """A whole response, decoded one token after the other: every earlier value is in sight."""
    least = 2 if kind in NEED_TWO_STEPS else 1
    spoilt = next(i for i, plans in enumerate(blocks) if len(plans) >= least)
    known: Known = {}
    text = ""
    for number, plans in enumerate(blocks):
        order = list(range(len(plans)))
        if number == spoilt:
            order = _reorder(kind, order, draw)
        asked = [plans[i] for i in order]
        steps, found = _write_steps(writing, asked, parts, known, careless, draw)
        known |= found
        if kind == "plain":
            text += writing.plain(steps)
            continue
        block = _block(writing, plans, order, steps, found)
        text += MALFORMATIONS.get(kind, _keep)(block) if number == spoilt else block
    return text + writing.answer(parts, known, boxed=kind != "no box")


def _decided(response: str, first: int, trained: bool) -> tuple[tuple[str, bool], ...]:
    """A response, cut around the tag that decides: after the first plans another, or their end."""
    head, tag, rest = re.findall(f"((?:.*?</plan>){{{first}}})(<.*?>)(.*)", response)[0]
    return (head, True), (tag, trained), (rest, True)


def _drill(
    writing: Writing,
    parts: Parts,
    blocks: list[list[list[str]]],
    careless: float,
    draw: random.Random,
) -> tuple[tuple[str, bool], ...]:
    """(what is given, what is trained): one step of the last of some of the blocks."""
    blocks = blocks[: draw.randrange(len(blocks)) + 1]
    known: Known = {}
    given = ""
    for plans in blocks[:-1]:
        steps, found = _write_steps(writing, plans, parts, known, careless, draw)
        known |= found
        given += _block(writing, plans, range(len(plans)), steps, found)
    plans = draw.sample(blocks[-1], len(blocks[-1]))
    i = draw.randrange(len(plans))
    step, _ = writing.step(plans[i], parts, known, careless, draw)
    head = f"{given}{guideline(writing, plans)}<step>{i + 1}:"
    return (head, False), (f"{step}</step>", True)


def _reorder(kind: str, order: list[int], draw: random.Random) -> list[int]:
    """Which steps are written in which order: all in order, but for three malformations."""
    if kind == "shuffled steps":
        shuffled = draw.sample(order, len(order))
        return shuffled if shuffled != order else order[::-1]
    if kind == "skipped step":
        return sorted(draw.sample(order, len(order) - 1))
    if kind == "repeated step":
        return [*order, draw.choice(order)]
    return order


def _keep(block: str) -> str:
    return block


# How one block of a valid response is spoilt; the first three already have other steps
# (`_reorder`), the last is the answer's.
MALFORMATIONS: dict[str, Callable[[str], str]] = {
    "shuffled steps": _keep,
    "skipped step": _keep,
    "repeated step": _keep,
    "no takeaway tags": lambda b: b.replace("<takeaway>", "").replace("</takeaway>", ""),
    "unclosed plan": lambda b: b.replace("</plan></guideline>", "</guideline>"),
    "unclosed step": lambda b: b.replace("</step><takeaway>", "<takeaway>"),
    "no plan tags": lambda b: b.replace("<plan>", "").replace("</plan>", ""),
    "no box": _keep,
}
NEED_TWO_STEPS = ("shuffled steps", "skipped step")
