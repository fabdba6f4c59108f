"""The recipe of a stage, for its notebook: what it is made of, as code and as a table."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from IPython.display import Markdown


def show(section: Any, **functions: Callable[..., Any]) -> Markdown:
    """The functions as they are written, then every setting of the profile's section."""
    shown = [
        f"**{name}**{_bound(f)}\n\n```python\n{_code(f)}\n```" for name, f in functions.items()
    ]
    settings = dataclasses.asdict(section) | dict.fromkeys(functions, "see above")
    rows = [f"| {key} | {value} |" for key, value in _settings(settings)]
    return Markdown("\n\n".join([*shown, "\n".join(["| setting | value |", "|:--|:--|", *rows])]))


def _code(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return textwrap.dedent(inspect.getsource(function)).rstrip()


def _bound(function: Callable[..., Any]) -> str:
    """What a partial function already knows, in words."""
    given: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        given, function = {**function.keywords, **given}, function.func
    known = ", ".join(f"`{name} = {value!r}`" for name, value in given.items())
    return f", with {known}" if known else ""


def _settings(section: Mapping[str, Any], start: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            rows += _settings(value, f"{start}{name}.")
        else:
            rows.append((f"{start}{name}", f"`{value}`"))
    return rows
