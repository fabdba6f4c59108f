"""A figure in a page must be data alone: nothing fetched, nothing run, no markup from outside."""

import json
import re

from pages import is_local, sources

HOSTILE = '<script src="https://evil.example/x.js"></script><a href="http://evil.example">$x$</a>'
_ELEMENT = re.compile(r"<\s*/?\s*(script|a|img|iframe|link|style)\b", re.IGNORECASE)


def strings(node):
    """Every string in a tree of dicts and lists, keys left out."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, (dict, list)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from strings(value)


def assert_inert(figures):
    """`figures`: name -> figure. plotly reads a few elements in any text, so none may be left."""
    for name, figure in figures.items():
        page = figure.to_html(include_plotlyjs=False)
        assert all(is_local(source) for source in sources(page)), name
        texts = list(strings(json.loads(figure.to_json())))
        assert texts and not any(_ELEMENT.search(text) for text in texts), name
