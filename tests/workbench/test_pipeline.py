"""The pipeline on toy notebooks: what is run, skipped, resumed, recorded and shown."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from npr_lib import WorkbenchError, __main__
from npr_lib.files import REPOSITORY
from npr_lib.profiles.profile import (
    FOLDER,
    Loader,
    ProfileError,
    load_profile,
    make_profile,
    names,
    save_profile,
)
from npr_lib.workbench import execution, manifest, pipeline, stages
from npr_lib.workbench.execution import StageError
from npr_lib.workbench.notebook import read_notebook, read_notebooks

PROFILE = {
    "problems": {"kind": "parts", "test": 1},
    "model": {},
    "own": {"value": 1},
    "evaluation": {"samples": 2},
    "sft": {"trl": {"learning_rate": 1e-3}},
}
TABLE = {
    "00_first": {"sections": ["own"], "outputs": ["first", "interpreter.txt"]},
    "01_second": {
        "inputs": ["first"],
        "sections": ["evaluation"],
        "outputs": ["second.txt"],
        "checkpoint": "first",
    },
    "90_third": {"inputs": ["second.txt"], "outputs": ["metrics/headline.json"]},
}

PARAMETERS = (
    "profile = None\nrun_dir = None\ninput_checkpoint = None\nseed = None\noverrides = None"
)

# Every stage appends its name to `ran`: what was executed, told by the stages themselves.
START = """
from pathlib import Path
from npr_lib.progress import report_progress
from npr_lib.workbench import stages
folder = Path(run_dir).resolve().parents[1] / "notebooks"
stage = stages.begin("{name}", profile, run_dir, input_checkpoint, seed, overrides, folder)
run = stage.run_dir
with (run / "ran").open("a") as file:
    file.write("{name} ")
"""

FIRST = """
import sys
(run / "first").mkdir(exist_ok=True)
(run / "first" / "weights").write_text(str(stage.profile.own["value"]))
(run / "interpreter.txt").write_text(sys.executable)
for step in range(1, 4):
    report_progress(step, 3, reward=step / 4, part="walk")
"""

SECOND = """
import sys
print(sys.prefix + "/lib/module.py:1: a warning", file=sys.stderr)
weights = (stage.checkpoint / "weights").read_text()
(run / "second.txt").write_text(weights + str(stage.profile.evaluation.samples) + str(stage.seed))
import plotly.graph_objects as go
go.Figure(go.Scatter(y=[1, 2, 3], name="</script>"))
"""

THIRD = """
import json
(run / "metrics").mkdir(exist_ok=True)
table = {"columns": ["accuracy"], "index": ["seed", "<NPR>"], "data": [[0.5], [0.75]]}
(run / "metrics" / "headline.json").write_text(json.dumps({"Ladder": table}))
"""

PROSE = """# A stage

The advantage $A_i$ is
$$A_i = \\frac{r_i - \\bar{r}}{\\sigma}$$
"""


def write_notebook(path, name, code, said=None):
    cells = [
        nbformat.v4.new_markdown_cell(PROSE, id="prose"),
        nbformat.v4.new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(START.format(name=name).strip(), id="start"),
        nbformat.v4.new_code_cell(code.strip(), id="work"),
        nbformat.v4.new_code_cell("stage.end()", id="end"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    metadata = {"kernelspec": kernel, "npr": said or TABLE.get(name, {"outputs": ["out"]})}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


def write_project(root, *only):
    for name, code in (("00_first", FIRST), ("01_second", SECOND), ("90_third", THIRD)):
        if not only or name in only:
            write_notebook(root / "notebooks" / f"{name}.ipynb", name, code)
    (root / "toy.yaml").write_text(yaml.safe_dump(PROFILE))


def go(root, **options):
    """Run the toy pipeline; returns (run folder, what was executed in this call, messages)."""
    ran = root / "reports" / "toy" / "ran"
    ran.unlink(missing_ok=True)
    stream = io.StringIO()
    run_dir = pipeline.run(root / "toy.yaml", root=root, stream=stream, **options)
    return run_dir, ran.read_text().split() if ran.exists() else [], stream.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, made while another kernel named python3 (that can't start) is installed."""
    root = tmp_path_factory.mktemp("finished")
    write_project(root)
    decoy = root / "decoy" / "kernels" / "python3" / "kernel.json"
    decoy.parent.mkdir(parents=True)
    decoy.write_text(json.dumps({"argv": ["false"], "display_name": "no", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(root / "decoy"))
        run_dir, ran, messages = go(root, overrides=["own.word=y"])
        assert os.environ["JUPYTER_PATH"] == str(root / "decoy")
    return root, run_dir, ran, messages


# -- one complete run ------------------------------------------------------------------------


def test_runs_every_stage_in_order_with_this_interpreter(finished):
    _, run_dir, ran, messages = finished
    assert ran == ["00_first", "01_second", "90_third"]
    assert (run_dir / "interpreter.txt").read_text() == sys.executable
    assert (run_dir / "second.txt").read_text() == "120"
    assert "[1/3] 00_first  walk  step 1/3  reward 0.25" in messages
    assert load_profile(run_dir / "profile.yaml").own == {"value": 1, "word": "y"}


def test_manifest(finished):
    _, run_dir, _, _ = finished
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["run"] == "toy"
    assert manifest["parameters"] == {"own.word": "y"}
    assert manifest["seeds"] == {"run": 0}
    assert set(manifest["git"]) == {"commit", "dirty"}
    assert manifest["packages"]["torch"].startswith("2.13")
    assert manifest["hardware"]["cores"] >= 1 and manifest["hardware"]["memory_gib"] > 0
    assert set(manifest["hardware"]) >= {"cpu", "gpu"}
    assert list(manifest["stages"]) == ["00_first", "01_second", "90_third"]
    for stage in manifest["stages"].values():
        assert stage["status"] == "done" and len(stage["runs"]) == 1
        assert 0 < stage["seconds"] < 120 and stage["start"] <= stage["end"]


def test_pages_and_notebooks_tell_no_paths_of_this_machine(finished):
    root, run_dir, _, _ = finished
    shown = [*run_dir.glob("*.html"), *run_dir.glob("html/*.html"), run_dir / "manifest.json"]
    assert "lib/module.py:1: a warning" in (run_dir / "html" / "01_second.html").read_text()
    assert not any(sys.prefix in path.read_text() for path in run_dir.glob("html/*.html"))
    for path in [*shown, *run_dir.glob("notebooks/*.ipynb")]:
        assert f'"{root}' not in path.read_text() and f"'{root}" not in path.read_text(), path


def test_an_executed_notebook_carries_its_figures_as_data(finished):
    _, run_dir, _, _ = finished
    assert (run_dir / "notebooks" / "01_second.ipynb").stat().st_size < 100_000
    assert 'Plotly.newPlot("figure-1"' in (run_dir / "html" / "01_second.html").read_text()


def test_report_writes_the_pages_again(finished):
    _, run_dir, _, _ = finished
    page = run_dir / "html" / "00_first.html"
    before = page.read_text()
    page.unlink()
    (run_dir / "index.html").unlink()
    assert pipeline.report(run_dir) == run_dir / "index.html"
    assert page.read_text() == before and (run_dir / "index.html").exists()


def test_a_notebook_on_request_joins_the_pages_once_it_lies_with_the_others(finished, tmp_path):
    run_dir = shutil.copytree(finished[1], tmp_path / "run")
    link = 'href="html/12_ablations.html"'
    assert link not in pipeline.report(run_dir).read_text()
    shutil.copy(
        run_dir / "notebooks" / "00_first.ipynb", run_dir / "notebooks" / "12_ablations.ipynb"
    )
    assert link in pipeline.report(run_dir).read_text()
    assert (run_dir / "html" / "12_ablations.html").exists()


# -- what is run again -----------------------------------------------------------------------


def test_only_what_changed_is_run_again(finished):
    root, run_dir, _, _ = finished
    same = ["own.word=y"]
    assert go(root, overrides=same)[1] == []
    _, ran, messages = go(root, overrides=[*same, "evaluation.samples=7"])
    # the third stage has no parameter of its own: it runs because its input changed
    assert ran == ["01_second", "90_third"]
    assert "changed sections: evaluation" in messages
    assert "changed inputs: second.txt" in messages
    assert (run_dir / "second.txt").read_text() == "170"
    stage = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert [len(entry["runs"]) for entry in stage.values()] == [1, 2, 2]
    # a section no stage depends on
    same.append("evaluation.samples=7")
    assert go(root, overrides=[*same, "sft.trl.learning_rate=1"])[1] == []
    # `from` forces a stage and those after it
    again = go(root, from_stage="90", overrides=same)
    assert again[1] == ["90_third"] and "asked for" in again[2]


def test_a_dry_run_says_what_would_run_and_why_and_touches_nothing(finished):
    root, run_dir, _, _ = finished
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
    _, ran, messages = go(root, dry=True, overrides=["own.word=y", "own.value=9"])
    assert ran == [] and "00_first: changed sections: own" in messages
    assert "01_second: if 00_first changes what it starts from" in messages.replace(
        "changed sections: evaluation", "if 00_first changes what it starts from"
    )
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")} == {
        p: t for p, t in before.items() if p.name != "ran"
    }


def test_some_stages_may_be_left_out(tmp_path):
    write_project(tmp_path)
    assert go(tmp_path, only=["00"])[1] == ["00_first"]
    assert go(tmp_path, only=["00_first", "01"])[1] == ["01_second"]
    _, ran, messages = go(tmp_path, skip=["01"], overrides=["evaluation.samples=3"], dry=True)
    assert ran == [] and "01_second: left out" in messages and "90_third: not done" in messages
    run_dir, ran, messages = go(tmp_path, skip=["01"], overrides=["evaluation.samples=3"])
    assert ran == ["90_third"] and "01_second" not in messages
    assert (run_dir / "index.html").exists()
    # which makes it late, not done
    assert go(tmp_path, overrides=["evaluation.samples=3"])[1] == ["01_second", "90_third"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"skip": ["01"]},
            r"90_third needs second\.txt, which 01_second makes and has not made yet",
        ),
        ({"only": ["90"]}, r"90_third needs second\.txt"),
        ({"only": ["3"]}, "unknown stage '3'; there are: 00_first"),
        ({"skip": ["npr"]}, "unknown stage 'npr'; there are: 00_first"),
    ],
)
def test_a_stage_that_others_need_is_not_left_out(tmp_path, options, message):
    write_project(tmp_path)
    with pytest.raises(stages.RunError, match=message):
        go(tmp_path, **options)
    assert not (tmp_path / "reports").exists()


def test_a_run_without_baselines_neither_makes_nor_takes_them(tmp_path):
    said = {"inputs": ["sr", "npr"], "outputs": ["sr_beta", "rollouts/eval_sr.parquet", "srx"]}
    write_notebook(tmp_path / "notebooks" / "s.ipynb", "s", "1", said)
    for stage, inputs, outputs in (
        (read_notebooks(tmp_path / "notebooks")[0], ("sr", "npr"), tuple(said["outputs"])),
        (read_notebooks(tmp_path / "notebooks", baselines=False)[0], ("npr",), ("srx",)),
    ):
        assert (stage.inputs, stage.outputs) == (inputs, outputs)
    (tmp_path / "toy").mkdir()
    write_project(tmp_path / "toy")
    run_dir = go(tmp_path / "toy", skip=["sr"])[0]
    assert not load_profile(run_dir / "profile.yaml").baselines


def finished_stage(tmp_path):
    """A stage recorded as done, without running anything."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "in.txt").write_text("in")
    (run_dir / "out").mkdir()
    (run_dir / "out" / "a").write_text("a")
    said = {"inputs": ["in.txt"], "sections": ["own", "problems"], "outputs": ["out"]}
    path = tmp_path / "notebooks" / "s.ipynb"
    write_notebook(path, "s", "1", said)

    def now(profile=PROFILE, seed=0):
        return stages.stage_identity(
            read_notebook(path), make_profile(profile), run_dir, seed, None
        )

    stages.mark_done(read_notebook(path), run_dir, now())
    return path, said, run_dir, now


def test_every_part_of_the_identity_counts(tmp_path, monkeypatch):
    path, said, run_dir, now = finished_stage(tmp_path)
    notebook = read_notebook(path)
    assert stages.why_run(notebook, run_dir, now()) is None
    assert "seed" in stages.why_run(notebook, run_dir, now(seed=1))
    assert "own" in stages.why_run(notebook, run_dir, now(PROFILE | {"own": {"value": 3}}))
    assert stages.why_run(notebook, run_dir, now(PROFILE | {"evaluation": {}})) is None
    (run_dir / "in.txt").write_text("other")
    assert "in.txt" in stages.why_run(notebook, run_dir, now())
    (run_dir / "in.txt").write_text("in")
    (run_dir / "out" / "b").write_text("b")
    assert "out" in stages.why_run(notebook, run_dir, now())
    (run_dir / "out" / "b").unlink()
    assert stages.why_run(notebook, run_dir, now()) is None
    write_notebook(path, "s", "2", said)
    assert "notebook" in stages.why_run(notebook, run_dir, now())
    write_notebook(path, "s", "1", said)
    monkeypatch.setattr(stages, "closure", lambda *_: {"npr_lib.engine": "other"})
    assert "source" in stages.why_run(notebook, run_dir, now())


def test_the_problems_of_a_local_file_are_an_input(tmp_path):
    path, _, run_dir, now = finished_stage(tmp_path)
    notebook, file = read_notebook(path), tmp_path / "mine.jsonl"
    profile = PROFILE | {"problems": {"kind": "file", "path": {"test": str(file)}}}
    file.write_text('{"problem": "1+1", "answer": "2"}')
    stages.mark_done(notebook, run_dir, now(profile))
    assert stages.why_run(notebook, run_dir, now(profile)) is None
    file.write_text('{"problem": "1+1", "answer": "3"}')
    assert stages.why_run(notebook, run_dir, now(profile)) == "changed inputs: problems"


def test_the_source_of_a_function_that_a_section_names_counts(tmp_path, monkeypatch):
    path, _, run_dir, now = finished_stage(tmp_path)
    module, notebook = tmp_path / "named_metrics.py", read_notebook(path)
    module.write_text("def wordiness(rollouts):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    profile = PROFILE | {"own": {"metric": "named_metrics:wordiness"}}
    stages.mark_done(notebook, run_dir, now(profile))
    module.write_text("def wordiness(rollouts):\n    return 1.0  # a comment\n")
    assert stages.why_run(notebook, run_dir, now(profile)) is None
    module.write_text("def wordiness(rollouts):\n    return 2.0\n")
    assert stages.why_run(notebook, run_dir, now(profile)) == (
        "changed functions: named_metrics:wordiness"
    )


def test_missing_output_is_an_error(tmp_path):
    path, _, run_dir, now = finished_stage(tmp_path)
    (run_dir / "out" / "a").unlink()
    (run_dir / "out").rmdir()
    with pytest.raises(ValueError, match="without making out"):
        stages.mark_done(read_notebook(path), run_dir, now())


# -- a notebook of one's own -----------------------------------------------------------------

MINE = """
text = (run / "second.txt").read_text()
(run / "mine.txt").write_text(text + stage.profile.own["word"])
"""


def test_a_notebook_put_into_the_folder_is_a_stage(tmp_path):
    write_project(tmp_path)
    said = {"inputs": ["second.txt"], "outputs": ["mine.txt"], "sections": ["own"]}
    write_notebook(tmp_path / "notebooks" / "30_mine.ipynb", "30_mine", MINE, said)
    run_dir, ran, _ = go(tmp_path, overrides=["own.word=z"])
    assert ran == ["00_first", "01_second", "30_mine", "90_third"]
    assert (run_dir / "mine.txt").read_text() == "120z"
    assert "30_mine" in (run_dir / "index.html").read_text()
    assert (run_dir / "html" / "30_mine.html").exists()
    assert go(tmp_path, overrides=["own.word=z"])[1] == []


def test_a_profile_may_name_a_notebook_that_lies_elsewhere(tmp_path):
    write_project(tmp_path)
    path = tmp_path / "elsewhere" / "30_mine.ipynb"
    said = {"inputs": ["second.txt"], "outputs": ["mine.txt"], "sections": ["own"]}
    write_notebook(path, "30_mine", MINE.replace('"word"', '"value"'), said)
    found = read_notebooks(tmp_path / "notebooks", [str(path)])
    assert [n.name for n in found] == ["00_first", "01_second", "30_mine", "90_third"]


def test_a_section_that_is_not_declared_can_not_be_read(tmp_path):
    write_project(tmp_path, "00_first")
    code = FIRST + "\nstage.profile.evaluation"
    write_notebook(tmp_path / "notebooks" / "00_first.ipynb", "00_first", code)
    with pytest.raises(StageError, match=r"reads the section 'evaluation'.*don't declare"):
        go(tmp_path)


def test_what_a_notebook_says_is_checked(tmp_path):
    path = tmp_path / "x.ipynb"
    for said, message in (
        ({"output": ["a"]}, "metadata.npr has output"),
        ({"sections": ["evaluatoin"]}, "no section evaluatoin"),
    ):
        write_notebook(path, "x", "1", said)
        with pytest.raises(WorkbenchError, match=re.escape(message)):
            read_notebook(path)


def test_papermill_alone_leaves_what_a_run_leaves(tmp_path):
    """The lock while it runs, the record, the manifest's entry; then a run has nothing to do."""
    write_project(tmp_path)
    run_dir = tmp_path / "reports" / "toy"
    for name in TABLE:
        source = tmp_path / "notebooks" / f"{name}.ipynb"
        command = [sys.executable, "-m", "papermill", str(source), str(tmp_path / "out.ipynb")]
        command += ["-p", "profile", str(tmp_path / "toy.yaml"), "-p", "run_dir", str(run_dir)]
        command += ["-y", "overrides: [own.value=5]", "--no-progress-bar", "-k", "python3"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert (run_dir / "second.txt").read_text() == "520"
    entries = manifest.read(run_dir)["stages"]
    assert {name: entry["status"] for name, entry in entries.items()} == dict.fromkeys(
        TABLE, "done"
    )
    assert load_profile(run_dir / "profile.yaml").own == {"value": 5}
    assert go(tmp_path, overrides=["own.value=5"])[1] == []


# -- trouble ---------------------------------------------------------------------------------


def test_failing_cell_is_told_in_a_line_and_then_resumed(tmp_path):
    write_project(tmp_path, "00_first")
    notebook = tmp_path / "notebooks" / "00_first.ipynb"
    write_notebook(notebook, "00_first", "\nvalue = 1\nraise KeyError('no such word')")
    with pytest.raises(StageError) as caught:
        go(tmp_path)
    message = str(caught.value)
    assert "00_first" in message and "KeyError: 'no such word'" in message
    assert "cell 5 (value = 1)" in message  # papermill's own cell of parameters counts
    output = message.rsplit("output notebook: ", 1)[1]
    assert Path(output).exists() and "no such word" in Path(output).read_text()
    assert message.split("\n")[1:-1] == ["  raised in line 2 of cell 5"]
    manifest = json.loads((tmp_path / "reports/toy/manifest.json").read_text())
    assert manifest["stages"]["00_first"]["status"] == "failed"
    assert "00_first" in (tmp_path / "reports/toy/index.html").read_text()
    write_notebook(notebook, "00_first", FIRST)
    assert go(tmp_path)[1] == ["00_first"]


OWN = """def {name}(value):
    half = value / 2
    return half / (value - value)
"""


@pytest.mark.parametrize("home", ["cell", "file"])
def test_an_error_in_ones_own_function_names_its_line(tmp_path, home):
    (tmp_path / "own_rewards.py").write_text(OWN.format(name="reward"))
    given = "from own_rewards import reward" if home == "file" else OWN.format(name="reward")
    call = "from npr_lib.side_by_side import side_by_side\n\nside_by_side(reward, [(1,)])"
    cells = [nbformat.v4.new_markdown_cell("# Text")]
    cells += map(nbformat.v4.new_code_cell, (given, call))
    path = tmp_path / "own.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with execution.kernel(tmp_path / "kernel"), pytest.raises(StageError) as caught:
        execution.execute(path, tmp_path / "done.ipynb", {}, tmp_path, "stage own")
    message = str(caught.value)
    assert "ZeroDivisionError" in message and "cell 3 (from npr_lib" in message
    where = "cell 2" if home == "cell" else str(tmp_path / "own_rewards.py")
    assert f"\n  raised in line 3 of {where}, in reward\n" in message


def test_an_error_of_another_process_names_its_line_too():
    of_child = """Traceback (most recent call last):
  File "/tmp/ipykernel_17/2603.py", line 3, in reward
  File "{}", line 9, in score
"""
    here = "Cell \x1b[32mIn[2]\x1b[39m\x1b[32m, line 1\x1b[39m"
    cause = "The above exception was the direct cause of the following exception:"
    cells = [{"metadata": {}}, {"metadata": {}, "execution_count": 2}]
    told = [of_child.format(execution.__file__), cause, here]
    assert execution.raised_at(told, cells) == "line 3 of a cell, in reward"
    assert execution.raised_at([here], cells) == "line 1 of cell 2"
    assert execution.raised_at(["File ~/site-packages/torch/nn.py:7, in relu(x)"], cells) is None


def test_what_a_stage_left_stays_when_it_fails_and_is_marked(finished, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(finished[0], root)
    same = ["own.word=y", "evaluation.samples=7"]
    run_dir = go(root, overrides=same)[0]
    assert "out of date" not in (run_dir / "index.html").read_text()
    write_notebook(root / "notebooks" / "01_second.ipynb", "01_second", "raise ValueError('no')")
    left = (run_dir / "second.txt").read_text()
    with pytest.raises(StageError):
        go(root, overrides=same)
    assert (run_dir / "second.txt").read_text() == left
    assert (run_dir / "metrics" / "headline.json").exists()
    assert "out of date" in (run_dir / "index.html").read_text()


def test_a_value_of_the_wrong_type_touches_nothing(finished):
    root, run_dir, _, _ = finished
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    with pytest.raises(ProfileError, match=r"npr\.grpo\.max_steps = 'abc'"):
        go(root, overrides=["npr.grpo.max_steps=abc"])
    after = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    assert after == {p: content for p, content in before.items() if p.name != "ran"}


def test_what_a_failed_attempt_asked_for_is_forgotten_with_it(tmp_path):
    """Back to the settings of before: what they made is there, and nothing is done again."""
    write_project(tmp_path, "00_first")
    code = FIRST.replace("import sys", "import sys\nassert stage.profile.own['value'] < 5")
    write_notebook(tmp_path / "notebooks" / "00_first.ipynb", "00_first", code)
    run_dir, ran, _ = go(tmp_path)
    assert ran == ["00_first"]
    with pytest.raises(StageError):
        go(tmp_path, overrides=["own.value=9"])
    assert manifest.read(run_dir)["stages"]["00_first"]["status"] == "failed"
    assert go(tmp_path)[1] == []
    entry = manifest.read(run_dir)["stages"]["00_first"]
    assert [entry["status"], *(one["status"] for one in entry["runs"])] == [
        "done",
        "done",
        "failed",
    ]


@pytest.mark.parametrize("dry", [True, False])
def test_a_function_that_is_not_there_is_told_before_anything_is_done(tmp_path, dry):
    write_project(tmp_path, "00_first")
    with pytest.raises(WorkbenchError, match="'no_such_module:reward' can't be found"):
        go(tmp_path, overrides=["npr.reward=no_such_module:reward"], dry=dry)
    assert not (tmp_path / "reports").exists()


def test_a_relative_run_is_looked_for_in_the_repository_too(tmp_path, monkeypatch):
    """JupyterLab runs a notebook in the folder where it lies."""
    monkeypatch.chdir(tmp_path)
    assert stages._run_folder("reports/mine", None) == REPOSITORY / "reports" / "mine"
    (tmp_path / "reports" / "mine").mkdir(parents=True)
    assert stages._run_folder("reports/mine", None) == Path("reports/mine")
    assert stages._run_folder(None, "a/own.yaml") == REPOSITORY / "reports" / "own"


def test_a_notebook_without_an_end_is_told(tmp_path):
    write_project(tmp_path, "00_first")
    path = tmp_path / "notebooks" / "00_first.ipynb"
    document = nbformat.read(path, as_version=4)
    document.cells.pop()
    nbformat.write(document, path)
    with pytest.raises(WorkbenchError, match=r"its last cell should be `stage\.end\(\)`"):
        go(tmp_path)


SLOW = """
import time
target = run / "second.txt"
target.write_text("half")
if not (run / "hurry").exists():
    while True:
        time.sleep(0.1)
        (run / "alive").write_text(str(time.time()))
target.write_text("whole")
"""

DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {tests!r}
from npr_lib.workbench import pipeline
root = Path({root!r})
pipeline.run(root / "toy.yaml", root=root)
"""


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_killed_run_goes_on_where_it_stopped(tmp_path):
    write_project(tmp_path, "00_first")
    write_notebook(tmp_path / "notebooks" / "01_second.ipynb", "01_second", SLOW)
    run_dir = tmp_path / "reports" / "toy"
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    code = DRIVER.format(tests=folders, root=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    try:
        wait_for((run_dir / "alive").exists)
        with pytest.raises(pipeline.RunError, match="another process"):
            go(tmp_path)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert (run_dir / "second.txt").read_text() == "half"
    assert [path.name for path in (run_dir / "stages").iterdir()] == ["00_first.json"]
    killed = json.loads((run_dir / "manifest.json").read_text())["stages"]
    (run_dir / "hurry").touch()
    _, ran, _ = go(tmp_path)
    # the killed stage's process ended before its folder was touched
    left = (run_dir / "alive").read_text()
    assert ran == ["01_second"]
    assert (run_dir / "second.txt").read_text() == "whole"
    after = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert after["00_first"] == killed["00_first"]
    assert [attempt["status"] for attempt in after["01_second"]["runs"]] == ["running", "done"]
    assert (run_dir / "alive").read_text() == left


def test_dead_kernel_is_told(tmp_path):
    write_project(tmp_path, "00_first")
    write_notebook(tmp_path / "notebooks" / "00_first.ipynb", "00_first", "import os\nos._exit(3)")
    with pytest.raises(StageError, match="stage 00_first failed: its process died"):
        go(tmp_path)


# -- profiles and the command line -----------------------------------------------------------


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(PROFILE))
    return path


def test_overrides_are_yaml(toy):
    given = ["own.value=[1, 2]", "own.word=true", "sft.trl.learning_rate=3e-4", "random_seed=5"]
    profile = load_profile(toy, given)
    assert profile.own == {"value": [1, 2], "word": True}
    assert profile.sft.trl["learning_rate"] == 3e-4 and profile.random_seed == 5
    assert load_profile(toy).own == {"value": 1}  # nothing is shared between calls


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.smaples=1", "'evaluation.smaples'; did you mean evaluation.samples?"),
        ("samples=1", "unknown parameter 'samples'; did you mean "),
        ("evaluation.samples.deep=1", "unknown parameter"),
        ("delta.value=1", "unknown parameter 'delta'; did you mean "),
        ("npr.grpo.max_gradnorm=0.5", "did you mean npr.grpo.max_grad_norm?"),
        ("npr.span_bonuss=0.9", "did you mean npr.span_bonus?"),
        ("problems.dependant=0.75", "did you mean problems.dependent?"),
        ("model.hiden_size=3", "did you mean model.hidden_size?"),
        ("prompt={template: x, sytem: y}", "'prompt.sytem'; did you mean prompt.system?"),
        ("prompt={system: 3}", "prompt.system = 3: Input should be a valid string"),
        ("engine.style=line", "engine.style = 'line': Input should be 'compact' or 'lines'"),
        ("engine.min_chars=[3, -1, 3]", "min_chars = (3, -1, 3): expected three numbers"),
        ("evaluation=3", "evaluation is a section"),
        ("evaluation.samples", "not of the form KEY=VALUE"),
        ("evaluation.samples=[1", "not YAML"),
        ("evaluation.samples=two", "evaluation.samples = 'two': Input should be a valid integer"),
        ("evaluation.samples=true", "valid integer"),
        ("npr.grpo.max_steps=abc", "npr.grpo.max_steps = 'abc': Input should be a valid integer"),
        ("npr.invalid=drop", "npr.invalid = 'drop': Input should be 'filter' or 'penalize'"),
        ("npr.sampling.temperature=-1", "temperature = -1.0: expected at least 0"),
        ("problems.kind=files", "unknown kind of problem set: 'files'"),
    ],
)
def test_bad_overrides(toy, override, message):
    with pytest.raises(ProfileError, match=re.escape(message)) as caught:
        load_profile(toy, [override])
    assert "\n" not in str(caught.value)


def test_a_model_that_exists_is_not_told_its_shape(tmp_path):
    """As it was when tiny.yaml was copied, or on the command line."""
    hint = r"model\.hidden_size beside model\.path.*Leave out hidden_size, .*'model=\{path: mine\}'"
    with pytest.raises(ProfileError, match=hint):
        load_profile("tiny", ["model.path=mine"])
    assert load_profile("tiny", ["model={path: mine}"]).model == {"path": "mine"}
    fits = {"path": "mine", "gguf_file": "a.gguf", "attention_dropout": 0.0}
    assert make_profile({**PROFILE, "model": fits}).model == fits


@pytest.mark.parametrize("key", ["span_bonuss: 0.9", "grpo: {max_stepz: 3}"])
def test_a_misspelt_key_in_a_file_fails_at_once(tmp_path, key):
    path = tmp_path / "mine.yaml"
    path.write_text(f"problems: {{kind: parts}}\nmodel: {{path: m}}\nnpr: {{{key}}}\n")
    with pytest.raises(ProfileError, match="did you mean npr"):
        load_profile(path)


def test_a_prompt_may_be_a_mapping(toy):
    prompt = "{template: 'Q {problem}', system: S, chat: {enable_thinking: false}}"
    profile = load_profile(toy, [f"prompt={prompt}", "engine.min_chars=[3, 6, 6]"])
    given = {"template": "Q {problem}", "system": "S", "chat": {"enable_thinking": False}}
    assert profile.prompt == given and profile.engine.min_chars == (3, 6, 6)
    save_profile(profile, toy)
    assert load_profile(toy) == profile


def test_a_minimal_profile_is_whole(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("problems: {kind: file, path: mine.jsonl}\nmodel: {path: model}\n")
    profile = load_profile(path)
    assert profile.npr.min_kept == 0.3 and profile.random_seed == 0
    path.write_text("problems: {kind: file, path: mine.jsonl}\n")
    with pytest.raises(ProfileError, match="model"):
        load_profile(path)


def test_every_setting_of_the_committed_profiles_arrives(tmp_path):
    """Field by field: what a file says is what the section has."""
    for name in names():
        given = yaml.load((FOLDER / f"{name}.yaml").read_text(), Loader)
        profile = load_profile(name)

        def arrived(said, found, where):
            for key, value in said.items():
                inner = found[key] if isinstance(found, dict) else getattr(found, key)
                if isinstance(value, dict):
                    arrived(value, inner, f"{where}.{key}")
                else:
                    assert inner == value, f"{where}.{key}"

        arrived(given, profile, name)
        save_profile(profile, tmp_path / "again.yaml")
        assert load_profile(tmp_path / "again.yaml") == profile


def test_unknown_profiles(tmp_path):
    with pytest.raises(ProfileError, match="unknown profile 'tinny'; there are: ") as caught:
        load_profile("tinny")
    assert all(name in str(caught.value) for name in names())
    with pytest.raises(ProfileError, match="does not exist"):
        load_profile(tmp_path / "no.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ProfileError, match="not a mapping"):
        load_profile(tmp_path / "list.yaml")


def test_an_override_changes_one_place_of_those_that_an_anchor_fills(tmp_path):
    path = tmp_path / "own.yaml"
    start = "{problems: {kind: parts}, model: {}, npr_zero: {grpo: &few {max_steps: 2}}"
    path.write_text(start + ", npr: {grpo: *few}}")
    profile = load_profile(path, ["npr.grpo.max_steps=7"])
    assert profile.npr.grpo == {"max_steps": 7} and profile.npr_zero.grpo == {"max_steps": 2}


def test_smoke_sizes_are_changes_of_sections(tmp_path):
    path = tmp_path / "own.yaml"
    given = "{problems: {kind: parts, train: 9}, model: {}, npr: {grpo: {max_steps: 9, beta: 0.0}}"
    path.write_text(given + ", smoke: {npr: {grpo: {max_steps: 1}}, problems: {train: 2}}}")
    assert load_profile(path).npr.grpo == {"max_steps": 9, "beta": 0.0}
    small = load_profile(path, ["problems.train=3"], smoke=True)
    assert small.npr.grpo == {"max_steps": 1, "beta": 0.0} and small.problems["train"] == 3
    path.write_text(given + ", smoke: {npr: {gpro: {max_steps: 1}}}}")
    with pytest.raises(ProfileError, match=r"unknown parameter 'npr\.gpro"):
        load_profile(path, smoke=True)
    path.write_text(given + "}")
    with pytest.raises(ProfileError, match="no sizes for --smoke"):
        load_profile(path, smoke=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--profile", "tinny"], "unknown profile 'tinny'; there are:"),
        (["run", "--profile", "TOY", "-p", "npr.span_bonuss=1"], "did you mean npr.span_bonus?"),
        (["run", "--profile", "TOY", "--from", "7"], "unknown stage '7'; there are: 00_seed"),
        (["run", "--profile", "TOY", "--run", "../up"], "a run's name is"),
        (["run", "--profile", "TOY", "--run", "new", "--only", "03,10"], "03_npr needs npr_beta"),
        (["report", "no-such-run"], "there is no run 'no-such-run'"),
        (["explore", "no-such-run"], "there is no run 'no-such-run'"),
    ],
)
def test_command_line_errors_are_one_line(toy, capsys, arguments, message):
    arguments = [str(toy) if word == "TOY" else word for word in arguments]
    assert __main__.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_help_says_it_all():
    command = [sys.executable, "-m", "npr_lib", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("run", "report", "explore", "--profile"))


# -- the beginning of a notebook -------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    write_project(tmp_path)
    return tmp_path


def begin(project, name, *arguments, **options):
    return stages.begin(name, *arguments, folder=project / "notebooks", **options)


def test_begin_names_the_command_that_makes_a_missing_input(project):
    run_dir = project / "run"
    with pytest.raises(stages.MissingInputError) as caught:
        begin(project, "01_second", project / "toy.yaml", run_dir)
    assert f"{run_dir / 'first'} does not exist" in str(caught.value)
    assert "python -m npr_lib run --profile" in str(caught.value)
    assert not run_dir.exists()  # a misspelt folder is not made


def test_begin_takes_another_checkpoint_for_the_default_one(project):
    given, run_dir, toy = project / "model", project / "run", project / "toy.yaml"
    with pytest.raises(stages.MissingInputError, match="not a model folder"):
        begin(project, "01_second", toy, run_dir, given)
    given.mkdir()
    stage = begin(project, "01_second", toy, run_dir, given, 3)
    assert (stage.checkpoint, stage.seed) == (given, 3)
    (run_dir / "first").mkdir()
    stage = begin(project, "01_second", toy, run_dir)  # once more in the same kernel
    assert (stage.checkpoint, stage.seed) == (run_dir / "first", 0)


def test_begin_goes_by_the_runs_own_profile(project):
    """Its overrides hold for whoever runs a stage of it alone, also by the profile's name."""
    run_dir, _, _ = go(project, overrides=["random_seed=7", "own.value=4"])
    for named in (None, project / "toy.yaml", run_dir / "profile.yaml"):
        made_from = manifest.read(run_dir)["profile"]
        named = made_from if named == project / "toy.yaml" else named
        stage = begin(project, "00_first", named, run_dir)
        assert stage.seed == 7 and stage.profile.own == {"value": 4}
    stage = begin(project, "00_first", None, run_dir, overrides=["own.value=5"])
    assert stage.profile.own == {"value": 5}
    with pytest.raises(ProfileError, match="is a run of the profile"):
        begin(project, "00_first", "smoke", run_dir)


def test_an_unknown_stage_is_told_what_there_is(project):
    with pytest.raises(stages.RunError, match="'30_mine'; there are: 00_first, 01_second"):
        begin(project, "30_mine", project / "toy.yaml", project / "run")


def test_two_may_not_work_on_one_run(project):
    run_dir = project / "run"
    run_dir.mkdir()
    with stages.take_lock(run_dir), pytest.raises(stages.RunError, match="another process"):
        begin(project, "00_first", project / "toy.yaml", run_dir)


def test_every_input_of_the_real_notebooks_is_made_by_an_earlier_one():
    made = set()
    for notebook in read_notebooks(REPOSITORY / "notebooks"):
        assert set(notebook.inputs) <= made, notebook.name
        assert notebook.checkpoint is None or notebook.checkpoint in notebook.inputs
        assert notebook.title and not made & set(notebook.outputs)
        made |= set(notebook.outputs)
