"""Where the tags of a text are, and which of them belong together."""

from __future__ import annotations

import re
from itertools import accumulate

from npr_lib.reasoning.graph import TAGS

TAG = re.compile(f"({'|'.join(TAGS)})")


def lex(text: str, look_alikes: frozenset[int]) -> tuple[list[str], list[int], list[int]]:
    """The tags that are not look-alikes: names, first and last-plus-one characters."""
    pieces = TAG.split(text)  # text, tag, text, ..., tag, text
    offsets = list(accumulate(map(len, pieces)))
    tags = zip(pieces[1::2], offsets[0::2], offsets[1::2], strict=False)  # one offset to spare
    kept = [tag for tag in tags if tag[1] not in look_alikes]
    return [name for name, _, _ in kept], [start for _, start, _ in kept], [end for *_, end in kept]


def pair(names: list[str]) -> list[int]:
    """For every opening plan, step and takeaway the number of its closing tag, else 0."""
    closed_by = [0] * len(names)
    following = {"<plan>": 0, "<takeaway>": 0}  # the next tag of that name, if it is a closing one
    unpaired: list[int] = []  # </step>, read from the end
    for i in range(len(names) - 1, -1, -1):
        name = names[i]
        if name == "</step>":
            unpaired.append(i)
        elif name == "<step>":
            closed_by[i] = unpaired.pop() if unpaired else 0
        elif name == "</plan>" or name == "</takeaway>":
            following["<" + name[2:]] = i
        elif name in following:
            closed_by[i], following[name] = following[name], 0
    return closed_by
