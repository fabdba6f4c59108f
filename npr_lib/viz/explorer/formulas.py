"""Formulas in a text as trees of MathML, which a browser draws without a script or a font."""

from __future__ import annotations

import html
import re
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml import exceptions
from latex2mathml.converter import convert_to_element

LONGEST = 500  # characters of a formula
_BRACES = r"\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\}"
_FORMULA = re.compile(
    rf"\$\$([^$]{{1,{LONGEST}}})\$\$|\$(?!\s)([^$\n]{{1,{LONGEST}}})(?<!\s)\$(?!\d)"
    rf"|\\\(([^$\n]{{1,{LONGEST}}}?)\\\)|\\\[([^$]{{1,{LONGEST}}}?)\\\]|(\\boxed{_BRACES})"
)
# What a model writes need not be LaTeX: these say so, and the text stays text.
_NOT_LATEX: tuple[type[Exception], ...] = (
    *(kind for kind in vars(exceptions).values() if isinstance(kind, type)),
    *(AttributeError, IndexError, KeyError, RecursionError, StopIteration, ValueError),
)
_TAGS = {
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msup", "msub"),
    *("msubsup", "msqrt", "mroot", "mover", "munder", "munderover", "mtable", "mtr"),
    *("mtd", "mstyle", "mpadded", "mphantom", "menclose"),
}
_ATTRIBUTES = {
    *("display", "mathvariant", "stretchy", "fence", "form", "accent", "accentunder"),
    *("linethickness", "columnalign", "notation", "minsize", "maxsize", "lspace", "rspace"),
    *("width", "height", "depth", "displaystyle", "scriptlevel"),
}


def formulas(text: str) -> list[list[Any]]:
    """Every formula of `text` in order: [source with its delimiters, tree].

    A tree is [tag, {attribute: value}, text, children], of the elements and attributes of
    presentation alone (no link, no style). Only what can be read as LaTeX is returned.
    """
    found = []
    for match in _FORMULA.finditer(text):
        source = next(part for part in match.groups() if part is not None)
        tree = _tree(source, "block" if match[0].startswith(("$$", "\\[")) else "inline")
        if tree and len(match[0]) <= LONGEST:
            found.append([match[0], tree])
    return found


@lru_cache(maxsize=4096)
def _tree(source: str, display: str) -> list[Any] | None:
    try:
        return _plain(convert_to_element(source, display=display))
    except _NOT_LATEX:
        return None


def _plain(element: Element) -> list[Any]:
    if element.tag not in _TAGS:
        raise ValueError(f"<{element.tag}> is no element of a formula")
    attributes = {name: value for name, value in element.items() if name in _ATTRIBUTES}
    text = html.unescape(element.text or "")  # the converter writes "<" as "&#x0003C;"
    return [element.tag, attributes, text, [_plain(child) for child in element]]
