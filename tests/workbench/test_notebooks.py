"""The notebooks as they are committed, and the whole pipeline on the smoke profile."""

import ast
import importlib
import importlib.util
import io
import json
import shutil
from dataclasses import replace

import nbformat
import pandas as pd
import papermill
import pytest
from pages import is_local, sources

from npr_lib import WorkbenchError
from npr_lib.files import REPOSITORY
from npr_lib.profiles.profile import load_profile, save_profile
from npr_lib.tasks.parts import task
from npr_lib.tasks.problems import split_of
from npr_lib.workbench import execution, pipeline, stages
from npr_lib.workbench.notebook import read_notebooks

FOLDER = REPOSITORY / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PARAMETERS = ("profile", "run_dir", "input_checkpoint", "seed", "overrides")
TRAINED = ("npr_zero", "npr", "sr")  # their rollouts
STAGES = [notebook for notebook in read_notebooks(FOLDER) if notebook.run]


def cells(path, kind="code"):
    document = nbformat.read(path, as_version=4)
    return [cell for cell in document.cells if cell.cell_type == kind]


def code(path):
    return "\n".join(cell.source for cell in cells(path))


def test_every_notebook_is_a_stage_and_says_what_it_is():
    assert [notebook.path for notebook in read_notebooks(FOLDER)] == NOTEBOOKS
    # the ablations take hours, benchmarks want files or a network: only when asked for
    assert {path.stem for path in NOTEBOOKS} - {one.name for one in STAGES} == {
        "12_ablations",
        "13_benchmarks",
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook(path):
    document = nbformat.read(path, as_version=4)
    nbformat.validate(document)
    assert document.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in document.cells]
    assert len(set(ids)) == len(ids)
    for cell in cells(path):
        assert cell.outputs == [] and cell.execution_count is None, "clear the outputs"
        assert len(cell.source.splitlines()) <= 30, f"cell {cell.id} belongs into npr_lib"
    tagged = [cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", ())]
    assert len(tagged) == 1
    names = {}
    exec(tagged[0].source, names)
    assert [names[name] for name in PARAMETERS] == [None] * len(PARAMETERS)
    given = "profile, run_dir, input_checkpoint, seed, overrides"
    assert f'stages.begin("{path.stem}", {given})' in code(path)
    assert cells(path)[-1].source == "stage.end()"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_tells_type_and_meaning_of_every_parameter(path):
    found = papermill.inspect_notebook(str(path))
    for name in PARAMETERS:
        assert found[name]["inferred_type_name"] != "None" and found[name]["help"], name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_calls_exists(path):
    modules = {}
    for node in ast.walk(ast.parse(code(path))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("npr_lib"):
            for alias in node.names:
                source = importlib.import_module(node.module)
                if not hasattr(source, alias.name):
                    source = importlib.import_module(f"{node.module}.{alias.name}")
                    modules[alias.asname or alias.name] = source
                elif type(getattr(source, alias.name)) is type(ast):
                    modules[alias.asname or alias.name] = getattr(source, alias.name)
    assert modules
    for node in ast.walk(ast.parse(code(path))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            assert name not in modules or hasattr(modules[name], node.attr), f"{name}.{node.attr}"


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_missing_input_names_the_command(path, tmp_path):
    (tmp_path / "own.yaml").write_text("problems: {kind: parts}\nmodel: {path: m}\n")
    parameters, begin = cells(path)[:2]
    names = {}
    exec(parameters.source, names)
    names |= {"profile": str(tmp_path / "own.yaml"), "run_dir": str(tmp_path / "run")}
    with pytest.raises(stages.MissingInputError, match="python -m npr_lib run") as caught:
        exec(begin.source, names)
    notebook = next(one for one in read_notebooks(FOLDER) if one.path == path)
    assert f"{tmp_path / 'run' / notebook.inputs[0]} does not exist" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The whole pipeline, for real, at the smallest sizes."""
    root = tmp_path_factory.mktemp("smoke")
    stream = io.StringIO()
    run_dir = pipeline.run("smoke", root=root, notebooks=FOLDER, stream=stream)
    return root, run_dir, stream.getvalue()


def test_smoke_profile_runs_every_stage(smoke):
    _, run_dir, messages = smoke
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert [entry["status"] for entry in manifest["stages"].values()] == ["done"] * 8
    for stage in STAGES:
        for output in stage.outputs:
            assert (run_dir / output).exists(), output
        assert f"{stage.name}: done" in messages


def test_a_run_leaves_nothing_that_no_notebook_declares(smoke):
    _, run_dir, _ = smoke
    own = {"index.html", "manifest.json", "profile.yaml", "progress.jsonl"}
    own |= {"html", "notebooks", "stages", ".jupyter", ".lock"}
    declared = {output for stage in STAGES for output in stage.outputs}
    for path in run_dir.glob("*"):
        inside = [path] if path.name not in ("rollouts", "metrics") else list(path.iterdir())
        for one in inside:
            name = one.relative_to(run_dir).as_posix()
            assert name in declared or name in own, name


def test_smoke_report_is_whole_and_local(smoke):
    _, run_dir, _ = smoke
    pages = [run_dir / "index.html", *sorted((run_dir / "html").glob("*.html"))]
    assert len(pages) == 1 + len(STAGES)
    for page in pages:
        assert all(map(is_local, sources(page.read_text()))), page
    index = pages[0].read_text()
    for checkpoint in ("seed", "NPR-Zero", "SR-Beta", "NPR-Beta", "SR", "NPR"):
        assert f"<td>{checkpoint}</td>" in index
    page = (run_dir / "html" / "90_report.html").read_text()
    assert page.count('"views":["graph","text"]') >= 3
    assert page.count('"views":["timeline","mask","positions"]') == 1


def test_no_part_of_a_test_problem_was_ever_trained_on(smoke):
    """Down to the resolved sub-expressions, in every table of responses that was trained on."""
    _, run_dir, _ = smoke

    def splits(path):
        problems = pd.read_parquet(path)["problem"].unique()
        found = [task.resolve(task.read(problem)).values() for problem in problems]
        assert found
        return {split_of(text) for texts in found for text in texts}

    rollouts = run_dir / "rollouts"
    trained = [run_dir / "rejection.parquet", *(rollouts / f"{n}.parquet" for n in TRAINED)]
    for path in trained:
        assert splits(path) == {"train"}, path
    for path in rollouts.glob("validation_*.parquet"):
        assert splits(path) == {"validation"}, path
    evaluated = sorted(rollouts.glob("eval_*.parquet"))
    assert len(evaluated) == 6
    for path in evaluated:
        assert splits(path) == {"test"}, path


def test_the_ablations_run_on_the_smoke_run(smoke, tmp_path):
    """Notebook 12 on the run itself, one replicate and two ablations."""
    _, run_dir, _ = smoke
    source, target = FOLDER / "12_ablations.ipynb", tmp_path / "12_ablations.ipynb"
    parameters = {"run_dir": str(run_dir), "out": str(tmp_path / "variants")}
    parameters |= {"seeds": [0], "replicates": [1], "names": ["PAPO", "invalid: filter"]}
    with execution.kernel(tmp_path / ".jupyter", tmp_path / "events"):
        execution.execute(source, target, parameters, REPOSITORY, "ablations")
    tables = json.loads((tmp_path / "variants" / "ablations.json").read_text())
    assert tables["Ablations"]["index"] == ["PAPO", "invalid: filter"]
    for name in ("Accuracy", "Behaviour"):
        assert tables[name]["index"] == [run_dir.name, f"{run_dir.name}, seed 1"]
    assert {p.name for p in (tmp_path / "variants").iterdir() if p.is_dir()} == {
        "PAPO",
        "invalid_filter",
        "replicate",
    }


def test_benchmarks_run_on_the_smoke_run(smoke, tmp_path):
    """Notebook 13 on the run's own models."""
    _, run_dir, _ = smoke
    source, target = FOLDER / "13_benchmarks.ipynb", tmp_path / "13_benchmarks.ipynb"
    parameters = {"run_dir": str(run_dir), "sets": "data/parts_test.jsonl@exact"}
    parameters |= {"k": 2, "limit": 3, "max_tokens": 60}
    with execution.kernel(tmp_path / ".jupyter", tmp_path / "events"):
        execution.execute(source, target, parameters, REPOSITORY, "benchmarks")
    out = run_dir / "benchmarks"
    result = json.loads((out / "results.json").read_text())
    assert list(result["models"]) == ["sr", "npr"] and result["sets"]["parts_test"]["problems"] == 3
    table = pd.read_parquet(out / "responses" / "npr" / "parts_test.parquet")
    assert len(table) == 6 and (out / "benchmarks.html").exists()


def test_an_adopted_seed_is_reported(smoke, tmp_path):
    """Notebooks 00 and 90 where the smoke run's seed is a model that existed before.

    What lies between them sees the same weights as in the run itself.
    """
    _, run_dir, _ = smoke
    own = shutil.copytree(run_dir, tmp_path / "own")
    profile = replace(load_profile("smoke"), model={"path": str(run_dir / "seed")})
    save_profile(profile, own / "profile.yaml")
    parameters = {"run_dir": str(own)}
    with execution.kernel(tmp_path / ".jupyter", tmp_path / "events"):
        for name in ("00_seed", "90_report"):
            target = tmp_path / f"{name}.ipynb"
            execution.execute(FOLDER / target.name, target, parameters, REPOSITORY, name)
            assert "not trained: the log is empty" in target.read_text()
    weights = [(folder / "seed" / "model.safetensors").read_bytes() for folder in (own, run_dir)]
    assert weights[0] == weights[1]


def test_smoke_run_is_not_run_again(smoke):
    root, run_dir, _ = smoke
    before = (run_dir / "manifest.json").read_text()
    stream = io.StringIO()
    pipeline.run("smoke", root=root, notebooks=FOLDER, stream=stream)
    assert stream.getvalue().count("up to date") == len(STAGES)
    assert json.loads((run_dir / "manifest.json").read_text()) == json.loads(before)


def test_smoke_run_can_be_explored(smoke, tmp_path):
    _, run_dir, _ = smoke
    target = tmp_path / "new" / "page.html"
    pipeline.explore(run_dir, target, where="stage == 'npr'")
    page, whole = target.read_text(), (run_dir / "explore.html").read_text()
    assert all(map(is_local, sources(page))) and len(page) < len(whole)
    assert 'href="explore.html"' in (run_dir / "index.html").read_text()
    assert 'href="../explore.html"' in (run_dir / "html" / "20_explore.html").read_text()
    for where, message in (("stage == 'x'", "no response"), ("stge == 1", "stge"), ("a b", "a b")):
        with pytest.raises(WorkbenchError, match=message):
            pipeline.explore(run_dir, target, where)
    prepared = nbformat.read(pipeline.explorer(run_dir, "valid"), as_version=4)
    assert any(str(run_dir) in c.source and 'where = "valid"' in c.source for c in prepared.cells)
