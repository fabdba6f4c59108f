"""Run the stages of a profile, one after another, each a notebook in a process of its own.

    run_dir = pipeline.run("tiny")        # reports/tiny; call it again: done stages are skipped

Killed at any moment, the next call goes on at the first stage that isn't done: a stage's record
is written only after its success, and a training goes on from its checkpoints. What a stage left
before stays where it is until the stage has made it anew. A run's folder belongs to one process at
a time.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TextIO

import psutil

from npr_lib import WorkbenchError
from npr_lib.files import REPOSITORY, relative
from npr_lib.identity import resolve
from npr_lib.profiles.profile import load_profile, save_profile
from npr_lib.profiles.sections import Profile
from npr_lib.progress import VARIABLE, duration
from npr_lib.workbench import manifest, pages, progress
from npr_lib.workbench.execution import execute, kernel, prepare
from npr_lib.workbench.notebook import Notebook, read_notebooks
from npr_lib.workbench.stages import (
    NOTEBOOKS,
    RunError,
    named_functions,
    record_path,
    stage_identity,
    take_lock,
    why_run,
)

EXPLORER = "20_explore.ipynb"
ORPHAN_SECONDS = 30
SKIPS_BASELINES = {"sr", "sr_beta"}  # as --skip names them, among stages


@dataclass(frozen=True, slots=True)
class Job:
    """What all stages of one run share."""

    run_dir: Path
    profile: Profile
    root: Path
    notebooks: list[Notebook]
    asked: set[str]
    stream: TextIO

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


def run(
    profile: str | Path | None = None,
    run: str | None = None,
    from_stage: str | None = None,
    overrides: Iterable[str] = (),
    *,
    smoke: bool = False,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    dry: bool = False,
    root: Path = REPOSITORY,
    notebooks: Path | None = None,
    stream: TextIO | None = None,
) -> Path:
    """Run every stage that is not done, then write the index.

    Args:
        profile: name or path of a profile; None: tiny.
        run: name of the run, that is of its folder in `root/reports`; None: the profile's.
        from_stage: run this stage and those after it even if they are done.
        overrides: `KEY=VALUE` changes of the profile.
        smoke: the profile's smallest sizes; the run is then named for it.
        only: these stages and no others, as far as they are not done; none: every one.
        skip: not these stages. `sr`: not the sequential baselines, which is `baselines: false`.
        dry: only say which stages would run, and why; nothing is written.
        root: where `reports` is; the working directory of the notebooks.
        notebooks: folder of the notebooks; None: `root/notebooks`.
        stream: for progress and messages; None: standard error.

    Returns:
        The run's folder.

    Raises:
        WorkbenchError: a bad argument (ProfileError, RunError) or a failed stage (StageError).
    """
    profile = "tiny" if profile is None else profile
    skip = set(skip)
    overrides = [*overrides, *(["baselines=false"] if skip & SKIPS_BASELINES else [])]
    settings = load_profile(profile, overrides, smoke)
    for name in named_functions(dataclasses.asdict(settings)):
        if not name.startswith("npr_lib."):  # ours are there, and seconds to import
            resolve(name)
    run_dir = root / "reports" / _checked_name(run or Path(profile).stem + "-smoke" * smoke)
    folder = notebooks or root / "notebooks"
    stages = read_notebooks(folder, settings.notebooks, settings.baselines)
    stages = [notebook for notebook in stages if notebook.run]
    first = len(stages) if from_stage is None else stage_index(from_stage, stages)
    asked = _asked(stages, only, skip - SKIPS_BASELINES)
    _check_inputs(run_dir, stages, asked)
    job = Job(run_dir, settings, root, stages, asked, stream or sys.stderr)
    sections = _sections(job, first)
    if dry:
        _tell(job, first)
        if "problems" in sections:  # the library's own stages
            from npr_lib.workbench import plan  # transformers and TRL, seconds

            job.say(plan.plan(settings, sections, str(profile)))
        return run_dir
    if "problems" in sections:
        from npr_lib.workbench import preflight

        preflight.check(settings, sections, run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run_dir} can't be made: {error.strerror}") from error
    with take_lock(run_dir):
        _wait_for_orphans(run_dir)
        save_profile(settings, run_dir / "profile.yaml")
        given = relative(Path(profile), root) if Path(profile).suffix else str(profile)
        _begin_manifest(job, given, overrides)
        for index, notebook in enumerate(stages):
            if notebook.name not in asked:
                continue
            title = f"[{index + 1}/{len(stages)}] {notebook.name}"
            _bring_up_to_date(job, notebook, title, forced=index >= first)
        report(run_dir)
    return run_dir


def _asked(stages: Sequence[Notebook], only: Iterable[str], skip: Iterable[str]) -> set[str]:
    """The names of the stages that take part. RunError for one that there isn't."""
    named = {stages[stage_index(name, stages)].name for name in only}
    without = {stages[stage_index(name, stages)].name for name in skip}
    return (named or {stage.name for stage in stages}) - without


def _check_inputs(run_dir: Path, stages: Sequence[Notebook], asked: set[str]) -> None:
    """RunError where a stage needs what one that is left out would make."""
    missing: dict[str, str] = {}
    for notebook in stages:
        if notebook.name not in asked:
            gone = (path for path in notebook.outputs if not list(run_dir.glob(path)))
            missing |= dict.fromkeys(gone, notebook.name)
        elif needed := [path for path in notebook.inputs if path in missing]:
            maker = missing[needed[0]]
            raise RunError(
                f"{notebook.name} needs {needed[0]}, which {maker} makes and has not made yet: "
                f"leave both in, or {notebook.name} out too"
            )


def _sections(job: Job, first: int) -> set[str]:
    """What the stages that would run read of the profile."""
    due = (
        notebook.sections
        for index, notebook in enumerate(job.notebooks)
        if notebook.name in job.asked
        and (index >= first or why_run(notebook, job.run_dir, _now(job, notebook)) is not None)
    )
    return set(chain.from_iterable(due))


def _tell(job: Job, first: int) -> None:
    """What a run would do. A stage whose inputs come from one that would run would run too, if they
    change by it."""
    made: dict[str, str] = {}
    for index, notebook in enumerate(job.notebooks):
        if notebook.name not in job.asked:
            job.say(f"{notebook.name}: left out")
            continue
        reason = (
            "asked for" if index >= first else why_run(notebook, job.run_dir, _now(job, notebook))
        )
        after = [made[path] for path in notebook.inputs if path in made]
        if reason is None and after:
            reason = f"if {', '.join(sorted(set(after)))} changes what it starts from"
        if reason is not None:
            made |= dict.fromkeys(notebook.outputs, notebook.name)
        job.say(f"{notebook.name}: {reason or 'up to date'}")


def _now(job: Job, notebook: Notebook) -> dict:
    named = notebook.checkpoint
    checkpoint = job.run_dir / named if named is not None else None
    seed = job.profile.random_seed
    return stage_identity(notebook, job.profile, job.run_dir, seed, checkpoint)


def stage_index(name: str, stages: Sequence[Notebook]) -> int:
    """Position of a stage, by its name (`03_npr`) or number (`03`).

    Raises:
        RunError: there is no such stage.
    """
    for index, stage in enumerate(stages):
        if name in (stage.name, stage.name.split("_")[0]):
            return index
    known = ", ".join(stage.name for stage in stages)
    raise RunError(f"unknown stage {name!r}; there are: {known}")


def find_run(name: str | Path, root: Path = REPOSITORY) -> Path:
    """The folder of an existing run, by its name or path.

    Raises:
        RunError: there is no such run.
    """
    for folder in (root / "reports" / name, Path(name)):
        if (folder / "manifest.json").is_file():
            return folder
    known = sorted(path.parent.name for path in (root / "reports").glob("*/manifest.json"))
    raise RunError(
        f"there is no run {str(name)!r}; there are: {', '.join(known)}"
        if known
        else f"there is no run {str(name)!r}; make one with: python -m npr_lib run --profile tiny"
    )


def report(run_dir: Path) -> Path:
    """Write the HTML of every executed notebook of a run anew, and its index; returns the index.

    A notebook that no run executes by itself is among them when its result lies beside the others.
    """
    asked_for = [notebook.name for notebook in read_notebooks(NOTEBOOKS) if not notebook.run]
    for name in dict.fromkeys((*manifest.read(run_dir)["stages"], *asked_for)):
        notebook = run_dir / "notebooks" / f"{name}.ipynb"
        if notebook.exists():
            _write_page(notebook, run_dir)
    return pages.write_index(run_dir)


def explorer(run_dir: Path, where: str = "", notebooks: Path = NOTEBOOKS) -> Path:
    """Put a copy of the explorer notebook, set to this run, into the run; returns its path."""
    target = run_dir / "notebooks" / "explore.ipynb"
    parameters = {"profile": str((run_dir / "profile.yaml").resolve()), "where": where}
    parameters["run_dir"] = str(run_dir.resolve())
    prepare(notebooks / EXPLORER, target, parameters)
    return target


def explore(run_dir: Path, target: Path, where: str = "") -> None:
    """Write the explorer of a run's evaluation as one page that needs no other file.

    Raises:
        WorkbenchError: the run has no evaluation, or `where` chooses nothing.
    """
    from npr_lib.analysis import reading  # imports transformers, which no other command needs
    from npr_lib.viz import page

    frame = reading.read_responses(run_dir, where=where)
    tokenizer = reading.read_tokenizer(run_dir)
    _write_text(target, page(frame, tokenizer, run_dir.resolve().name))


def explore_texts(
    file: Path, target: Path, tokenizer: Path | None, column: str | None, where: str = ""
) -> None:
    """Write the explorer of responses made elsewhere as one page (`viz.read_texts`).

    Raises:
        WorkbenchError: the file can't be read, or `where` chooses nothing.
    """
    from npr_lib.analysis import reading
    from npr_lib.viz import page, read_texts

    frame = reading.chosen(read_texts(file, tokenizer, column), where, str(file))
    _write_text(target, page(frame, title=file.name))


def _write_text(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def _bring_up_to_date(job: Job, notebook: Notebook, title: str, forced: bool) -> None:
    """Run a stage unless it is done, and record it.

    Raises:
        StageError: its notebook failed.
    """
    reason = "asked for" if forced else why_run(notebook, job.run_dir, _now(job, notebook))
    if reason is None:
        manifest.confirm(job.run_dir, notebook)
        job.say(f"{title}: up to date")
        return
    job.say(f"{title}: {reason}")
    record, started = record_path(job.run_dir, notebook), time.time()
    before = record.read_text(encoding="utf-8") if record.exists() else ""
    manifest.record(job.run_dir, notebook, "running")
    try:
        _execute(job, notebook, title)
        if not record.exists() or record.read_text(encoding="utf-8") == before:
            raise WorkbenchError(
                f"stage {notebook.name} didn't record that it is done: its last cell should be "
                "`stage.end()`"
            )
    except BaseException as error:
        status = "failed" if isinstance(error, WorkbenchError) else "interrupted"
        manifest.record(job.run_dir, notebook, status, time.time() - started)
        pages.write_index(job.run_dir)
        raise
    manifest.record(job.run_dir, notebook, "done", time.time() - started)
    _write_page(job.run_dir / "notebooks" / notebook.path.name, job.run_dir)
    pages.write_index(job.run_dir)
    job.say(f"{title}: done in {duration(time.time() - started)}")


def _execute(job: Job, notebook: Notebook, title: str) -> None:
    """Execute a stage's notebook with this Python, showing its progress."""
    output = job.run_dir / "notebooks" / notebook.path.name
    output.parent.mkdir(exist_ok=True)
    events = job.run_dir / "progress.jsonl"
    events.unlink(missing_ok=True)
    parameters = {
        "profile": relative(job.run_dir / "profile.yaml", job.root),
        "run_dir": relative(job.run_dir, job.root),
    }
    with kernel(job.run_dir / ".jupyter", events), progress.watch(events, title, job.stream):
        execute(notebook.path, output, parameters, job.root, f"stage {notebook.name}")


def _write_page(notebook: Path, run_dir: Path) -> None:
    folder = run_dir / "html"
    folder.mkdir(exist_ok=True)
    pages.write_notebook(notebook, folder / f"{notebook.stem}.html")


def _begin_manifest(job: Job, profile: str, overrides: list[str]) -> None:
    """Describe the run anew, keeping what is known of its stages, in their order."""
    known = manifest.read(job.run_dir).get("stages", {})
    seed = job.profile.random_seed
    described = manifest.describe(job.root, job.run_dir.name, profile, overrides, seed)
    names = [notebook.name for notebook in job.notebooks]
    described["stages"] = {name: known[name] for name in names if name in known}
    manifest.write(job.run_dir, described)


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise RunError(f"a run's name is letters, digits, '.', '_' and '-', not {name!r}")
    return name


def _wait_for_orphans(run_dir: Path) -> None:
    """Wait until the stage of a run that was killed has noticed it and ended (about a second)."""
    events = str((run_dir / "progress.jsonl").resolve())
    deadline = time.monotonic() + ORPHAN_SECONDS
    while orphans := [
        process.info["pid"]
        for process in psutil.process_iter(["pid", "environ"])
        if (process.info["environ"] or {}).get(VARIABLE) == events
        and process.info["pid"] != os.getpid()
    ]:
        if time.monotonic() > deadline:
            raise RunError(f"process {orphans[0]} of an earlier run still works on {run_dir}")
        time.sleep(0.2)
