"""The pages of a run: notebooks as HTML, and the index, from records that are written here."""

import json
import re
import sys

import nbformat
import plotly.graph_objects as go
import pytest
from pages import is_local, sources

from npr_lib.files import set_aside
from npr_lib.workbench import manifest, pages, stages
from npr_lib.workbench.pages.notebook import FIGURE, WIDGET

NOTEBOOKS = sorted((stages.REPOSITORY / "notebooks").glob("*.ipynb"))

PROSE = """# A stage

The advantage $A_i$ is
$$A_i = \\frac{r_i - \\bar{r}}{\\sigma}$$
"""
HEADLINE = {"columns": ["accuracy"], "index": ["seed", "<NPR>"], "data": [[0.5], [0.75]]}
NAMES = ("00_first", "01_second", "90_report")


def executed(*outputs):
    """An executed notebook: prose, parameters, and one cell with these outputs."""
    code = nbformat.v4.new_code_cell
    cells = [
        nbformat.v4.new_markdown_cell(PROSE, id="prose"),
        code("seed = 0", id="given", metadata={"tags": ["parameters"]}),
        code("work()", id="work", outputs=list(outputs)),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def shown(kind, data, **more):
    return nbformat.v4.new_output("display_data", data={kind: data, **more})


def said(name, text):
    return nbformat.v4.new_output("stream", name=name, text=text)


def figure():
    drawn = go.Figure(go.Scatter(y=[1, 2, 3], name="</script>"))
    return shown(FIGURE, json.loads(drawn.to_json()))


@pytest.fixture
def run_dir(tmp_path):
    """A finished run of three stages: a page with a warning and a figure, and a headline."""
    folder = tmp_path / "toy"
    for name in ("html", "metrics", "notebooks"):
        (folder / name).mkdir(parents=True)
    described = manifest.describe(tmp_path, "toy", "toy.yaml", ["beta.word=<y>"], 0)
    attempt = {"status": "done", "start": "then", "end": "now", "seconds": 75.0}
    described["stages"] = {name: {"runs": [attempt], **attempt} for name in NAMES}
    manifest.write(folder, described)
    (folder / "profile.yaml").touch()
    (folder / "metrics" / "headline.json").write_text(json.dumps({"Ladder": HEADLINE}))
    outputs = {"01_second": (said("stderr", f"{sys.prefix}/lib/module.py:1: a warning"), figure())}
    for name in NAMES:
        path = folder / "notebooks" / f"{name}.ipynb"
        nbformat.write(executed(*outputs.get(name, ())), path)
        pages.write_notebook(path, folder / "html" / f"{name}.html")
    pages.write_index(folder)
    return folder


def test_sources_are_found():
    page = (
        '<style>a { background: url(https://a/x.png) }</style><script src="https://b/x.js">'
        '</script><link rel="stylesheet" href="//c/x.css"><a href="https://fine">x</a>'
        '<script>import mermaid from "https://d/m.mjs";</script><p style="background:url(/e)">'
    )
    found = ["https://a/x.png", "https://b/x.js", "//c/x.css", "https://d/m.mjs", "/e"]
    assert sources(page) == found
    local = ("plotly.min.js", "data:image/png;base64,AA==", "../a/b.png")
    assert not any(map(is_local, found)) and all(map(is_local, local))


def test_pages_make_no_network_request(run_dir):
    written = [run_dir / "index.html", *sorted((run_dir / "html").glob("*.html"))]
    assert len(written) == 4
    for page in written:
        text = page.read_text()
        assert all(map(is_local, sources(text))), page
        assert "require.js" not in text and "mathjax" not in text.lower()
        assert len(text) < 200_000


def test_figures_share_one_local_script(run_dir):
    assert (run_dir / "html" / "plotly.min.js").stat().st_size > 1_000_000
    page = (run_dir / "html" / "01_second.html").read_text()
    assert sources(page) == ["plotly.min.js"]
    # the string that would end the script element is written so that it doesn't
    assert page.count('Plotly.newPlot("figure-1"') == 1 and r'"name": "\u003c/script\u003e"' in page
    assert '"showSendToCloud": false' in page  # plotly's default is a button that uploads
    assert sources((run_dir / "html" / "00_first.html").read_text()) == []


def test_formulas_become_mathml(run_dir):
    page = (run_dir / "html" / "00_first.html").read_text()
    assert "<mfrac>" in page and "$" not in page.split("<body>")[1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_formulas_of_the_notebooks_can_be_drawn_without_a_script(path):
    exporter = pages.Page()
    cells = nbformat.read(path, as_version=4).cells
    for cell in (cell for cell in cells if cell.cell_type == "markdown"):
        page = exporter.markdown2html({}, cell.source)
        assert "$" not in page and "\\" not in page.replace("\\boxed", ""), page
        assert page.count("<math") >= cell.source.count("$$") // 2


def test_code_and_messages_are_folded_away(tmp_path):
    path = tmp_path / "long.ipynb"
    outputs = (said("stdout", "line\n" * 30), said("stderr", "careful"))
    nbformat.write(executed(*outputs), path)
    pages.write_notebook(path, tmp_path / "long.html")
    page = (tmp_path / "long.html").read_text()
    found = re.findall(r"<summary>\s*(.*?)\s*</summary>", page)
    assert found == ["default parameters", "code", "output", "messages"]
    assert not (tmp_path / "plotly.min.js").exists()  # there is no figure


def test_a_widget_becomes_a_link_and_a_progress_bar_goes(tmp_path):
    path = tmp_path / "widget.ipynb"
    outputs = [shown(WIDGET, {}, **{"text/plain": t}) for t in ("npr_lib.viz.E", "HBox")]
    nbformat.write(executed(*outputs), path)
    pages.write_notebook(path, tmp_path / "widget.html")
    page = (tmp_path / "widget.html").read_text()
    assert page.count('href="../explore.html"') == 1 and "HBox" not in page


def test_no_path_of_this_machine_and_no_markup_of_others(run_dir):
    page = (run_dir / "html" / "01_second.html").read_text()
    assert "lib/module.py:1: a warning" in page and sys.prefix not in page
    index = (run_dir / "index.html").read_text()
    assert "&lt;NPR&gt;" in index and "<NPR>" not in index
    assert "beta.word=&lt;y&gt;" in index and "<y>" not in index
    assert "<title>&lt;b&gt;</title>" in pages.page("<b>", "<p>body</p>")
    assert "<td>&lt;b&gt;</td><td>0.333</td><td></td>" in pages.table(["x"], [["<b>", 1 / 3, None]])


def test_index_links_pages_and_shows_headline(run_dir):
    index = (run_dir / "index.html").read_text()
    links = re.findall(r'href="([^"]+)"', index)
    assert {"html/00_first.html", "html/90_report.html", "manifest.json"} <= set(links)
    assert all((run_dir / link).exists() for link in links)
    assert "<h2>Ladder</h2>" in index and "0.75" in index and "torch 2.13" in index
    assert "3:45 in all" in index and "1:15" in index


def test_intervals_stand_on_a_line_of_their_own():
    page = pages.page("x", pages.table(["", "accuracy"], [["NPR", "97.1 % [96.1, 98.0]"]]))
    assert "<td>97.1 %<br><small>[96.1, 98.0]</small></td>" in page


# -- what is out of date ---------------------------------------------------------------------


def entry(status="done", inputs=(), outputs=(), **more):
    return {"status": status, "inputs": list(inputs), "outputs": list(outputs), **more}


def test_nothing_is_out_of_date_in_a_finished_run():
    assert pages.out_of_date({}) == {}
    chain = {"a": entry(outputs=["x"]), "b": entry(inputs=["x"])}
    assert pages.out_of_date(chain) == {}
    assert pages.out_of_date({"a": {"status": "done"}, "b": {"status": "done"}}) == {}


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("failed", "failed"),
        ("interrupted", "was interrupted"),
        ("running", "is running, or was killed"),
    ],
)
def test_what_builds_on_a_stage_that_did_not_succeed_is_out_of_date(status, why):
    chain = {
        "a": entry(outputs=["seed"]),
        "b": entry(status, ["seed"], ["model"]),
        "c": entry(inputs=["model"], outputs=["rollouts/eval_b.parquet"]),
        "d": entry(inputs=["rollouts/eval_*.parquet"]),
        "aside": entry(inputs=["seed"], outputs=["other"]),
    }
    built = f"it depends on b, which {why}"
    assert pages.out_of_date(chain) == {"b": f"it {why}", "c": built, "d": built}


def test_both_causes_of_a_diamond_are_named_once():
    diamond = {
        "top": entry("failed", outputs=["top"]),
        "left": entry(inputs=["top"], outputs=["left"]),
        "right": entry("interrupted", ["top"], ["right"]),
        "bottom": entry(inputs=["left", "right"]),
    }
    assert pages.out_of_date(diamond) == {
        "top": "it failed",
        "left": "it depends on top, which failed",
        "right": "it was interrupted",
        "bottom": "it depends on top, which failed, and on right, which was interrupted",
    }


def test_folders_patterns_and_circles():
    stages = {
        "a": entry("failed", ["z"], ["models/*", "a"]),
        "b": entry(inputs=["models/npr/model.safetensors"], outputs=["a.json", "b"]),
        "c": entry(inputs=["a.json", "b/deep"], outputs=["z"]),  # a.json is not in the folder a
        "d": entry(inputs=["ab"]),
    }
    assert list(pages.out_of_date(stages)) == ["a", "b", "c"]


def reindex(run_dir, entries):
    """Write the index anew with these changes of the stages' entries; returns it."""
    described = manifest.read(run_dir)
    for name, changes in entries.items():
        described["stages"][name] |= changes
    manifest.write(run_dir, described)
    return pages.write_index(run_dir).read_text()


def test_the_index_says_at_its_head_what_failed_and_marks_what_is_of_an_earlier_run(run_dir):
    assert '"late"' not in (run_dir / "index.html").read_text()
    for name in ("first", "second", "other"):
        (run_dir / "metrics" / f"{name}.json").write_text("{}")
    (run_dir / "explore.html").touch()
    entries = {
        "00_first": {"outputs": ["x", "metrics/first.json"]},
        "01_second": {"status": "failed", "inputs": ["x"], "outputs": ["y", "metrics/second.json"]},
        "90_report": {"inputs": ["y"], "outputs": ["metrics/headline.json", "explore.html"]},
    }
    index = reindex(run_dir, entries)
    head, rest = index.split("<main>")[1].split("</div>", 1)
    assert "<b>Not finished:</b> 01_second failed" in head
    assert 'href="html/01_second.html"' in head and "Out of date:</b> 90_report" in head
    assert rest.count("it depends on 01_second, which failed") == 4
    section = rest[rest.index('<section class="old">') : rest.index("</section>")]
    assert "Ladder" in section and "of an earlier run of this stage" in section
    marked = re.findall(r'<a href="([^"]+)">[^<]*</a>[^<]*<span class="late">', rest)
    assert set(marked) == {"metrics/second.json", "metrics/headline.json"} | {"explore.html"}
    rows = dict(re.findall(r"<tr><td><a[^>]*>(\w+)</a></td>\s*<td>(.*?)</td>", rest, re.S))
    assert rows["00_first"] == "done"
    assert rows["01_second"].startswith("failed") and "late" in rows["01_second"]
    assert rows["90_report"].startswith("done") and "late" in rows["90_report"]


def test_a_stage_without_a_page_is_linked_to_its_notebook(run_dir):
    (run_dir / "html" / "90_report.html").unlink()
    changes = {"status": "interrupted", "seconds": None, "outputs": ["metrics/headline.json"]}
    index = reindex(run_dir, {"90_report": changes})
    assert 'class="old"' in index and "90_report was interrupted (<a href=" in index
    assert 'href="notebooks/90_report.ipynb">its notebook' in index


def test_a_page_of_no_stage_is_linked_as_one(run_dir):
    (run_dir / "html" / "12_ablations.html").touch()
    text = pages.write_index(run_dir).read_text()
    assert "Beside the stages" in text and 'href="html/12_ablations.html"' in text


def test_what_reruns_set_aside_is_listed(run_dir):
    assert "Set aside" not in (run_dir / "index.html").read_text()
    for name in ("npr/weights", "rollouts/eval_npr.parquet"):
        (run_dir / name).parent.mkdir()
        (run_dir / name).touch()
    moved = [set_aside(run_dir / name) for name in ("npr", "rollouts/eval_npr.parquet")]
    listed = pages.write_index(run_dir).read_text().split("Set aside")[1]
    links = re.findall(r'href="([^"]+)"', listed)
    assert links == [path.relative_to(run_dir).as_posix() for path in moved]
    assert (run_dir / links[0] / "weights").exists()


def test_the_same_records_give_the_same_index(run_dir):
    before = (run_dir / "index.html").read_bytes()
    assert pages.write_index(run_dir).read_bytes() == before
