"""The reasoning graph: what a parallel response consists of, and what can be wrong with it.

`npr_lib.reasoning.schema` reads it from text and writes it; import its names from there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

TAGS: tuple[str, ...] = (
    "<guideline>",
    "</guideline>",
    "<plan>",
    "</plan>",
    "<step>",
    "</step>",
    "<takeaway>",
    "</takeaway>",
)
MAX_DEPTH = 64  # whatever walks a graph recurses once a depth

# A doubled backslash is a line break, not an escape, unless "boxed" follows ("\\boxed{" is what
# models write that were taught on escaped strings).
_BRACES = re.compile(
    r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[+-]?[0-9](?:[0-9.,]*[0-9])?))"
    r"|\\\\(?!boxed|fbox)|\\[{}]|[{}]"
)
_BETWEEN = re.compile(r"[\s$]*(?:[,;]|(?:[,;][\s$]*)?(?:and|or|\\text\{\s*(?:and|or)\s*\}))[\s$]*")


class ViolationKind(StrEnum):
    """What can be wrong with a response; `rewards.PENALTIES` has one entry for each."""

    EMPTY = "empty"
    NO_BLOCK = "no_block"
    TAGS_OUTSIDE_BLOCKS = "tags_outside_blocks"  # before the first block or between two
    NO_PLAN = "no_plan"
    COUNT_MISMATCH = "count_mismatch"
    TAGS_AFTER_BLOCKS = "tags_after_blocks"
    MISSING_BOX = "missing_box"  # or an empty one
    MISPLACED_TAG = "misplaced_tag"
    PLAN_INDEX = "plan_index"
    STEP_INDEX = "step_index"
    UNCLOSED = "unclosed"
    TRUNCATED = "truncated"  # the text ends inside a block
    TOO_MANY_BRANCHES = "too_many_branches"
    TOO_DEEP = "too_deep"
    SPELLED_TAG = "spelled_tag"  # tag text spelled with ordinary tokens
    SHORT_PLAN = "short_plan"
    SHORT_STEP = "short_step"
    SHORT_TAKEAWAY = "short_takeaway"
    TAGS_IN_PLAN = "tags_in_plan"
    TAGS_IN_STEP = "tags_in_step"
    TAGS_IN_TAKEAWAY = "tags_in_takeaway"
    STRAY_TEXT_IN_GUIDELINE = "stray_text_in_guideline"
    STRAY_TEXT_BETWEEN_STEPS = "stray_text_between_steps"
    STRAY_TEXT_OUTSIDE_BLOCKS = "stray_text_outside_blocks"  # before the first or between two


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong, at a character offset of the parsed text."""

    kind: ViolationKind
    offset: int
    message: str


@dataclass(slots=True)
class Plan:
    """One item of a guideline. `start`, `end` (here and below): character offsets, tags included;
    0 in a graph that was not parsed, and no part of equality."""

    index: int
    text: str
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(slots=True)
class Step:
    """One branch: its text, or text, nested blocks and a conclusion."""

    index: int
    text: str
    blocks: list[Block] = field(default_factory=list)
    conclusion: str = ""
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(slots=True)
class Block:
    """A fork and its join: k plans, the k steps that carry them out, what was learnt."""

    plans: list[Plan]
    steps: list[Step]
    takeaway: str
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(slots=True)
class ReasoningGraph:
    r"""A parsed response. With violations, `blocks` and `answer` are the best reading of it.

    boxed: `last_boxed` of the answer, or, where a broken format leaves it none, of what follows the
    last tag: whether an answer is right does not depend on the format. A branch's box is no answer.
    """

    blocks: list[Block]
    answer: str
    violations: list[Violation] = field(default_factory=list)
    answer_start: int = field(default=0, compare=False)
    boxed: str | None = field(default=None, compare=False)

    @property
    def valid(self) -> bool:
        """No violations."""
        return not self.violations

    def __post_init__(self) -> None:
        if self.boxed is None:
            self.boxed = last_boxed(self.answer)


def last_boxed(text: str) -> str | None:
    r"""Content of the box that opens last and whose braces balance, None without one. One pass.

    A box is `\boxed{...}`, `\fbox{...}` or `\boxed 3`; escaped braces (`\{`, `\}`) are text. An
    empty one after another (instructions that are echoed) is none. Boxes with nothing but commas,
    "and" or "or" between them are one answer in pieces: `\boxed{3} and \boxed{5}` is "3, 5".
    """
    opened: list[tuple[int, int]] = []  # (offset, or -1 of a plain brace; where the content starts)
    boxes: list[tuple[int, int, int, int]] = []  # (offset, content's start and end, where it ends)
    for match in _BRACES.finditer(text):
        symbol = match[0]
        if match["bare"]:
            boxes.append((match.start(), *match.span("bare"), match.end()))
        elif symbol == "}":
            offset, start = opened.pop() if opened else (-1, 0)
            if offset >= 0:
                boxes.append((offset, start, match.start(), match.end()))
        elif symbol == "{" or symbol.startswith(("\\boxed", "\\fbox")):
            opened.append((-1 if symbol == "{" else match.start(), match.end()))
    boxes.sort()
    while len(boxes) > 1 and not text[boxes[-1][1] : boxes[-1][2]].strip():
        boxes.pop()
    if not boxes:
        return None
    last = len(boxes) - 1
    while last and _BETWEEN.fullmatch(text, boxes[last - 1][3], boxes[last][0]):
        last -= 1
    pieces = [text[start:end] for _, start, end, _ in boxes[last:]]
    return pieces[0] if len(set(pieces)) == 1 else ", ".join(pieces)
