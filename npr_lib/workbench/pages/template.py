"""The templates, and what every page has: its frame, its style, its tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pygments.formatters import HtmlFormatter

from npr_lib.progress import duration

FOLDER = Path(__file__).parent / "templates"
INTERVAL = re.compile(r"<td>([^<\[]+) (\[[^\]<]*\])</td>")


def render(template: str, **values: Any) -> str:
    """A template of the folder, filled in."""
    return TEMPLATES.get_template(template).render(values)


def page(title: str, body: str, head: str = "", links: str = "") -> str:
    """A whole HTML page around `body`; the intervals in its tables go on a line of their own.

    `body`, `head` and `links` are HTML, `title` is text.
    """
    body = INTERVAL.sub(r"<td>\1<br><small>\2</small></td>", body)
    parts = {"style": _style(), "head": head, "links": links, "body": body}
    return render("page.html", title=title, **parts) + "\n"


def table(columns: list, rows: list[list]) -> str:
    """An HTML table; floats with three digits."""
    macros = TEMPLATES.get_template("table.html").module
    return str(macros.table(columns, rows))  # type: ignore[attr-defined]  # defined in the template


def _style() -> str:
    code = {
        name: HtmlFormatter(style=name, nobackground=True).get_style_defs(".highlight")
        for name in ("default", "github-dark")
    }
    dark = f"@media (prefers-color-scheme: dark) {{\n{code['github-dark']}\n}}"
    own = (FOLDER / "style.css").read_text(encoding="utf-8")
    return "\n".join((own, code["default"], dark))


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else value


def _pairs(values: dict, between: str) -> str:
    return ", ".join(f"{name}{between}{value}" for name, value in values.items())


TEMPLATES = Environment(
    loader=FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals["pairs"] = _pairs
TEMPLATES.filters |= {"cell": _cell, "duration": duration}
