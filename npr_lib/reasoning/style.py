"""Writing styles: what stands around the tags, and who writes it.

A tag is where structure is; what surrounds it is a habit of the model that was trained to write it.
A style says which white space that is. It never belongs to nobody: what stands before a `<step>`
and after its `</step>` are that branch's first and last tokens, all else is the trunk's.

    compact   nothing between two tags: the models that are trained here
    lines     a line for every tag: the models that the paper's authors released

What a person reads as a text has none of its style's white space in it (`schema.parse` takes it
off, `schema.render` puts it there), so the same graph is written in any style. Other white space
between two tags means nothing to the parser; other text is stray in every style.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from npr_lib.reasoning.graph import MAX_DEPTH, Block, ReasoningGraph


@dataclass(frozen=True, slots=True)
class Style:
    """White space by its place. The engine writes what stands at a `<step>`, after its `</step>`
    and after `<takeaway>`, which have nothing to decide; the rest is the policy's.

    in_guideline: after `<guideline>` and after each `</plan>` [policy].
    before_step, in_step: around `<step>`, in front of its "i:" [engine].
    end_of_step: before `</step>` [policy].
    after_step: after `</step>`, the last of its branch [engine].
    in_takeaway: after `<takeaway>` [engine].
    after_takeaway: after `</takeaway>` [policy].
    min_chars: least lengths of a plan, a step and a takeaway, without white space around them.
    """

    name: str
    in_guideline: str = ""
    before_step: str = ""
    in_step: str = ""
    end_of_step: str = ""
    after_step: str = ""
    in_takeaway: str = ""
    after_takeaway: str = ""
    min_chars: tuple[int, int, int] = (1, 1, 1)


COMPACT = Style("compact")
# The authors' engine writes "\n<step>\n1:" and "<takeaway>\n" and samples one token after
# </step>, which is a newline as a rule. Here the engine writes it: a token that decides nothing is
# no action to reward, and whatever else came out would be text outside of every element.
LINES = Style("lines", "\n", "\n", "\n", "\n", "\n", "\n", "\n\n", min_chars=(3, 6, 6))
STYLES = {style.name: style for style in (COMPACT, LINES)}


def named(name: str, min_chars: Sequence[int] | None = None) -> Style:
    """The style of this name; `min_chars` in place of its own. ValueError if there is none, or for
    other than three lengths from 0 on."""
    if name not in STYLES:
        raise ValueError(f"unknown writing style {name!r}; there are {', '.join(STYLES)}")
    style = STYLES[name]
    if min_chars is None:
        return style
    plan, step, takeaway = (int(least) for least in min_chars)
    if min(plan, step, takeaway) < 0:
        raise ValueError(f"min_chars = {min_chars!r}: expected lengths from 0 on")
    return replace(style, min_chars=(plan, step, takeaway))


def pieces(graph: ReasoningGraph, style: Style) -> Iterator[str]:
    """The rendering in pieces: tags, and the texts between them. What the engine writes is a piece
    of its own, what the policy writes between two such pieces is one."""
    return _pieces(graph.blocks, graph.answer, style, 1)


def _pieces(blocks: Sequence[Block], rest: str, style: Style, depth: int) -> Iterator[str]:
    """rest: what follows the last block."""
    if depth > MAX_DEPTH + 1:
        raise ValueError(f"not rendered, blocks are nested more than {MAX_DEPTH} deep")
    for number, block in enumerate(blocks, 1):
        yield from ("<guideline>", style.in_guideline)
        for plan in block.plans:
            yield from ("<plan>", f"{plan.index}:", plan.text, "</plan>", style.in_guideline)
        yield "</guideline>"
        for step in block.steps:
            yield from (style.before_step, "<step>", style.in_step, f"{step.index}:")
            rest_of_step = step.conclusion + style.end_of_step
            if step.blocks:
                yield step.text
                yield from _pieces(step.blocks, rest_of_step, style, depth + 1)
            else:
                yield step.text + rest_of_step
            yield from ("</step>", style.after_step)
        yield from ("<takeaway>", style.in_takeaway, block.takeaway, "</takeaway>")
        yield style.after_takeaway + (rest if number == len(blocks) else "")
    if not blocks:
        yield rest
