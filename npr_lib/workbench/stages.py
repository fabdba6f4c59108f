"""How a stage begins and ends in its notebook, and what makes it out of date.

A stage is done when `stages/<name>.json` in the run's
folder holds the identity that it has now, and its outputs are the ones it left. `begin` and
`Session.end`, its first and its last call, see to that, whoever runs the notebook.
"""

from __future__ import annotations

import ast
import atexit
import dataclasses
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from npr_lib import WorkbenchError
from npr_lib.files import REPOSITORY, digest, model_digest, relative, write_json
from npr_lib.identity import closure, fingerprint, imported
from npr_lib.profiles.profile import ProfileError, load_profile, save_profile
from npr_lib.profiles.sections import Profile
from npr_lib.profiles.stage import Stage
from npr_lib.progress import VARIABLE
from npr_lib.tasks import problems
from npr_lib.workbench import manifest
from npr_lib.workbench.notebook import Notebook, read_notebooks

NOTEBOOKS = REPOSITORY / "notebooks"
NOT_DONE = "not done yet"
PARTS = ("parameters", "sections", "functions", "inputs", "notebook", "source")
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # as a profile names it


class RunError(WorkbenchError):
    """A run that can't be started or found."""


class MissingInputError(WorkbenchError):
    """What a stage starts from is not there; the message names the command that makes it."""


# ---------------------------------------------------------------- beginning and ending


@dataclass(frozen=True, slots=True)
class Session(Stage):
    """A stage at work in its notebook. Give it to every function; `end()` is the last call."""

    notebook: Notebook | None = None
    identity: dict[str, Any] | None = None
    _lock: TextIO | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is a stage like any other: this one keeps the lock."""
        return Stage, (self.name, self.profile, self.run_dir, self.seed, self.checkpoint)

    def end(self) -> None:
        """Record the stage as done.

        Raises:
            WorkbenchError: an output that the stage declares does not exist.
        """
        assert self.notebook is not None and self.identity is not None, "begun by `begin`"
        mark_done(self.notebook, self.run_dir, self.identity)
        if self._lock is not None:  # on its own: else the run keeps the manifest
            manifest.record(self.run_dir, self.notebook, "done")
            self._lock.close()
            _open.pop(self.run_dir, None)


_open: dict[Path, Session] = {}  # begun in this process, on their own


def begin(
    name: str,
    profile: str | Path | None = None,
    run_dir: str | Path | None = None,
    input_checkpoint: str | Path | None = None,
    seed: int | None = None,
    overrides: Sequence[str] | None = None,
    folder: Path = NOTEBOOKS,
) -> Session:
    """The first call of every stage notebook: read the profile, check that the inputs exist.

    Args:
        name: the stage, such as `01_npr_zero`.
        profile: name or path of a profile; None: the run's own, or `tiny` for a new run.
        run_dir: the run's folder; None: `reports/<profile>`.
        input_checkpoint: model folder to start from; None: the one in `run_dir`.
        seed: None: the profile's `random_seed`.
        overrides: `KEY=VALUE` changes of the profile.

    Raises:
        MissingInputError: an input does not exist.
        ProfileError: the profile can't be read, or is not the run's.
        RunError: there is no such stage, or another process works on the run.
    """
    overrides = overrides or ()
    run = _run_folder(run_dir, profile)
    settings = _settings(profile, run, overrides)
    notebooks = read_notebooks(folder, settings.notebooks, settings.baselines)
    notebook = next((one for one in notebooks if one.name == name), None)
    if notebook is None:
        known = ", ".join(one.name for one in notebooks)
        raise RunError(
            f"no stage is called {name!r}; there are: {known}. A notebook of your own is one if "
            f"it lies in {relative(folder)} (or the profile's `notebooks` names it) and its "
            "metadata say so: docs/recipes.md"
        )
    _check_inputs(notebook, run, input_checkpoint, notebooks, profile)
    seed = settings.random_seed if seed is None else seed
    checkpoint = Path(input_checkpoint) if input_checkpoint is not None else None
    if checkpoint is None and notebook.checkpoint is not None:
        checkpoint = run / notebook.checkpoint
    for sub in ("rollouts", "metrics", "notebooks", "stages"):
        (run / sub).mkdir(parents=True, exist_ok=True)
    lock = _begin_alone(notebook, run, settings, profile, overrides) if notebook.lock else None
    identity = stage_identity(notebook, settings, run, seed, checkpoint)
    seen = Visible(settings, notebook)
    # `Visible` stands for the profile, and hands out what a notebook may read of it
    session = Session(name, seen, run, seed, checkpoint, notebook, identity, lock)  # type: ignore[arg-type]
    if lock is not None:
        _open[run] = session
    return session


def _run_folder(run_dir: str | Path | None, profile: str | Path | None) -> Path:
    """Relative to where the notebook runs, or else to the repository: JupyterLab runs one where it
    lies, papermill where it is called, and both mean the same run."""
    if run_dir is None:
        return REPOSITORY / "reports" / ("tiny" if profile is None else Path(profile).stem)
    run = Path(run_dir)
    return run if run.is_absolute() or run.exists() else REPOSITORY / run


def _settings(profile: str | Path | None, run: Path, overrides: Sequence[str]) -> Profile:
    """The profile that a stage of this run goes by. A run has one: naming the profile that it was
    made from means the run's own, with the changes that were made for it."""
    own = run / "profile.yaml"
    if not own.exists():
        return load_profile("tiny" if profile is None else profile, overrides)
    settings = load_profile(own, overrides)
    if profile is None or Path(profile).resolve() == own.resolve():
        return settings
    made_from = manifest.read(run).get("profile")
    if str(profile) == made_from or load_profile(profile, overrides) == settings:
        return settings
    raise ProfileError(
        f"{relative(run)} is a run of the profile {made_from!r}, not of {str(profile)!r}: leave "
        "`profile` out to go by the run's own, or choose another run_dir"
    )


def _check_inputs(
    notebook: Notebook,
    run: Path,
    given: str | Path | None,
    notebooks: Sequence[Notebook],
    profile: str | Path | None,
) -> None:
    if given is not None and not Path(given).is_dir():
        raise MissingInputError(f"input_checkpoint {given} is not a model folder")
    for pattern in notebook.inputs:
        replaced = pattern == notebook.checkpoint and given is not None
        if not replaced and not list(run.glob(pattern)):
            raise MissingInputError(_how_to_make(pattern, run, notebooks, profile))


def _how_to_make(
    pattern: str, run: Path, notebooks: Sequence[Notebook], profile: str | Path | None
) -> str:
    """What is missing, and the one command that makes it."""
    missing = f"{relative(run / pattern)} does not exist"
    if not run.exists():
        missing += f" (there is no run at {run.resolve()})"
    if not any(pattern in notebook.outputs for notebook in notebooks):
        return missing
    own = run / "profile.yaml"
    chosen = relative(own) if own.exists() else profile or "tiny"
    return f"{missing}; make it with: python -m npr_lib run --profile {chosen} --run {run.name}"


def _begin_alone(
    notebook: Notebook,
    run: Path,
    settings: Profile,
    profile: str | Path | None,
    overrides: Sequence[str],
) -> TextIO | None:
    """Where no run has started this notebook: take the run's lock, and do what a run does at its
    beginning. Returns the lock, None if a run holds it for us."""
    if os.environ.get(VARIABLE) == str((run / "progress.jsonl").resolve()):
        return None
    if (earlier := _open.pop(run, None)) is not None and earlier._lock is not None:
        earlier._lock.close()  # begun once more in the same kernel
    lock = take_lock(run)
    if not (run / "profile.yaml").exists():
        save_profile(settings, run / "profile.yaml")
    if not manifest.read(run):
        made_from, seed = str(profile or "tiny"), settings.random_seed
        described = manifest.describe(REPOSITORY, run.name, made_from, overrides, seed)
        manifest.write(run, {**described, "stages": {}})
    manifest.record(run, notebook, "running")
    atexit.register(_left_open, run)
    return lock


def _left_open(run: Path) -> None:
    """A notebook that ended without `end()` was interrupted or failed."""
    if (session := _open.pop(run, None)) is not None and session.notebook is not None:
        manifest.record(run, session.notebook, "interrupted")


def take_lock(run: Path) -> TextIO:
    """Hold the run's folder; the system lets go of it however this process ends.

    Raises:
        RunError: another process holds it.
    """
    file = (run / ".lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunError(f"another process is working on {relative(run)}") from None
    return file


class Visible:
    """A profile of which only the sections that a notebook declares can be read."""

    def __init__(self, profile: Profile, notebook: Notebook) -> None:
        self._profile, self._notebook = profile, notebook

    def __getattr__(self, section: str) -> Any:
        if section.startswith("__") or section in (*self._notebook.sections, "random_seed"):
            return getattr(self._profile, section)
        raise WorkbenchError(
            f"{self._notebook.name} reads the section {section!r} of the profile, which its "
            f"metadata don't declare: add it to metadata.npr.sections of {self._notebook.path.name}"
        )

    def __reduce__(self) -> tuple:
        return Visible, (self._profile, self._notebook)


# ---------------------------------------------------------------- what makes a stage out of date


def stage_identity(
    notebook: Notebook, profile: Profile, run: Path, seed: int, checkpoint: Path | None
) -> dict[str, Any]:
    """What a stage's result depends on, part by part: parameters and sections as they are; digests
    of the inputs, of the functions that the sections name, of the notebook's cells and of the
    source of all that they import. Equal identities mean: don't run again."""
    cells = json.loads(notebook.path.read_text(encoding="utf-8"))["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    started = notebook.checkpoint if checkpoint is not None else None  # the input it stands for
    inputs = {pattern: _content(run, pattern) for pattern in notebook.inputs if pattern != started}
    if checkpoint is not None and started is not None:
        inputs[started] = model_digest(checkpoint)
    if "problems" in notebook.sections:
        inputs |= {"problems": problems.identity(profile.problems)}
    plain = json.loads(json.dumps(dataclasses.asdict(profile)))
    sections = {name: plain[name] for name in notebook.sections}
    identity = {
        "parameters": {"seed": seed},
        "sections": sections,
        "functions": {
            name: fingerprint(closure(name.partition(":")[0])) for name in named_functions(sections)
        },
        "inputs": inputs,
        "notebook": fingerprint(sources),
        "source": _source(sources),
    }
    return json.loads(json.dumps(identity))


def named_functions(section: Any) -> Iterator[str]:
    """Every function that a section, as plain data, names: `module:function`."""
    if isinstance(section, dict):
        for value in section.values():
            yield from named_functions(value)
    elif isinstance(section, str) and FUNCTION.fullmatch(section):
        yield section


def _source(cells: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The closure of what a notebook's code imports."""
    names: list[str] = []
    for kind, text in cells:
        if kind == "code":
            lines = (line for line in text.split("\n") if line.lstrip()[:1] not in ("%", "!"))
            names += imported(ast.parse("\n".join(lines)))
    return closure(*names)


def _content(run: Path, pattern: str) -> Any:
    """Digests of what a pattern stands for; of a model folder, what it decodes with."""
    found = sorted(run.glob(pattern))
    digests = {
        path.relative_to(run).as_posix(): model_digest(path) if path.is_dir() else digest(path)
        for path in found
    }
    return digests or None


def record_path(run: Path, notebook: Notebook) -> Path:
    return run / "stages" / f"{notebook.name}.json"


def why_run(notebook: Notebook, run: Path, now: Mapping[str, Any]) -> str | None:
    """Why a stage has to run, in words; None when it is done and nothing has changed."""
    path = record_path(run, notebook)
    if not path.exists():
        return NOT_DONE
    record = json.loads(path.read_text(encoding="utf-8"))
    then = record.get("identity", {})
    for part in PARTS:
        old, new = then.get(part), now[part]
        if old == new:
            continue
        if not isinstance(old, dict):
            return f"changed {part}"
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        return f"changed {part}: {', '.join(changed)}"
    for pattern, content in record["outputs"].items():
        if _content(run, pattern) != content:
            return f"{pattern} is not what the stage left"
    return None


def mark_done(notebook: Notebook, run: Path, identity: Mapping[str, Any]) -> None:
    """Record a stage as done, atomically.

    Raises:
        WorkbenchError: an output that the stage declares does not exist.
    """
    outputs = {pattern: _content(run, pattern) for pattern in notebook.outputs}
    if missing := [pattern for pattern, content in outputs.items() if content is None]:
        raise WorkbenchError(f"stage {notebook.name} ended without making {', '.join(missing)}")
    path = record_path(run, notebook)
    path.parent.mkdir(exist_ok=True)
    record = {"stage": notebook.name, "identity": identity, "outputs": outputs}
    write_json(path, {**record, "ended": time.time()})
