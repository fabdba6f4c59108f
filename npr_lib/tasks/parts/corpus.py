"""What the tiny seed model reads: responses of mixed quality to "parts" problems.

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
from typing import Any

from npr_lib.tasks.parts.settings import Corpus
from npr_lib.tasks.parts.task import Parts, parent, ready, values
from npr_lib.tasks.problems import Prompt, build_prompt, load_problems

KINDS = ("valid", "malformed", "plain", "drill")
Known = dict[str, int | None]  # label -> the value written for it; None: "?"


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
    settings: Corpus, problems: Mapping[str, Any], prompt: Prompt, seed: int
) -> Iterator[Document]:
    """Documents without end, over training problems only; a function of its arguments.

    Args:
        problems: a profile's section; of kind "parts", else ValueError.
        prompt: the template.
    """
    if problems.get("kind") != "parts":
        raise ValueError("the seed corpus is written for problems of kind 'parts' only")
    chosen = load_problems({**problems, "train": settings.problems}, "train", seed)
    prompts = [build_prompt(problem, prompt) for problem in chosen]
    draw = random.Random(seed)
    shares = [getattr(settings, kind) for kind in KINDS]
    while True:
        i = draw.randrange(len(chosen))
        kind = draw.choices(KINDS, shares)[0]
        parts = chosen[i].meta["parts"]
        if kind == "drill":
            pieces = _drill(parts, plan_blocks(parts, 0.0, 0.8, draw), settings.careless, draw)
        else:
            wide = 0.5 if kind == "valid" else settings.wide
            blocks = plan_blocks(parts, wide, settings.split, draw)
            if kind == "malformed":
                alone = all(len(plans) == 1 for plans in blocks)
                names = [k for k in MALFORMATIONS if not (alone and k in NEED_TWO_STEPS)]
                kind = draw.choice(names)
            response = _response(kind, parts, blocks, settings.careless, draw)
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


def write_step(
    labels: Sequence[str], parts: Parts, known: Known, careless: float, draw: random.Random
) -> tuple[str, Known]:
    """The text of a step on these parts, and the values it comes to, given those in sight."""
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


def write_values(found: Known) -> str:
    """The values that steps came to: "B=3,C=8"."""
    return ",".join(f"{label}={'?' if v is None else v}" for label, v in found.items())


def guideline(plans: Sequence[Sequence[str]]) -> str:
    """The guideline with these labels in its plans."""
    inner = "".join(f"<plan>{i}:{','.join(p)}</plan>" for i, p in enumerate(plans, start=1))
    return f"<guideline>{inner}</guideline>"


def _write_steps(
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
        step, come_to = write_step(labels, parts, known | found, careless, draw)
        steps.append(step)
        found |= come_to
    return steps, found


def _block(
    plans: Sequence[Sequence[str]], order: Sequence[int], steps: Sequence[str], found: Known
) -> str:
    """A block with these plans, and the steps of those in `order`."""
    written = "".join(f"<step>{i + 1}:{s}</step>" for i, s in zip(order, steps, strict=True))
    return f"{guideline(plans)}{written}<takeaway>{write_values(found)}</takeaway>"


def _response(
    kind: str, parts: Parts, blocks: list[list[list[str]]], careless: float, draw: random.Random
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
        steps, found = _write_steps([plans[i] for i in order], parts, known, careless, draw)
        known |= found
        if kind == "plain":
            text += f"{','.join(steps)};"
            continue
        block = _block(plans, order, steps, found)
        text += MALFORMATIONS.get(kind, _keep)(block) if number == spoilt else block
    answer = ",".join("?" if known.get(p) is None else str(known[p]) for p in parts)
    return text + (answer if kind == "no box" else f"\\boxed{{{answer}}}")


def _decided(response: str, first: int, trained: bool) -> tuple[tuple[str, bool], ...]:
    """A response, cut around the tag that decides: after the first plans another, or their end."""
    head, tag, rest = re.findall(f"((?:.*?</plan>){{{first}}})(<.*?>)(.*)", response)[0]
    return (head, True), (tag, trained), (rest, True)


def _drill(
    parts: Parts, blocks: list[list[list[str]]], careless: float, draw: random.Random
) -> tuple[tuple[str, bool], ...]:
    """(what is given, what is trained): one step of the last of some of the blocks."""
    blocks = blocks[: draw.randrange(len(blocks)) + 1]
    known: Known = {}
    given = ""
    for plans in blocks[:-1]:
        steps, found = _write_steps(plans, parts, known, careless, draw)
        known |= found
        given += _block(plans, range(len(plans)), steps, found)
    plans = draw.sample(blocks[-1], len(blocks[-1]))
    i = draw.randrange(len(plans))
    step, _ = write_step(plans[i], parts, known, careless, draw)
    return (f"{given}{guideline(plans)}<step>{i + 1}:", False), (f"{step}</step>", True)


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
