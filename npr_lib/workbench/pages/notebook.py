"""An executed notebook as a page.

nbconvert's own pages fetch require.js, MathJax, jQuery and mermaid from the web. These pages are
made from its bare template instead: formulas become MathML here, figures are drawn by the one
copy of plotly's script beside the pages, and nothing else is needed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import plotly
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from npr_lib.files import PACKAGE
from npr_lib.workbench.pages.template import FOLDER, page, render

FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
EXPLORE = "explore.html"
SCRIPT = "plotly.min.js"
# By default plotly offers a button that uploads the figure's data.
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
}


class Page(HTMLExporter):
    """nbconvert's exporter with the bare template and formulas as MathML."""

    def __init__(self) -> None:
        template = (FOLDER / "notebook.html").read_text(encoding="utf-8")
        super().__init__(raw_template=template, template_name="basic")

    @pass_context  # as nbconvert's own, a filter of its templates
    def markdown2html(self, context: Any, source: str) -> str:
        return MarkdownWithMath(renderer=Formulas(escape=False)).render(source)


class Formulas(IPythonRenderer):
    """Markdown to HTML with formulas in MathML, which browsers draw without a script."""

    def block_math(self, body: str) -> str:
        return convert(body.strip(), display="block")

    def inline_math(self, body: str) -> str:
        return convert(body.strip())


def write_notebook(notebook: Path, target: Path) -> None:
    """Turn an executed notebook of a run into a page, and put plotly's script beside it once."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    figures = 0
    for cell in content.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if FIGURE in data:
                figures += 1
                output["data"] = {"text/html": _figure(data[FIGURE], f"figure-{figures}")}
            elif WIDGET in data:
                output["data"] = {"text/html": _widget(data)}
    body, _ = Page().from_notebook_node(content)
    for folder in (sys.prefix, str(PACKAGE.parent)):  # in warnings; a page may be published
        body = body.replace(f"{folder}/", "")
    if figures:
        copy_script(target.parent)
    script = f'<script src="{SCRIPT}"></script>' if figures else ""
    links = '<a href="../index.html">index</a>'
    target.write_text(page(notebook.stem, body, head=script, links=links), encoding="utf-8")


def copy_script(folder: Path) -> None:
    """Put the installed plotly's script into `folder`, unless that very file is there."""
    source = Path(plotly.__file__).parent / "package_data" / SCRIPT
    target = folder / SCRIPT
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        shutil.copyfile(source, target)


def _figure(figure: dict, name: str) -> str:
    """A place of the figure's height, and the call that draws it there."""
    data, layout = figure.get("data", []), figure.get("layout", {})
    return render("figure.html", name=name, data=data, layout=layout, config=CONFIG)


def _widget(data: dict) -> str:
    """A widget needs its kernel: in its place the explorer's page, which the run has as a file.
    One that is not ours is a progress bar, and goes."""
    own = "npr_lib.viz" in data.get("text/plain", "")
    return f'<p><a href="../{EXPLORE}">The explorer, as a page of its own</a></p>' if own else ""
