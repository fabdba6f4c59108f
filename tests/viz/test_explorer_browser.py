"""The explorer in a real browser: as a file, and as a widget in a real JupyterLab."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from dataclasses import replace

import nbformat
import pandas as pd
import pytest
from browser import SHOTS, Explorer, start, walk
from oracles import random_model
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from test_explorer import HOSTILE, HUGE, TOKENIZER
from test_foreign import written
from test_response import block, trajectory

from npr_lib import __main__, viz
from npr_lib.analysis.ladder import LADDER
from npr_lib.analysis.reading import read_responses
from npr_lib.profiles.profile import load_profile, save_profile
from npr_lib.reasoning.trajectory import to_rows, write_rollouts
from npr_lib.viz.explorer import data
from npr_lib.viz.explorer.response import VIEWS
from npr_lib.workbench import pages, pipeline
from npr_lib.workbench.stages import REPOSITORY

pytestmark = pytest.mark.slow
SEQUENTIAL = ("seed", "npr_zero", "sr_beta", "sr")
PARTS = ("7-2=5;5+3=8", "4-3=1;1+6=7", "2+2=4")


def response(parts, total, parallel=True):
    plans = ["A", "B", "C"][: len(parts)]
    text = block(plans, list(parts), f"sum {total}") + rf"so \boxed{{{total}}}"
    return trajectory(text, parallel=parallel)


def hostile():
    whole = response(PARTS, 19)
    texts = list(whole.segment_texts)
    texts[1] = f"<step>1:{HOSTILE}</step>"
    texts[2] = f"<step>2:{HUGE}</step>"
    return replace(whole, segment_texts=texts, text="".join(texts))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run as far as the explorer looks at it: two problems, each checkpoint's three answers."""
    folder = tmp_path_factory.mktemp("reports") / "made"
    for name in LADDER:
        parallel = name not in SEQUENTIAL
        slip = (PARTS[0], "4-3=2;2+6=8", PARTS[2])
        right, wrong = response(PARTS, 19, parallel), response(slip, 20, parallel)
        narrow = response(PARTS[:2], 15, parallel)
        last = hostile() if name == "npr" else narrow
        write_rollouts(
            folder / "rollouts" / f"eval_{name}.parquet",
            [right, wrong if name == "npr_beta" else right, narrow, last],
            problem_id=["p0", "p0", "p1", "p1"],
            problem=["A=7-2+3;B=4-3+6;C=2+2;values?"] * 2 + ["A=7-2+3;B=4-3+6;values?"] * 2,
            answer=["19", "19", "15", "15"],
            sample=[0, 1, 0, 1],
            stage=name,
            checkpoint=name,
            accuracy=[1.0, float(name != "npr_beta"), 1.0, float(name != "npr")],
        )
        TOKENIZER.save_pretrained(folder / name)
    random_model(random.Random(0), TOKENIZER).save_pretrained(folder / "npr")
    save_profile(load_profile("smoke"), folder / "profile.yaml")
    return folder


@pytest.fixture(scope="module")
def expected(run_dir):
    """What the front end is given: (records, columns of the table)."""
    frame = read_responses(run_dir)
    read = data.records(frame, TOKENIZER)
    return [read(row) for row in range(len(frame))], data.table(frame)["columns"]


@pytest.fixture
def driver(tmp_path):
    browser = start(tmp_path / "profile")
    yield browser
    browser.quit()


# ------------------------------------------------------------------ as a file


def test_the_file_passes_the_walk_without_a_request(run_dir, expected, driver, tmp_path):
    target = tmp_path / "explore.html"
    pipeline.explore(run_dir, target)
    page = Explorer(driver, "file")
    driver.get("about:blank")
    page.requested()  # what the browser's own first page asked for
    driver.get(target.as_uri())
    walk(page, *expected, HOSTILE)
    assert [url for url in page.requested() if not url.startswith(("data:", "blob:"))] == [
        target.as_uri()
    ]
    assert page.complaints() == []


def long_response(branches, blocks, words):
    """A response of about branches * blocks * words tokens."""
    plans = [f"part {i}" for i in range(branches)]
    steps = [f"{i}+1={i + 1};" + "7 " * (words // 2) for i in range(branches)]
    text = "".join(block(plans, steps, "so far") for _ in range(blocks)) + r"\boxed{1}"
    return trajectory(text)


def thousand():
    """A thousand rollouts of 2,000 tokens, from a few different ones."""
    kinds = [long_response(k, 2, 1000 // k - 12) for k in (2, 3, 4, 5)]
    rollouts = pd.concat([to_rows(kinds)] * 250, ignore_index=True)
    count = len(rollouts)
    assert count == 1000 and rollouts["work"].between(1900, 2200).all()
    return rollouts.assign(
        problem_id=[f"p{i // 8}" for i in range(count)],
        problem=[f"problem {i // 8}" for i in range(count)],
        accuracy=[float(i % 3 == 0) for i in range(count)],
    )


SELECT = """
const [row, done] = [arguments[0], arguments[1]];
const begun = performance.now();
document.querySelector(`.npr-rows [data-row="${row}"]`).click();
(function look() {
  if (document.querySelector(`.npr-view[data-row="${row}"]`)) done(performance.now() - begun);
  else requestAnimationFrame(look);
})();
"""


def measure_selection(page):
    """The slowest of some selections, in seconds, from the click to the next frame after it."""
    rows = page.rows()[1:9]
    return max(page.driver.execute_async_script(SELECT, row) for row in rows) / 1000


def note(name, **measured):
    SHOTS.mkdir(parents=True, exist_ok=True)
    path = SHOTS / "timings.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {name: measured}, indent=2) + "\n")


def test_a_thousand_rollouts_open_at_once(driver, tmp_path):
    target = tmp_path / "thousand.html"
    target.write_text(viz.page(thousand(), TOKENIZER))
    page = Explorer(driver, "thousand")
    begun = time.perf_counter()
    driver.get(target.as_uri())
    page.one(".npr-box")
    opened = time.perf_counter() - begun
    selected = measure_selection(page)
    note("file, 1000 rollouts of 2000 tokens", open_s=opened, select_s=selected)
    page.shoot("1-open")
    assert opened < 3 and selected < 0.3


def test_a_long_response_is_drawn_without_freezing(driver, tmp_path):
    long = long_response(5, 5, 1270)
    assert long.work > 31_000
    target = tmp_path / "long.html"
    target.write_text(viz.page(to_rows([long, response(PARTS, 19), long]), TOKENIZER))
    page = Explorer(driver, "long")
    driver.get(target.as_uri())
    page.one(".npr-box")
    selected = [driver.execute_async_script(SELECT, row) / 1000 for row in (1, 2, 1, 0)]
    begun = time.perf_counter()
    page.choose(".npr-color", "surprise: mean −log p")
    page.click('[data-segment="9"]')
    colored = time.perf_counter() - begun
    note("file, 32k tokens", tokens=long.work, select_s=max(selected), color_and_click_s=colored)
    page.shoot("1-open")
    assert len(page.all("[data-segment]")) == len(long.segments) == 37
    assert max(selected) < 1 and colored < 1


# ------------------------------------------------------------------ made elsewhere

SUMS = "1+1=2"
# (response in the release's style, its branches box by box as the graph names them)
FOREIGN = [
    (written([SUMS, SUMS]).text, ["step 1", "step 2"]),
    (written([SUMS] * 3).text, ["step 1", "step 2", "step 3"]),
    (written([SUMS]).text, ["step 1"]),
    (written([SUMS] * 5).text, [f"step {i}" for i in range(1, 6)]),
    (written([SUMS] * 2, [SUMS] * 3).text, ["step 1", "step 2", "step 1", "step 2", "step 3"]),
    (
        written([("first", [SUMS, SUMS], "then"), SUMS]).text,
        ["step 1", "step 1.1", "step 1.2", "step 1, cont.", "step 2"],
    ),
    (written([SUMS] * 4).text.split("<takeaway>")[0], [f"step {i}" for i in range(1, 5)]),
    (written([SUMS] * 3).text.rpartition("<step>")[0], ["step 1", "step 2"]),
    (written([SUMS] * 2).text.replace("</step>", "", 1), ["step 1", "step 2"]),
    ("No block at all, only \\boxed{6}.", []),
]


def test_ten_responses_made_elsewhere_open(driver, tmp_path):
    dump = tmp_path / "dump.jsonl"
    rows = [{"input": f"problem {i}", "output": t, "gts": "6"} for i, (t, _) in enumerate(FOREIGN)]
    dump.write_text("\n".join(json.dumps(row, indent=4) for row in rows))
    assert __main__.main(["explore", str(dump)]) == 0
    page = Explorer(driver, "foreign")
    driver.get((tmp_path / "dump.jsonl.html").as_uri())
    page.one(".npr-box")
    assert sorted(page.rows(), key=int) == [str(i) for i in range(len(FOREIGN))]
    read = data.records(viz.read_texts(dump), None)
    for row, (text, branches) in enumerate(FOREIGN):
        page.open_row(str(row))
        names = page.texts(".npr-box-head b")
        assert [name for name in names if name.startswith("step")] == branches
        lanes = 1 + len({name.removesuffix(", cont.") for name in branches})
        if row != 4:  # whose second block takes the lanes of the first
            assert len(page.all(".npr-lane")) == lanes
        record = read(row)
        caption = page.texts(".npr-timeline h4")[0]
        assert caption == f"Timeline: {record['work']} tokens in {record['span']} ideal steps"
        right = r"\boxed{6}" in text
        assert page.texts(".npr-badge") == ["✓ right" if right else "✗ wrong"]
        chips = page.texts(".npr-chips span")
        assert "as ideal parallel decoding" in chips
        assert any("violation" in chip for chip in chips) == bool(record["violations"])
        known = page.one(".npr-facts").text
        assert "ideal steps" in known
        assert not any(word in known for word in ("surprise", "entropy", "sampled"))
        if row in (1, 5, 7):
            page.shoot(f"row {row}")
    options = [option.text for option in Select(page.one(".npr-color")).options]
    assert options == ["kind of segment", "arithmetic that does not hold"]
    assert page.complaints() == []


# ------------------------------------------------------------------ one response


PAINTED = """
const painted = [...arguments[0].querySelectorAll("canvas")].map((canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((value, i) => i % 4 === 3 && value > 0).length / (data.length / 4);
});
return Math.min(...painted);
"""


def response_is_drawn(page, number, branches):
    """The number-th response in a page has its branches, and what is clicked on is shown."""
    page.enter(".npr-still", number)
    steps = [f"step {i + 1}" for i in range(branches)]
    drawn = ".npr-box[aria-label^='step ']"
    page.until(lambda: len(page.all(drawn)) == branches, f"{branches} branches")
    assert page.texts(f"{drawn} b") == steps
    tops = {box.location["y"] for box in page.all(drawn)}
    lefts = {box.location["x"] for box in page.all(drawn)}
    assert len(tops) == 1 and len(lefts) == branches, "side by side"
    lanes = ["trunk", *(f"branch {i + 1}" for i in range(branches))]
    page.until(lambda: page.texts(".npr-lane") == lanes, "a lane a branch")
    page.until(lambda: page.driver.execute_script(PAINTED, page.root) > 0.005, "drawings")
    page.click(drawn.replace("'step '", "'step 2'"))
    assert page.head() == "step 2"
    assert page.texts(".npr-lane.selected") == ["branch 2"]
    page.leave()


def test_responses_are_drawn_in_a_notebooks_page(driver, tmp_path):
    """Two in one page, each in its own place, and without a request."""
    shown = [
        viz.response(response(PARTS, 19), TOKENIZER, "problem 3", VIEWS),
        viz.response(response(PARTS[:2], 15), TOKENIZER, "problem 2"),
    ]
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": one._repr_html_()}) for one in shown
    ]
    cell = nbformat.v4.new_code_cell("work()", outputs=outputs)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "drawn.ipynb")
    pages.write_notebook(tmp_path / "drawn.ipynb", tmp_path / "drawn.html")
    page = Explorer(driver, "response")
    driver.set_window_size(1280, 1000)
    driver.get("about:blank")
    page.requested()
    address = (tmp_path / "drawn.html").as_uri()
    for scheme in ("light", "dark"):
        asked = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", asked)
        driver.get(address)
        response_is_drawn(page, 0, 3)
        page.shoot(scheme)
    assert page.texts(".npr-detail h3") == ["step 2", "step 1"]
    response_is_drawn(page, 1, 2)
    asked = [url for url in page.requested() if not url.startswith(("data:", "blob:"))]
    assert asked == [address] * 2 and page.complaints() == []


# ------------------------------------------------------------------ in JupyterLab


@pytest.fixture(scope="module")
def lab(run_dir, tmp_path_factory):
    """A JupyterLab of its own on the run's notebooks; yields its address."""
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    notebook = pipeline.explorer(run_dir)
    settings = {"HOME": home, "JUPYTER_CONFIG_DIR": home / "config", "IPYTHONDIR": home / "ipython"}
    settings |= {"JUPYTER_RUNTIME_DIR": home / "runtime", "JUPYTER_DATA_DIR": home / "data"}
    environment = os.environ | {name: str(path) for name, path in settings.items()}
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += ["--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += [f"--ServerApp.root_dir={notebook.parent}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=home)
        try:
            wait_for(port, server, home / "log")
            yield f"http://127.0.0.1:{port}/lab/tree/"
        finally:
            server.terminate()
            server.wait(30)


def wait_for(port, server, log):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    raise TimeoutError(log.read_text())


def run_all(page, address):
    """Open a notebook, alone, and run its cells by the menu."""
    page.driver.get(f"{address}?reset")
    page.until(lambda: page.all(".jp-Notebook .jp-Cell"), "the notebook", 120)
    page.until(lambda: "| Idle" in page.one("#jp-main-statusbar").text, "its kernel", 120)
    next(item for item in page.all(".lm-MenuBar-itemLabel") if item.text == "Run").click()
    page.until(lambda: page.all("[data-command='runmenu:run-all']"), "the menu")
    page.driver.find_element(By.CSS_SELECTOR, "[data-command='runmenu:run-all']").click()


def test_the_notebook_passes_the_walk(lab, expected, driver):
    page = Explorer(driver, "lab")
    run_all(page, f"{lab}explore.ipynb")
    page.enter(".npr")
    walk(page, *expected, HOSTILE)
    page.leave()
    host = lab.split("/lab")[0]
    asked = [url for url in page.requested() if url.startswith(("http", "ws"))]
    assert all(url.startswith((host, host.replace("http", "ws"))) for url in asked)
    count = ".jp-CodeCell .jp-InputPrompt"
    page.until(lambda: all(text.strip("[]: ").isdigit() for text in page.texts(count)), "all cells")
    assert not page.all('[data-mime-type="application/vnd.jupyter.stderr"] .ansi-red-fg')
    page.enter(".widget-vbox .npr")
    assert page.all(".npr-box") and not page.one(".npr-table").is_displayed()
    assert "ended: " in page.one(".npr-chips").text
    page.shoot("7-live")


def write_notebook(path, cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)


def test_a_thousand_rollouts_open_in_the_notebook(lab, run_dir, driver):
    thousand().to_parquet(run_dir / "thousand.parquet")
    first = f"""
import time
import pandas as pd
from transformers import AutoTokenizer
from npr_lib import viz
rollouts = pd.read_parquet({str(run_dir / "thousand.parquet")!r})
tokenizer = AutoTokenizer.from_pretrained({str(run_dir / "npr")!r})"""
    cells = [first, "print('begun at', time.time())\nviz.explore(rollouts, tokenizer)"]
    write_notebook(run_dir / "notebooks" / "thousand.ipynb", cells)
    page = Explorer(driver, "lab-thousand")
    run_all(page, f"{lab}thousand.ipynb")
    page.until(lambda: page.all(".npr-box"), "the explorer", 180)
    now = time.time()
    begun = next(text for text in page.texts(".jp-OutputArea-output pre") if "begun at" in text)
    opened = now - float(begun.split()[-1])
    selected = measure_selection(page)
    note("JupyterLab, 1000 rollouts of 2000 tokens", open_s=opened, select_s=selected)
    page.shoot("1-open")
    assert opened < 3 and selected < 0.3


ONE = """
from npr_lib import viz
from npr_lib.analysis import reading
from npr_lib.reasoning.trajectory import from_row
frame = reading.read_responses({run!r}, where='stage == "npr"')
tokenizer = reading.read_tokenizer({run!r})
for number in (0, 2):
    display(viz.response(from_row(frame.iloc[number]), tokenizer, frame["problem"].iloc[number]))
"""


def test_a_response_is_drawn_in_the_notebook(lab, run_dir, driver):
    write_notebook(run_dir / "notebooks" / "one.ipynb", [ONE.format(run=str(run_dir))])
    page = Explorer(driver, "lab-response")
    run_all(page, f"{lab}one.ipynb")
    response_is_drawn(page, 0, 3)
    page.shoot("1-drawn")
    response_is_drawn(page, 1, 2)


# Random weights, but well-formed responses: a policy writes them. At first its steps don't end.
AT_WORK = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
run = Path({run!r})
sys.path.insert(0, {tests!r})
from policies import random_policy
from npr_lib.analysis import evaluate, reading
from npr_lib import viz
from npr_lib.engine import SamplingParams
from npr_lib.engine.branch import Response
from npr_lib.profiles.profile import load_profile
from npr_lib.reasoning.tokens import TagIds

stage = SimpleNamespace(profile=load_profile("smoke"), run_dir=run)
engine = evaluate.load_engine(stage, "npr")
tags = TagIds.from_tokenizer(engine.tokenizer)
policy = random_policy(engine.tokenizer, broken=0)
word = engine.tokenizer.encode("7", add_special_tokens=False)[0]

def endless(response, branch):
    time.sleep(0.02)
    token = policy(response, branch)
    return word if token == tags.step_end else token

Response.forced_token = endless
params = SamplingParams(max_tokens=2000, seed=3)
"""
CELLS = (
    "live = viz.live(engine, 'A=1+2', params)\ndisplay(live)\nstopped = await live.task",
    "print('pool', engine.kv.num_used, stopped.finish_reason, stopped.work, live.status)",
    "Response.forced_token = lambda self, branch: policy(self, branch)\n"
    "frame = reading.read_responses(run, where='stage == \"npr_beta\"')\n"
    "verify = lambda answer, row: answer == row['answer']\n"
    "viz.what_if(engine, frame, engine.tokenizer, params, verify)",
)


def test_an_engine_at_work(lab, run_dir, driver):
    """Branches grow until stop is clicked; an edit shows old and new side by side."""
    setup = AT_WORK.format(run=str(run_dir), tests=str(REPOSITORY / "tests"))
    write_notebook(run_dir / "notebooks" / "at_work.ipynb", [setup, *CELLS])
    page = Explorer(driver, "lab-at-work")
    run_all(page, f"{lab}at_work.ipynb")
    page.enter(".widget-vbox")
    page.one(".npr-box[aria-label^='step 2']")
    begun = page.texts(".npr-box")
    page.until(lambda: page.texts(".npr-box")[-1] != begun[-1], "growth")
    assert "decoding …" in page.texts(".npr-chips span")
    (status,) = page.texts(".widget-label")
    assert "at once" in status and "tokens/s" in status
    page.shoot("1-growing")
    page.click(".npr-box[aria-label^='step 1']")
    page.until(lambda: page.head() == "step 1", "what was clicked")
    grown = len(page.texts(".npr-text")[0])
    page.until(lambda: len(page.texts(".npr-text")[0]) > grown + 5, "its growth")
    page.until(lambda: page.head() == "step 1", "what was clicked")
    page.click("button.jupyter-button")
    page.until(lambda: "ended: cancelled" in page.one(".npr-chips").text, "its end")
    assert not page.one("button.jupyter-button").is_enabled()
    page.shoot("2-stopped")
    page.leave()
    printed = ".jp-OutputArea-output pre"
    page.until(lambda: "pool 0 cancelled" in " ".join(page.texts(printed)), "an empty pool")

    page.enter(".npr", 1)
    wrong = next(row for row in page.rows() if page.texts(f"[data-row='{row}'] .wrong"))
    page.open_row(wrong)
    page.click(".npr-box[aria-label^='step 2']")
    page.click("[data-edit='drop this branch']")
    page.until(lambda: len(page.all(".npr-view .npr-detail h3")) == 2, "old and new")
    old, new = page.all(".npr-view")
    assert old.get_attribute("data-row") == wrong
    steps = ".npr-box[aria-label^='step ']"
    assert [len(view.find_elements(By.CSS_SELECTOR, steps)) for view in (old, new)] == [3, 2]
    title = page.texts(".npr-view + .npr-view .npr-chips span")[0]
    assert title == f"row {wrong}, step 2: drop this branch · seed 3"
    assert page.texts(".npr-view + .npr-view .npr-badge")[0] in ("✓ right", "✗ wrong")
    page.shoot("3-dropped")
    rows_are_renewed(page, wrong)
    resampled_from_a_token(page, wrong)

    page.click(".npr-view .npr-box[aria-label^='step 2']")
    page.click(".npr-view [data-edit='edit this plan']")
    field = page.one(".npr-edits textarea")
    assert field.get_attribute("value") == "B"
    field.send_keys("+<img src=x onerror=window.hacked=1>")
    page.click(".npr-go")
    title = ".npr-view + .npr-view .npr-chips span"
    page.until(lambda: "edit this plan" in page.texts(title)[0], "another plan")
    shown = page.texts(".npr-view + .npr-view .npr-box[aria-label^='guideline'] .npr-line")
    assert shown[1] == "2:B+<img src=x onerror=window.hacked=1>"
    assert driver.execute_script("return window.hacked") is None and not page.all("img")
    page.shoot("4-another-plan")
    page.click(".npr-view .npr-box[aria-label^='takeaway']")
    page.click(".npr-view [data-edit='rewrite this takeaway']")
    page.one(".npr-edits textarea").clear()
    page.one(".npr-edits textarea").send_keys("<plan>")
    page.click(".npr-go")
    page.until(lambda: "prefix" in page.one(".npr-edits .npr-note").text, "what was wrong")


def rows_are_renewed(page, old):
    """The menus know the values that an attempt brought, and keep what was chosen in them."""
    assert "stage" in page.texts("[data-filter] option[value='']")  # an attempt has none
    page.choose("[data-filter=stage]", "npr_beta")
    assert len(page.rows()) == 4 and old in page.rows()


def resampled_from_a_token(page, old):
    """From a token of step 2, clicked on in its text; the menu that was chosen from stays."""
    tokens = ".npr-view:first-child .npr-token"
    third = page.all(tokens)[6]
    written, number = third.text, third.get_attribute("data-token")
    page.driver.execute_script("arguments[0].click()", third)
    assert page.texts(f".npr-from[data-token='{number}']") == [written]
    page.click(".npr-view [data-edit='resample from here']")
    title = ".npr-view + .npr-view .npr-chips span"
    wanted = f"row {old}, step 2: resample from “{written}” · seed 4"
    page.until(lambda: page.texts(title)[0] == wanted, "a resampled response")
    begun = "".join(page.texts(tokens)[:6])
    made = page.texts(".npr-view + .npr-view .npr-text")[0]
    assert made.startswith(begun)
    menu = page.one("[data-filter=stage]")
    assert Select(menu).first_selected_option.text == "npr_beta" and len(page.rows()) == 4
    page.shoot("5-resampled")
    page.choose("[data-filter=stage]", "stage")
    assert len(page.rows()) == 6
