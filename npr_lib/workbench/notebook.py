"""Notebooks are stages: what one says of itself.

A stage is a notebook whose metadata hold, under `npr`:

    title        what the report calls it
    inputs       paths in the run's folder that it starts from (patterns: rollouts/eval_*.parquet)
    outputs      paths that it makes
    sections     of the profile that it reads; any other is out of its sight
    checkpoint   the input that `input_checkpoint` stands for, if it starts from a model
    run          false: only when asked for (`papermill`), never by a run
    lock         false: it only looks, and may stay open beside a run

Every notebook of this kind in the folder takes part in a run, in the order of the names, as do
those that a profile names in `notebooks`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npr_lib import WorkbenchError
from npr_lib.analysis.ladder import BASELINES
from npr_lib.profiles.sections import Profile


@dataclass(frozen=True, slots=True)
class Notebook:
    """A stage as its notebook describes it; paths are relative to the run's folder."""

    path: Path
    title: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    checkpoint: str | None = None
    run: bool = True
    lock: bool = True

    @property
    def name(self) -> str:
        return self.path.stem


def read_notebook(path: Path) -> Notebook | None:
    """What a notebook says of itself; None if it is no stage.

    Raises:
        WorkbenchError: what it says can't be understood.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("npr")
    except (OSError, ValueError, KeyError) as error:
        raise WorkbenchError(f"{path} is not a notebook: {error}") from error
    if said is None:
        return None
    known = {field.name for field in dataclasses.fields(Notebook)} - {"path"}
    if unknown := sorted(set(said) - known):
        raise WorkbenchError(
            f"{path}: metadata.npr has {', '.join(unknown)}; known: {sorted(known)}"
        )
    sections = {field.name for field in dataclasses.fields(Profile)}
    if unknown := sorted(set(said.get("sections", ())) - sections):
        raise WorkbenchError(f"{path}: a profile has no section {', '.join(unknown)}")
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in said.items()
    }
    return Notebook(path, **fields)


def read_notebooks(
    folder: Path, more: Iterable[str] = (), baselines: bool = True
) -> list[Notebook]:
    """Every stage of a folder, and of the paths in `more`, in the order of their names; baselines:
    with what they take and make of the sequential baselines."""
    paths = {path.stem: path for path in [*folder.glob("*.ipynb"), *map(Path, more)]}
    found = (read_notebook(paths[name]) for name in sorted(paths))
    every = [notebook for notebook in found if notebook is not None]
    return every if baselines else [_without_baselines(notebook) for notebook in every]


def _without_baselines(notebook: Notebook) -> Notebook:
    def kept(paths: Iterable[str]) -> tuple[str, ...]:
        stems = {path: Path(path).stem.removeprefix("eval_") for path in paths}
        return tuple(path for path, stem in stems.items() if stem not in BASELINES)

    outputs = kept(notebook.outputs)
    return dataclasses.replace(notebook, inputs=kept(notebook.inputs), outputs=outputs)
