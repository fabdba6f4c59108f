"""Run the stages of a profile, one after another, each a notebook in a process of its own.

    run_dir = pipeline.run("tiny")        # reports/tiny; call it again: done stages are skipped

Killed at any moment, the next call goes on at the first stage that isn't done: a stage's record
is written only after its success, and what an unfinished stage left is removed before it is run
again, but for the checkpoints of its training, which goes on from them. A run's folder belongs to
one process at a time.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil

from npr_lib import WorkbenchError
from npr_lib.files import TRAINING
from npr_lib.profiles.profile import load_profile, save_profile
from npr_lib.progress import VARIABLE
from npr_lib.workbench import manifest, pages, progress
from npr_lib.workbench.notebook import execute, kernel, prepare
from npr_lib.workbench.stages import (
    NOT_DONE,
    ON_REQUEST,
    REPOSITORY,
    STAGES,
    Stage,
    fingerprint,
    mark_done,
    record_path,
    why_run,
)

NOTEBOOKS = REPOSITORY / "notebooks"
EXPLORER = "20_explore.ipynb"
ORPHAN_SECONDS = 30


class RunError(WorkbenchError):
    """A run that can't be started or found."""


@dataclass(frozen=True, slots=True)
class Job:
    """What all stages of one run share."""

    run_dir: Path
    profile: dict
    root: Path
    notebooks: Path
    stream: TextIO

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


def run(
    profile: str | Path = "tiny",
    run: str | None = None,
    from_stage: str | None = None,
    overrides: Iterable[str] = (),
    *,
    root: Path = REPOSITORY,
    notebooks: Path | None = None,
    stages: Sequence[Stage] = STAGES,
    stream: TextIO | None = None,
) -> Path:
    """Run every stage that is not done, then write the index.

    Args:
        profile: name or path of a profile.
        run: name of the run, that is of its folder in `root/reports`; None: the profile's.
        from_stage: run this stage and those after it even if they are done.
        overrides: `KEY=VALUE` changes of the profile.
        root: where `reports` is; the working directory of the notebooks.
        notebooks: folder of the notebooks; None: `root/notebooks`.
        stages: the table.
        stream: for progress and messages; None: standard error.

    Returns:
        The run's folder.

    Raises:
        WorkbenchError: a bad argument (ProfileError, RunError) or a failed stage (StageError).
    """
    overrides = list(overrides)
    settings = load_profile(profile, overrides)
    first = len(stages) if from_stage is None else stage_index(from_stage, stages)
    run_dir = root / "reports" / _checked_name(run or Path(profile).stem)
    run_dir.mkdir(parents=True, exist_ok=True)
    job = Job(run_dir, settings, root, notebooks or root / "notebooks", stream or sys.stderr)
    with _locked(run_dir):
        _wait_for_orphans(run_dir)
        save_profile(settings, run_dir / "profile.yaml")
        given = _relative(Path(profile), root) if Path(profile).suffix else str(profile)
        _begin_manifest(job, given, overrides, stages)
        for index, stage in enumerate(stages):
            title = f"[{index + 1}/{len(stages)}] {stage.name}"
            _bring_up_to_date(job, stage, title, forced=index >= first)
        report(run_dir)
    return run_dir


def stage_index(name: str, stages: Sequence[Stage] = STAGES) -> int:
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
    for name in (*manifest.read(run_dir)["stages"], *(stage.name for stage in ON_REQUEST)):
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
    from npr_lib.analysis import (
        tables as run_report,  # imports transformers, which no other command needs
    )
    from npr_lib.viz import page

    frame = run_report.read_responses(run_dir, where=where)
    target.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = run_report.read_tokenizer(run_dir)
    target.write_text(page(frame, tokenizer, run_dir.resolve().name), encoding="utf-8")


def _bring_up_to_date(job: Job, stage: Stage, title: str, forced: bool) -> None:
    """Run a stage unless it is done, and record it.

    Raises:
        StageError: its notebook failed.
    """
    source = job.notebooks / stage.notebook
    parameters = {"seed": job.profile["random_seed"], "input_checkpoint": stage.checkpoint}
    print_of = fingerprint(stage, job.profile, parameters, job.run_dir, source)
    reason = "asked for" if forced else why_run(stage, job.run_dir, print_of)
    if reason is None:
        job.say(f"{title}: up to date")
        return
    job.say(f"{title}: {reason}")
    _remove_results(job.run_dir, stage, unfinished=reason == NOT_DONE)
    started = time.time()
    _record(job.run_dir, stage, status="running")
    try:
        _execute(job, stage, source, title)
        mark_done(stage, job.run_dir, print_of)
    except BaseException as error:
        status = "failed" if isinstance(error, WorkbenchError) else "interrupted"
        _record(job.run_dir, stage, status=status, seconds=time.time() - started)
        pages.write_index(job.run_dir)
        raise
    _record(job.run_dir, stage, status="done", seconds=time.time() - started)
    _write_page(job.run_dir / "notebooks" / stage.notebook, job.run_dir)
    pages.write_index(job.run_dir)
    job.say(f"{title}: done in {progress.duration(time.time() - started)}")


def _execute(job: Job, stage: Stage, source: Path, title: str) -> None:
    """Execute a stage's notebook with this Python, showing its progress."""
    output = job.run_dir / "notebooks" / stage.notebook
    output.parent.mkdir(exist_ok=True)
    events = job.run_dir / "progress.jsonl"
    events.unlink(missing_ok=True)
    parameters = {
        "profile": _relative(job.run_dir / "profile.yaml", job.root),
        "run_dir": _relative(job.run_dir, job.root),
        "input_checkpoint": stage.checkpoint
        and _relative(job.run_dir / stage.checkpoint, job.root),
        "seed": job.profile["random_seed"],
    }
    with kernel(job.run_dir / ".jupyter", events), progress.watch(events, title, job.stream):
        execute(source, output, parameters, job.root, f"stage {stage.name}")


def _relative(path: Path, root: Path) -> str:
    """Relative to the notebooks' working directory when inside it, so that no page tells where."""
    path, root = path.resolve(), root.resolve()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _write_page(notebook: Path, run_dir: Path) -> None:
    folder = run_dir / "html"
    folder.mkdir(exist_ok=True)
    pages.write_notebook(notebook, folder / f"{notebook.stem}.html")


def _remove_results(run_dir: Path, stage: Stage, unfinished: bool) -> None:
    """Remove a stage's record first, then everything it made.

    unfinished: it was interrupted or never run; its training folders are left to it.
    """
    record_path(run_dir, stage).unlink(missing_ok=True)
    made = [f"notebooks/{stage.notebook}", f"html/{stage.name}.html", *stage.outputs]
    for path in (run_dir / name for name in made):
        if unfinished and (path / TRAINING).exists():
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _begin_manifest(job: Job, profile: str, overrides: list[str], stages: Sequence[Stage]) -> None:
    """Describe the run anew, keeping what is known of its stages, in the table's order."""
    known = manifest.read(job.run_dir).get("stages", {})
    given = {key.strip(): value for key, _, value in (text.partition("=") for text in overrides)}
    seeds = {"run": job.profile["random_seed"]}
    described = manifest.describe(job.root, job.run_dir.name, profile, given, seeds)
    described["stages"] = {stage.name: known[stage.name] for stage in stages if stage.name in known}
    manifest.write(job.run_dir, described)


def _record(run_dir: Path, stage: Stage, status: str, seconds: float | None = None) -> None:
    """Note the start ("running") or the end of a stage in the manifest.

    `runs` holds every attempt; a run that was killed leaves one without an end.
    """
    described = manifest.read(run_dir)
    entry = described["stages"].setdefault(stage.name, {"runs": []})
    if status == "running":
        commit = described["git"]["commit"]
        entry["runs"].append({"status": status, "start": manifest.now(), "commit": commit})
    else:
        ended = {"status": status, "end": manifest.now(), "seconds": round(seconds, 1)}
        entry["runs"][-1] |= ended
    entry |= {"end": None, "seconds": None} | entry["runs"][-1]
    manifest.write(run_dir, described)


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise RunError(f"a run's name is letters, digits, '.', '_' and '-', not {name!r}")
    return name


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder; the system lets go of it however this process ends."""
    with (run_dir / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process is working on {run_dir}") from None
        yield


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
