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
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import yaml

from npr_lib import __main__
from npr_lib.profiles.profile import ProfileError, load_profile, names
from npr_lib.workbench import pipeline, stages
from npr_lib.workbench.notebook import StageError
from npr_lib.workbench.stages import Stage

SOURCE_DIGEST = stages.source_digest

PROFILE = {"alpha": {"value": 1}, "beta": {"value": 2, "word": "x"}, "gamma": {"lr": 1e-3}}

TABLE = (
    Stage("00_first", sections=("alpha",), outputs=("first", "interpreter.txt")),
    Stage(
        "01_second",
        inputs=("first",),
        sections=("beta",),
        outputs=("second.txt",),
        checkpoint="first",
    ),
    Stage("90_third", inputs=("second.txt",), outputs=("metrics/headline.json",)),
)

PARAMETERS = 'profile = "toy"\nrun_dir = None\ninput_checkpoint = None\nseed = 0'

# Every stage appends its name to `ran`: what was executed, told by the stages themselves.
START = """
from pathlib import Path
from npr_lib.profiles.profile import load_profile
from npr_lib.progress import VARIABLE, report_progress
run = Path(run_dir)
settings = load_profile(profile)
with (run / "ran").open("a") as file:
    file.write("{name} ")
"""

FIRST = """
import sys
(run / "first").mkdir()
(run / "first" / "weights").write_text(str(settings["alpha"]["value"]))
(run / "interpreter.txt").write_text(sys.executable)
for step in range(1, 4):
    report_progress(step, 3, reward=step / 4, part="walk")
"""

SECOND = """
import sys
print(sys.prefix + "/lib/module.py:1: a warning", file=sys.stderr)
weights = (Path(input_checkpoint) / "weights").read_text()
(run / "second.txt").write_text(weights + str(settings["beta"]["value"]) + str(seed))
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


def write_notebook(path, name, code):
    cells = [
        nbformat.v4.new_markdown_cell(PROSE, id="prose"),
        nbformat.v4.new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(START.format(name=name).strip(), id="start"),
        nbformat.v4.new_code_cell(code.strip(), id="work"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def write_project(root):
    for name, code in (("00_first", FIRST), ("01_second", SECOND), ("90_third", THIRD)):
        write_notebook(root / "notebooks" / f"{name}.ipynb", name, code)
    (root / "toy.yaml").write_text(yaml.safe_dump(PROFILE))


@pytest.fixture(autouse=True, scope="module")
def pinned_source():
    """These tests hold while somebody edits `npr_lib`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "source_digest", lambda package=None: "pinned")
        yield


def go(root, table=TABLE, **options):
    """Run the toy pipeline; returns (run folder, what was executed in this call, messages)."""
    ran = root / "reports" / "toy" / "ran"
    ran.unlink(missing_ok=True)
    stream = io.StringIO()
    run_dir = pipeline.run(root / "toy.yaml", root=root, stages=table, stream=stream, **options)
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
        run_dir, ran, messages = go(root, overrides=["beta.word=y"])
        assert os.environ["JUPYTER_PATH"] == str(root / "decoy")
    return root, run_dir, ran, messages


# -- one complete run ------------------------------------------------------------------------


def test_runs_every_stage_in_order_with_this_interpreter(finished):
    _, run_dir, ran, messages = finished
    assert ran == ["00_first", "01_second", "90_third"]
    assert (run_dir / "interpreter.txt").read_text() == sys.executable
    assert (run_dir / "second.txt").read_text() == "120"
    assert "[1/3] 00_first  walk  step 1/3  reward 0.25" in messages
    assert load_profile(run_dir / "profile.yaml")["beta"] == {"value": 2, "word": "y"}


def test_manifest(finished):
    _, run_dir, _, _ = finished
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["run"] == "toy"
    assert manifest["parameters"] == {"beta.word": "y"}
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
    same = {"overrides": ["beta.word=y"]}
    assert go(root, **same)[1] == []
    _, ran, messages = go(root, overrides=["beta.word=y", "beta.value=7"])
    # the third stage has no parameter of its own: it runs because its input changed
    assert ran == ["01_second", "90_third"]
    assert "changed sections: beta" in messages and "changed inputs: second.txt" in messages
    assert (run_dir / "second.txt").read_text() == "170"
    stage = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert [len(entry["runs"]) for entry in stage.values()] == [1, 2, 2]
    # a section no stage depends on
    assert go(root, overrides=["beta.word=y", "beta.value=7", "gamma.lr=1"])[1] == []
    # `from` forces a stage and those after it
    again = go(root, from_stage="90", overrides=["beta.word=y", "beta.value=7"])
    assert again[1] == ["90_third"] and "asked for" in again[2]


def finished_stage(tmp_path):
    """A stage recorded as done, without running anything."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "in.txt").write_text("in")
    (run_dir / "out").mkdir()
    (run_dir / "out" / "a").write_text("a")
    write_notebook(tmp_path / "notebooks" / "s.ipynb", "s", "1")
    stage = Stage("s", inputs=("in.txt",), sections=("alpha",), outputs=("out",))

    def now(profile=PROFILE, parameters=None):
        path = tmp_path / "notebooks" / "s.ipynb"
        return stages.fingerprint(stage, profile, parameters or {"seed": 0}, run_dir, path)

    stages.mark_done(stage, run_dir, now())
    return stage, run_dir, now


def test_every_part_of_the_fingerprint_counts(tmp_path, monkeypatch):
    stage, run_dir, now = finished_stage(tmp_path)
    assert stages.why_run(stage, run_dir, now()) is None
    assert "seed" in stages.why_run(stage, run_dir, now(parameters={"seed": 1}))
    other = PROFILE | {"alpha": {"value": 3}}
    assert "alpha" in stages.why_run(stage, run_dir, now(profile=other))
    unrelated = PROFILE | {"beta": {}}
    assert stages.why_run(stage, run_dir, now(profile=unrelated)) is None
    (run_dir / "in.txt").write_text("other")
    assert "in.txt" in stages.why_run(stage, run_dir, now())
    (run_dir / "in.txt").write_text("in")
    (run_dir / "out" / "b").write_text("b")
    assert "out" in stages.why_run(stage, run_dir, now())
    (run_dir / "out" / "b").unlink()
    assert stages.why_run(stage, run_dir, now()) is None
    write_notebook(tmp_path / "notebooks" / "s.ipynb", "s", "2")
    assert "notebook" in stages.why_run(stage, run_dir, now())
    write_notebook(tmp_path / "notebooks" / "s.ipynb", "s", "1")
    monkeypatch.setattr(stages, "source_digest", lambda package=None: "other")
    assert "source" in stages.why_run(stage, run_dir, now())


def test_the_problems_of_a_local_file_are_an_input(tmp_path):
    stage, run_dir, _ = finished_stage(tmp_path)
    stage, file = replace(stage, sections=("problems",)), tmp_path / "mine.jsonl"
    file.write_text('{"problem": "1+1", "answer": "2"}')
    notebook = tmp_path / "notebooks" / "s.ipynb"

    def now():
        profile = PROFILE | {"problems": {"kind": "file", "path": {"test": str(file)}}}
        return stages.fingerprint(stage, profile, {"seed": 0}, run_dir, notebook)

    stages.mark_done(stage, run_dir, now())
    assert stages.why_run(stage, run_dir, now()) is None
    file.write_text('{"problem": "1+1", "answer": "3"}')
    assert stages.why_run(stage, run_dir, now()) == f"changed inputs: {file}"


def test_source_digest_sees_every_module(tmp_path):
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    (package / "deep" / "module.py").write_text("x = 1")
    before = SOURCE_DIGEST(package)
    (package / "deep" / "module.py").write_text("x = 2")
    assert SOURCE_DIGEST(package) != before


def test_missing_output_is_an_error(tmp_path):
    stage, run_dir, now = finished_stage(tmp_path)
    (run_dir / "out" / "a").unlink()
    (run_dir / "out").rmdir()
    with pytest.raises(ValueError, match="without making out"):
        stages.mark_done(stage, run_dir, now())


# -- trouble ---------------------------------------------------------------------------------


def test_failing_cell_is_told_in_a_line_and_then_resumed(tmp_path):
    write_project(tmp_path)
    notebook = tmp_path / "notebooks" / "00_first.ipynb"
    write_notebook(notebook, "00_first", "\nvalue = 1\nraise KeyError('no such word')")
    with pytest.raises(StageError) as caught:
        go(tmp_path, TABLE[:1])
    message = str(caught.value)
    assert "00_first" in message and "KeyError: 'no such word'" in message
    assert "cell 5 (value = 1)" in message  # papermill's own cell of parameters counts
    output = message.rsplit("output notebook: ", 1)[1]
    assert Path(output).exists() and "no such word" in Path(output).read_text()
    assert message.count("\n") == 1
    manifest = json.loads((tmp_path / "reports/toy/manifest.json").read_text())
    assert manifest["stages"]["00_first"]["status"] == "failed"
    assert "Not finished:</b> 00_first" in (tmp_path / "reports/toy/index.html").read_text()
    write_notebook(notebook, "00_first", FIRST)
    assert go(tmp_path, TABLE[:1])[1] == ["00_first"]


SLOW = """
import time
target = run / "second.txt"
assert not target.exists(), "what the killed run left was not removed"
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
from test_pipeline import TABLE, pipeline, stages
stages.source_digest = lambda package=None: "pinned"
root = Path({root!r})
pipeline.run(root / "toy.yaml", root=root, stages=TABLE[:2])
"""


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_killed_run_goes_on_where_it_stopped(tmp_path):
    write_project(tmp_path)
    write_notebook(tmp_path / "notebooks" / "01_second.ipynb", "01_second", SLOW)
    run_dir = tmp_path / "reports" / "toy"
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    code = DRIVER.format(tests=folders, root=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=stages.REPOSITORY)
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
    _, ran, _ = go(tmp_path, TABLE[:2])
    # the killed stage's process ended before its folder was touched
    left = (run_dir / "alive").read_text()
    assert ran == ["01_second"]
    assert (run_dir / "second.txt").read_text() == "whole"
    after = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert after["00_first"] == killed["00_first"]
    assert [attempt["status"] for attempt in after["01_second"]["runs"]] == ["running", "done"]
    assert (run_dir / "alive").read_text() == left


def test_dead_kernel_is_told(tmp_path):
    write_project(tmp_path)
    write_notebook(tmp_path / "notebooks" / "00_first.ipynb", "00_first", "import os\nos._exit(3)")
    with pytest.raises(StageError, match="stage 00_first failed: its process died"):
        go(tmp_path, TABLE[:1])


def test_removing_results_leaves_the_rest(tmp_path):
    stage, run_dir, _ = finished_stage(tmp_path)
    pipeline._remove_results(run_dir, stage, unfinished=True)
    assert not (run_dir / "out").exists() and not stages.record_path(run_dir, stage).exists()
    assert (run_dir / "in.txt").exists()


def test_only_an_interrupted_training_is_left_to_go_on(tmp_path):
    stage, run_dir, _ = finished_stage(tmp_path)
    (run_dir / "out" / "training.json").write_text("{}")
    pipeline._remove_results(run_dir, stage, unfinished=True)
    assert (run_dir / "out").exists() and not stages.record_path(run_dir, stage).exists()
    pipeline._remove_results(run_dir, stage, unfinished=False)
    assert not (run_dir / "out").exists()


# -- profiles and the command line -----------------------------------------------------------


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(PROFILE))
    return path


def test_overrides_are_yaml(toy):
    given = ["alpha.value=[1, 2]", "beta.word=true", "gamma.lr=3e-4", "random_seed=5"]
    profile = load_profile(toy, given)
    assert profile["alpha"]["value"] == [1, 2] and profile["beta"]["word"] is True
    assert profile["gamma"]["lr"] == 3e-4 and profile["random_seed"] == 5
    assert load_profile(toy)["alpha"] == {"value": 1}  # nothing is shared between calls


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("alpha.valeu=1", "unknown parameter 'alpha.valeu'; did you mean alpha.value?"),
        ("lr=1", "unknown parameter 'lr'; did you mean gamma.lr?"),
        ("alpha.value.deep=1", "unknown parameter"),
        ("delta.value=1", "unknown parameter 'delta.value'; did you mean "),
        ("alpha=3", "alpha is a section"),
        ("alpha.value", "not of the form KEY=VALUE"),
        ("alpha.value=[1", "not YAML"),
    ],
)
def test_bad_overrides(toy, override, message):
    with pytest.raises(ProfileError, match=re.escape(message)) as caught:
        load_profile(toy, [override])
    assert "\n" not in str(caught.value)


def test_fields_of_passed_on_sections_are_known_though_unwritten(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("npr:\n  grpo: {learning_rate: 1.0e-4}\n")
    profile = load_profile(path, ["npr.grpo.max_grad_norm=0.5"])
    assert profile["npr"]["grpo"] == {"learning_rate": 1e-4, "max_grad_norm": 0.5}
    with pytest.raises(ProfileError, match=r"did you mean npr\.grpo\.max_grad_norm\?"):
        load_profile(path, ["npr.grpo.max_gradnorm=0.5"])


def test_unknown_profiles(tmp_path):
    with pytest.raises(ProfileError, match="unknown profile 'tinny'; there are: ") as caught:
        load_profile("tinny")
    assert all(name in str(caught.value) for name in names())
    with pytest.raises(ProfileError, match="does not exist"):
        load_profile(tmp_path / "no.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ProfileError, match="not a mapping"):
        load_profile(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--profile", "tinny"], "unknown profile 'tinny'; there are:"),
        (["run", "--profile", "TOY", "-p", "alpha.valu=1"], "did you mean alpha.value?"),
        (["run", "--profile", "TOY", "--from", "7"], "unknown stage '7'; there are: 00_seed"),
        (["run", "--profile", "TOY", "--run", "../up"], "a run's name is"),
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
    done = subprocess.run(command, capture_output=True, text=True, cwd=stages.REPOSITORY)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("run", "report", "explore", "--profile"))


# -- the beginning of a notebook -------------------------------------------------------------


def test_begin_names_the_command_that_makes_a_missing_input(toy, tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(stages.MissingInputError) as caught:
        stages.begin("01_second", toy, run_dir, stages=TABLE)
    assert f"{run_dir / 'first'} does not exist" in str(caught.value)
    output = run_dir / "notebooks" / "00_first.ipynb"
    command = f"papermill notebooks/00_first.ipynb {output} -p profile {toy} -p run_dir {run_dir}"
    assert command in str(caught.value) and output.parent.is_dir()


def test_begin_takes_another_checkpoint_for_the_default_one(toy, tmp_path):
    given = tmp_path / "model"
    with pytest.raises(stages.MissingInputError, match="not a model folder"):
        stages.begin("01_second", toy, tmp_path / "run", given, stages=TABLE)
    given.mkdir()
    context = stages.begin("01_second", toy, tmp_path / "run", given, 3, stages=TABLE)
    assert (context.checkpoint, context.seed) == (given, 3)
    (tmp_path / "run" / "first").mkdir()
    context = stages.begin("01_second", toy, tmp_path / "run", stages=TABLE)
    assert (context.checkpoint, context.seed) == (tmp_path / "run" / "first", 0)


def test_every_input_of_the_real_table_is_made_by_an_earlier_stage():
    made = set()
    for stage in stages.STAGES:
        assert set(stage.inputs) <= made, stage.name
        assert stage.checkpoint is None or stage.checkpoint in stage.inputs
        assert not made & set(stage.outputs)
        made |= set(stage.outputs)
