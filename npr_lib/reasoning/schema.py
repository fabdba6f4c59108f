r"""The text of a parallel response: tags, grammar, parser, violations, canonical rendering.

    response  := block+ answer
    block     := guideline step+ takeaway
    guideline := <guideline> plan+ </guideline>
    plan      := <plan> i ":" text </plan>
    step      := <step> i ":" text (block+ text)? </step>       blocks only below max_depth
    takeaway  := <takeaway> text </takeaway>
    answer    := text with a non-empty \boxed{...}

What `parse` normalises, so that `parse(render(g)) == g` for every valid g:

- Whitespace between two tags is dropped, and so is whitespace around the index `i`.
- In front of all there may be a byte order mark and an empty `<think></think>`, as models write
  with thinking switched off: they say nothing, so they are read as white space.
- Every text is kept verbatim, leading and trailing whitespace included: a plan's and a step's is
  everything after "i:", a takeaway's everything between its tags, the answer everything after the
  last block. What the policy wrote stays what it wrote; strip for display. The style's own white
  space at the ends of a text (`style`) is no part of it.
- In a step that holds blocks, a text or conclusion of whitespace only is whitespace between tags
  and reads as "".

How broken text is read (every case is also a violation):

- The answer is whatever follows the last block; with no block at all it is the whole text.
- A plan or takeaway is closed if the next tag of its own name is its closing tag. Then other tags
  in it are part of its text; else it ends at the next tag. Steps nest, so a step is closed if it
  has a `</step>` left after pairing from the inside out. An unclosed step that opens a block
  reaches to the end of what encloses it.
- A block without a takeaway ends where the next `<guideline>` or the enclosing step's end is.
- Blocks below `max_depth` are read as text, so no graph is deeper than `max_depth`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from npr_lib.reasoning.graph import (
    MAX_DEPTH,
    TAGS,
    Block,
    Plan,
    ReasoningGraph,
    Step,
    Violation,
    ViolationKind,
    last_boxed,
)
from npr_lib.reasoning.style import COMPACT, Style, pieces
from npr_lib.reasoning.tags import TAG, lex, pair

__all__ = [
    "LABEL",
    "MAX_DEPTH",
    "MAX_LISTED",
    "TAGS",
    "Block",
    "Plan",
    "ReasoningGraph",
    "Step",
    "Violation",
    "ViolationKind",
    "last_boxed",
    "parse",
    "parse_unlimited",
    "render",
]

MAX_LISTED = 100  # violations of one kind: more make a text neither more broken nor more readable
_ITEMS = ("plan", "step", "takeaway")
_SHORT = {name: ViolationKind(f"short_{name}") for name in _ITEMS}
_TAGS_IN = {name: ViolationKind(f"tags_in_{name}") for name in _ITEMS}
# What a plan and a step begin with, here and before the engine forks.
LABEL = re.compile(r"\s*([1-9][0-9]{0,8})\s*:")
_NOTHING_SAID = re.compile(r"\ufeff?(?:\s*<think>\s*</think>)?")


def parse(
    text: str,
    max_branches: int = 5,
    max_depth: int = 1,
    min_chars: int | None = None,
    spelled: Iterable[int] = (),
    style: Style = COMPACT,
) -> ReasoningGraph:
    """Read a response; whatever is wrong with it becomes a violation, ordered by offset.

    Never raises on a text of any content and length; linear in its length. Of each kind the first
    `MAX_LISTED` are listed.

    max_branches: most plans of a block.
    max_depth: 1 for blocks without nesting, at most `MAX_DEPTH`.
    min_chars: shorter plans, steps and takeaways (stripped) are too short (None: as the style
        has it); a step that holds blocks and items that hold tags are not measured.
    spelled: offsets of tags in `text` that were spelled with ordinary tokens: read as text, and
        each a violation.
    style: whose white space is taken off the texts.

    ValueError for options out of range, among them an offset in `spelled` where no tag is.
    """
    least = style.min_chars if min_chars is None else (min_chars,) * len(_ITEMS)
    if max_branches < 1 or min(least) < 0 or not 1 <= max_depth <= MAX_DEPTH:
        raise ValueError(
            f"parse needs max_branches >= 1, min_chars >= 0 and 1 <= max_depth <= {MAX_DEPTH}, "
            f"not {max_branches}, {min_chars}, {max_depth}"
        )
    lengths = dict(zip(_ITEMS, least, strict=True))
    return _Parser(text, max_branches, max_depth, lengths, spelled, style).response()


def parse_unlimited(text: str, style: Style = COMPACT) -> ReasoningGraph:
    """`parse` with no limit on length and number of branches, and on depth only `MAX_DEPTH`."""
    return parse(text, max(len(text), 1), MAX_DEPTH, min_chars=0, style=style)


def render(graph: ReasoningGraph, style: Style = COMPACT) -> str:
    """The canonical text of a valid graph: the style's white space and no other between two tags,
    "i:" before every text.

    ValueError for a graph whose rendering would not be read back as that same graph: one with
    violations (broken text has no canonical form), with a tag in a text, with a missing box, with
    indices out of order, ... Length and number of branches are not limited here.
    """
    if graph.violations:
        raise ValueError(f"not rendered, the graph has violations: {graph.violations[0]}")
    text = "".join(pieces(graph, style))
    back = parse_unlimited(text, style)
    if back.violations:
        raise ValueError(f"not rendered, the text would be invalid: {back.violations[0]}")
    if back != graph:
        raise ValueError("not rendered, the text would be read as another graph")
    return text


class _Zone(NamedTuple):
    """What stands around the blocks of a response or a step: the characters from `start` to the
    tag `stop`; the tags from `first` up to it are stray."""

    start: int
    first: int
    stop: int


class _Parser:
    """Recursive descent over the tags, numbered from 1 (0 and `last` mark the ends of the text).

    Methods take the number of the tag that opens what they read and the number `limit` of the
    tag at which the enclosing element ends, and return the number of the last tag they read.
    The text after a tag is judged by whoever reads the next one.
    """

    def __init__(
        self,
        text: str,
        max_branches: int,
        max_depth: int,
        min_chars: Mapping[str, int],
        spelled: Iterable[int],
        style: Style,
    ) -> None:
        self.text, self.style = text, style
        self.max_branches, self.max_depth, self.min_chars = max_branches, max_depth, min_chars
        self.violations: list[Violation] = []
        self.listed = dict.fromkeys(ViolationKind, 0)
        look_alikes = frozenset(spelled)
        for offset in look_alikes:
            if offset < 0 or not TAG.match(text, offset):
                raise ValueError(f"spelled: no tag at offset {offset} of the text")
            self.report(ViolationKind.SPELLED_TAG, offset, "a tag spelled with ordinary tokens")
        # arrays of strings and offsets, not objects: half the time on a text full of tags
        names, starts, ends = lex(text, look_alikes)
        self.names = ["", *names, ""]
        self.starts, self.ends = [0, *starts, len(text)], [0, *ends, len(text)]
        self.last = len(names) + 1
        self.closed_by = pair(self.names)

    def report(self, kind: ViolationKind, offset: int, message: str) -> None:
        if self.listed[kind] < MAX_LISTED:
            self.listed[kind] += 1
            self.violations.append(Violation(kind, offset, message))

    def report_tags(self, kind: ViolationKind, first: int, stop: int, where: str) -> None:
        for i in range(first, stop):
            self.report(kind, self.starts[i], f"{self.names[i]} {where}")

    def response(self) -> ReasoningGraph:
        nothing_said = _NOTHING_SAID.match(self.text)
        start = nothing_said.end() if nothing_said else 0
        if not self.text[start:].strip():
            self.report(ViolationKind.EMPTY, 0, "the response is empty")
            return ReasoningGraph([], self.text, self.violations)
        blocks, zones = self.blocks(start, 1, self.last, 1)
        answer_start, first, _ = zones.pop()
        if blocks and self.text.startswith(self.style.after_takeaway, answer_start):
            answer_start += len(self.style.after_takeaway)
        answer = self.text[answer_start:]
        if blocks:
            kind = ViolationKind.TAGS_AFTER_BLOCKS
            self.report_tags(kind, first, self.last, "after the last block")
        else:
            self.report(ViolationKind.NO_BLOCK, 0, "no <guideline>, so no block")
        for zone in zones:
            self.stray_text(zone)
            kind = ViolationKind.TAGS_OUTSIDE_BLOCKS
            self.report_tags(kind, zone.first, zone.stop, "outside a block")
        boxed = last_boxed(answer)
        if not (boxed or "").strip():
            self.report(ViolationKind.MISSING_BOX, answer_start, "the answer has no \\boxed{...}")
        self.violations.sort(key=lambda violation: violation.offset)
        if boxed is None:
            boxed = last_boxed(self.text[self.ends[self.last - 1] :])
        return ReasoningGraph(blocks, answer, self.violations, answer_start, boxed)

    def blocks(self, start: int, i: int, limit: int, depth: int) -> tuple[list[Block], list[_Zone]]:
        """The blocks from tag i up to `limit`, and the n + 1 zones around them; the first zone
        starts at the character `start`."""
        blocks, zones, first = [], [], i
        while i < limit:
            if self.names[i] != "<guideline>":
                i += 1
                continue
            zones.append(_Zone(start, first, i))
            block, i = self.block(i, limit, depth)
            blocks.append(block)
            start, first, i = block.end, i + 1, i + 1
        return blocks, [*zones, _Zone(start, first, limit)]

    def block(self, opening: int, limit: int, depth: int) -> tuple[Block, int]:
        plans, i = self.guideline(opening, limit)
        self.check_plans(plans, opening)
        block = Block(plans, [], "", self.starts[opening])
        while i + 1 < limit and self.names[i + 1] != "<guideline>":
            self.between(i, ViolationKind.STRAY_TEXT_BETWEEN_STEPS)
            i += 1
            if self.names[i] == "<step>":
                step, i = self.step(i, limit, depth, len(block.steps) + 1)
                block.steps.append(step)
            elif self.names[i] == "<takeaway>":
                self.check_count(block, i)
                block.takeaway, i, block.end = self.item(i, limit, self.ends[i])
                return block, i
            else:
                self.misplaced(i, "after a guideline")
        if i + 1 < limit:
            self.between(i, ViolationKind.STRAY_TEXT_BETWEEN_STEPS)
            self.misplaced(i + 1, "in a block without a takeaway")
        else:
            self.unclosed(opening, limit, "the block has no takeaway")
        block.end = self.starts[i + 1]
        return block, i

    def guideline(self, opening: int, limit: int) -> tuple[list[Plan], int]:
        plans: list[Plan] = []
        i = opening
        while i + 1 < limit and self.names[i + 1] not in ("<step>", "<takeaway>"):
            self.between(i, ViolationKind.STRAY_TEXT_IN_GUIDELINE)
            i += 1
            if self.names[i] == "</guideline>":
                return plans, i
            if self.names[i] == "<plan>":
                plan, i = self.plan(i, limit, len(plans) + 1)
                plans.append(plan)
            else:
                self.misplaced(i, "in a guideline")
        self.unclosed(opening, i + 1, "<guideline> is not closed")
        return plans, i

    def plan(self, opening: int, limit: int, position: int) -> tuple[Plan, int]:
        index, start = self.index(opening, position, ViolationKind.PLAN_INDEX)
        text, i, end = self.item(opening, limit, start)
        return Plan(index, text, self.starts[opening], end), i

    def item(self, opening: int, limit: int, start: int) -> tuple[str, int, int]:
        """A plan or takeaway: its text from `start`, its last tag, where it ends."""
        name, last = self.names[opening], self.closed_by[opening]
        if 0 < last < limit:
            stop, end = self.starts[last], self.ends[last]
        else:
            self.unclosed(opening, opening + 1, f"{name} is not closed")
            last, stop, end = opening, self.starts[opening + 1], self.starts[opening + 1]
        text = self.text[start:stop]
        if name == "<takeaway>":
            text = text.removeprefix(self.style.in_takeaway)
        self.check_item(opening, text, opening + 1 if last > opening + 1 else None)
        return text, last, end

    def step(self, opening: int, limit: int, depth: int, position: int) -> tuple[Step, int]:
        index, start = self.index(opening, position, ViolationKind.STEP_INDEX)
        stop = last = self.closed_by[opening]
        if 0 < last < limit:
            end = self.ends[last]
        else:
            opens_block = opening + 1 < limit and self.names[opening + 1] == "<guideline>"
            stop = limit if opens_block else opening + 1
            self.unclosed(opening, stop, "<step> is not closed")
            last, end = stop - 1, self.starts[stop]
        text = self.text[start : self.starts[stop]].removesuffix(self.style.end_of_step)
        step = Step(index, text, [], "", self.starts[opening], end)
        if stop == opening + 1:
            self.check_item(opening, text, None)
        elif depth < self.max_depth:
            self.nested(step, opening, start, stop, depth)
        elif "<guideline>" in self.names[opening + 1 : stop]:
            offset = self.starts[self.names.index("<guideline>", opening + 1)]
            message = f"blocks are nested more than {self.max_depth} deep"
            self.report(ViolationKind.TOO_DEEP, offset, message)
        else:
            self.check_item(opening, text, opening + 1)
        return step, last

    def nested(self, step: Step, opening: int, start: int, stop: int, depth: int) -> None:
        """Split a step's text into text, blocks, conclusion."""
        step.blocks, zones = self.blocks(start, opening + 1, stop, depth + 1)
        stray = next((zone.first for zone in zones if zone.first < zone.stop), None)
        if stray is not None or not step.blocks:
            self.check_item(opening, step.text, stray)
        if step.blocks:
            for zone in zones[1:-1]:
                self.stray_text(zone)
            ends = (zones[0], zones[-1])
            first, last = (self.text[zone.start : self.starts[zone.stop]] for zone in ends)
            last = last.removeprefix(self.style.after_takeaway)
            last = last.removesuffix(self.style.end_of_step)
            step.text, step.conclusion = (text if text.strip() else "" for text in (first, last))

    def index(self, opening: int, position: int, kind: ViolationKind) -> tuple[int, int]:
        """The index written after an opening tag (`position`, where it should be that, if there
        is none) and the offset where the text starts."""
        after = self.ends[opening]
        match = LABEL.match(self.text, after, self.starts[opening + 1])
        index = int(match[1]) if match else position
        if match is None or index != position:
            found = self.text[after : min(after + 12, self.starts[opening + 1])]
            message = f"{self.names[opening]} should begin with '{position}:', not {found!r}"
            self.report(kind, self.starts[opening], message)
        return index, match.end() if match else after

    def between(self, i: int, kind: ViolationKind) -> None:
        """Text after tag i that belongs to no element (after an opening plan, step or takeaway
        it belongs to that element)."""
        text = self.text[self.ends[i] : self.starts[i + 1]]
        in_element = self.names[i] in ("<plan>", "<step>", "<takeaway>")
        if not in_element and text and not text.isspace():
            self.report(kind, self.ends[i], "text between tags")

    def stray_text(self, zone: _Zone) -> None:
        start = zone.start
        for i in range(zone.first, zone.stop + 1):
            if self.text[start : self.starts[i]].strip():
                kind = ViolationKind.STRAY_TEXT_OUTSIDE_BLOCKS
                self.report(kind, start, "text before or between blocks")
            start = self.ends[i]

    def misplaced(self, i: int, where: str) -> None:
        self.report_tags(ViolationKind.MISPLACED_TAG, i, i + 1, where)

    def unclosed(self, opening: int, stop: int, message: str) -> None:
        kind = ViolationKind.TRUNCATED if stop == self.last else ViolationKind.UNCLOSED
        self.report(kind, self.starts[opening], message)

    def check_item(self, opening: int, text: str, stray: int | None) -> None:
        """Tags in a plan, step or takeaway (`stray`: the first of them), or too short a text."""
        name = self.names[opening][1:-1]
        if stray is not None:
            self.report_tags(_TAGS_IN[name], stray, stray + 1, f"inside a {name}")
        elif len(text) < self.min_chars[name] or len(text.strip()) < self.min_chars[name]:
            message = f"a {name} of fewer than {self.min_chars[name]} characters"
            self.report(_SHORT[name], self.starts[opening], message)

    def check_plans(self, plans: list[Plan], opening: int) -> None:
        if not plans:
            offset = self.starts[opening]
            self.report(ViolationKind.NO_PLAN, offset, "a guideline without a plan")
        elif len(plans) > self.max_branches:
            message = f"{len(plans)} plans, at most {self.max_branches}"
            offset = plans[self.max_branches].start
            self.report(ViolationKind.TOO_MANY_BRANCHES, offset, message)

    def check_count(self, block: Block, takeaway: int) -> None:
        plans, steps = len(block.plans), len(block.steps)
        if plans and plans != steps:
            message = f"{steps} steps for {plans} plans"
            self.report(ViolationKind.COUNT_MISMATCH, self.starts[takeaway], message)
