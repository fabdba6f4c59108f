"""Executed notebooks as HTML, and the index of a run: pages that open without a network.

nbconvert's own pages fetch require.js, MathJax, jQuery and mermaid from the web. These pages are
made from its bare template instead: formulas become MathML here, figures are drawn by the one
copy of plotly's script beside the pages, and nothing else is needed.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import plotly
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from npr_lib.files import PACKAGE
from npr_lib.workbench import manifest as record
from npr_lib.workbench.notebook import read_notebooks
from npr_lib.workbench.progress import duration
from npr_lib.workbench.stages import NOTEBOOKS

FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
EXPLORE = "explore.html"
SCRIPT = "plotly.min.js"
INTERVAL = re.compile(r"<td>([^<\[]+) (\[[^\]<]*\])</td>")
# By default plotly offers a button that uploads the figure's data.
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
}

TEMPLATE = """
{%- extends 'basic/index.html.j2' -%}
{%- block input_group -%}
<details class="code"><summary>
{%- if "parameters" in cell.metadata.tags -%} default parameters
{%- elif "injected-parameters" in cell.metadata.tags -%} parameters of this run
{%- else -%} code {%- endif -%}
</summary>{{ super() }}</details>
{%- endblock -%}
{%- block stream_stderr -%}
<details class="code"><summary>messages</summary>{{ super() }}</details>
{%- endblock -%}
{%- block stream_stdout -%}
{%- if output.text.count("\n") > 20 -%}
<details class="code"><summary>output</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock -%}
{%- block in_prompt -%}{%- endblock -%}
{%- block empty_in_prompt -%}{%- endblock -%}
{%- block output_area_prompt -%}{%- endblock -%}
"""

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1c2024; background: #fff; margin: 0; }
main { max-width: 64rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
nav { border-bottom: 1px solid #e2e5e9; padding: .6rem 1.5rem; font-size: .9rem; }
nav a { margin-right: 1rem; }
a { color: #1f5fbf; }
h1, h2, h3 { line-height: 1.25; margin: 1.6em 0 .5em; }
h1 { margin-top: .6em; }
.anchor-link { visibility: hidden; text-decoration: none; margin-left: .3em; }
h1:hover .anchor-link, h2:hover .anchor-link, h3:hover .anchor-link { visibility: visible; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
table, th, td { border: 0; }
th, td { padding: .3em .8em; text-align: left; border-bottom: 1px solid #e2e5e9; }
td, tbody th { vertical-align: top; overflow-wrap: break-word; }
td:first-child, tbody th:first-child { white-space: nowrap; }
.dataframe thead th { text-align: left !important; }
td small { white-space: nowrap; color: #6a737d; }
.facts thead { display: none; }
thead th { border-bottom: 2px solid #9aa3ad; }
.scroll, .output_html { overflow-x: auto; }
pre, code { font: .85rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
code { background: #f3f4f6; padding: .1em .25em; border-radius: 3px; }
pre { background: #f6f7f9; padding: .6rem .8rem; overflow-x: auto; border-radius: 4px; }
pre code { padding: 0; background: none; }
details.code { margin: .4rem 0; color: #6a737d; }
details.code > summary { cursor: pointer; font-size: .8rem; }
.output_stderr pre { background: #fff6e5; }
.output_error pre { background: #fdecec; }
math[display="block"] { margin: 1em 0; }
.figure { width: 100%; }
"""


class Page(HTMLExporter):
    """nbconvert's exporter with the bare template and formulas as MathML."""

    def __init__(self) -> None:
        super().__init__(raw_template=TEMPLATE, template_name="basic")

    def markdown2html(self, context: Any, source: str) -> str:
        return MarkdownWithMath(renderer=Formulas(escape=False)).render(source)

    markdown2html.jinja_pass_arg = HTMLExporter.markdown2html.jinja_pass_arg


class Formulas(IPythonRenderer):
    """Markdown to HTML with formulas in MathML, which browsers draw without a script."""

    def block_math(self, body: str) -> str:
        return convert(body.strip(), display="block")

    def inline_math(self, body: str) -> str:
        return convert(body.strip())


def write_notebook(notebook: Path, target: Path) -> None:
    """Turn an executed notebook of a run into a page, and put plotly's script beside it once."""
    content = nbformat.read(notebook, as_version=4)
    figures = _draw_figures(content)
    _link_explorer(content)
    body, _ = Page().from_notebook_node(content)
    for folder in (sys.prefix, str(PACKAGE.parent)):  # in warnings; a page may be published
        body = body.replace(f"{folder}/", "")
    script = ""
    if figures:
        copy_script(target.parent)
        script = f'<script src="{SCRIPT}"></script>'
    links = '<a href="../index.html">index</a>'
    target.write_text(page(notebook.stem, body, head=script, links=links), encoding="utf-8")


def page(title: str, body: str, head: str = "", links: str = "") -> str:
    """A whole HTML page around `body`; the intervals in its tables go on a line of their own."""
    body = INTERVAL.sub(r"<td>\1<br><small>\2</small></td>", body)
    style = STYLE + HtmlFormatter(style="default").get_style_defs(".highlight")
    nav = f"<nav>{links}<b>{html.escape(title)}</b></nav>" if links else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n{head}\n</head>\n"
        f"<body>\n{nav}\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def copy_script(folder: Path) -> None:
    """Put the installed plotly's script into `folder`, unless that very file is there."""
    source, target = _plotly_script(), folder / SCRIPT
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        shutil.copyfile(source, target)


def _plotly_script() -> Path:
    return Path(plotly.__file__).parent / "package_data" / SCRIPT


def _draw_figures(notebook: nbformat.NotebookNode) -> int:
    """Replace plotly figures in the outputs by HTML that draws them; returns how many."""
    count = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if FIGURE not in data:
                continue
            count += 1
            output["data"] = {"text/html": _figure(data[FIGURE], f"figure-{count}")}
    return count


def _link_explorer(notebook: nbformat.NotebookNode) -> None:
    """A widget needs its kernel: in its place the explorer's page, which the run has as a file.
    One that is not ours is a progress bar, and goes."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if WIDGET in output.get("data", {}):
                link = f'<p><a href="../{EXPLORE}">The explorer, as a page of its own</a></p>'
                own = "npr_lib.viz" in output["data"].get("text/plain", "")
                output["data"] = {"text/html": link if own else ""}


def _figure(figure: dict, name: str) -> str:
    """A place of the figure's height, and the call that draws it there."""
    height = figure.get("layout", {}).get("height", 450)
    # "</" inside a string would end the script element
    data, layout, config = (
        json.dumps(part).replace("</", "<\\/")
        for part in (figure.get("data", []), figure.get("layout", {}), CONFIG)
    )
    return (
        f'<div class="figure" id="{name}" style="height:{height}px"></div>\n'
        f'<script>Plotly.newPlot("{name}", {data}, {layout}, {config});</script>'
    )


def write_index(run_dir: Path) -> Path:
    """Write `index.html` of a run: headline table, notebooks with durations, the manifest."""
    run = record.read(run_dir)
    parts = [f"<h1>Run {html.escape(run['run'])}</h1>", _summary(run), _headline(run_dir)]
    if (run_dir / EXPLORE).exists():
        parts.append(f'<p><a href="{EXPLORE}">Explore the responses</a> one by one.</p>')
    parts += ["<h2>Stages</h2>", _stages(run, run_dir)]
    pages = [f"html/{stage.name}.html" for stage in read_notebooks(NOTEBOOKS) if not stage.run]
    links = [f'<a href="{path}">{path}</a>' for path in pages if (run_dir / path).exists()]
    parts += [f"<p>On request: {link}.</p>" for link in links]
    parts += ["<h2>Manifest</h2>", _facts(run)]
    files = [("profile.yaml", "the profile, overrides applied"), ("manifest.json", "the manifest")]
    files += [(path.relative_to(run_dir).as_posix(), "") for path in _metrics(run_dir)]
    links = [f'<li><a href="{path}">{path}</a> {text}</li>' for path, text in files]
    parts.append(f"<h2>Files</h2><ul>{''.join(links)}</ul>")
    target = run_dir / "index.html"
    target.write_text(page(f"NPR Workbench: {run['run']}", "\n".join(parts)), encoding="utf-8")
    return target


def _metrics(run_dir: Path) -> list[Path]:
    speed = run_dir / "speed.json"
    return sorted((run_dir / "metrics").glob("*.json")) + ([speed] if speed.exists() else [])


def _summary(run: dict) -> str:
    stages = run["stages"].values()
    seconds = sum(stage.get("seconds") or 0 for stage in stages)
    unfinished = [name for name, stage in run["stages"].items() if stage["status"] != "done"]
    text = f"Profile <b>{html.escape(run['profile'])}</b>, {duration(seconds)} in all."
    if unfinished:
        text += f" <b>Not finished:</b> {html.escape(', '.join(unfinished))}."
    return f"<p>{text}</p>"


def _headline(run_dir: Path) -> str:
    """The tables in `metrics/headline.json`: title -> pandas' orient="split"."""
    path = run_dir / "metrics" / "headline.json"
    if not path.exists():
        return ""
    parts = []
    for title, split in json.loads(path.read_text(encoding="utf-8")).items():
        rows = [[name, *row] for name, row in zip(split["index"], split["data"], strict=True)]
        parts.append(f"<h2>{html.escape(title)}</h2>{table(['', *split['columns']], rows)}")
    return "\n".join(parts)


def _stages(run: dict, run_dir: Path) -> str:
    rows = []
    for name, stage in run["stages"].items():
        target = f"html/{name}.html"
        text = html.escape(name)
        link = f'<a href="{target}">{text}</a>' if (run_dir / target).exists() else text
        seconds = stage.get("seconds")
        took = "" if seconds is None else duration(seconds)
        rows.append([link, html.escape(stage["status"]), took, stage["start"], len(stage["runs"])])
    return table(["stage", "status", "duration", "started (UTC)", "times run"], rows, escape=False)


def _facts(run: dict) -> str:
    git, hardware = run["git"], run["hardware"]
    commit = git["commit"] or "no git"
    gpu = ", ".join(hardware["gpu"]) or "none"
    rows = [
        ["commit", commit + (" with uncommitted changes" if git["dirty"] else "")],
        ["python", run["python"]],
        ["packages", ", ".join(f"{k} {v}" for k, v in run["packages"].items())],
        [
            "hardware",
            f"{hardware['cpu']}, {hardware['cores']} cores, "
            f"{hardware['memory_gib']} GiB, GPU: {gpu}",
        ],
        ["seeds", ", ".join(f"{k} {v}" for k, v in run["seeds"].items())],
        ["overrides", ", ".join(f"{k}={v}" for k, v in run["parameters"].items()) or "none"],
    ]
    return table(["", ""], rows).replace("<table>", '<table class="facts">')


def table(columns: list, rows: list[list], escape: bool = True) -> str:
    """An HTML table; floats with three digits."""

    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
        return html.escape(text) if escape else text

    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
