"""Executing one notebook: this interpreter as its kernel, and errors a person can read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError

from npr_lib import WorkbenchError
from npr_lib.files import PACKAGE
from npr_lib.progress import VARIABLE

KERNEL_START_SECONDS = 120


class StageError(WorkbenchError):
    """A stage's notebook failed; the message names the cell, the exception and the notebook."""


def prepare(source: Path, output: Path, parameters: dict) -> None:
    """Copy a notebook with parameters set, without executing it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(source), str(output), parameters, prepare_only=True, progress_bar=False
    )


def execute(source: Path, output: Path, parameters: dict, cwd: Path, what: str) -> None:
    """papermill, with its errors in a line.

    Raises:
        StageError: a cell raised, or the kernel died.
    """
    # Relative paths, since papermill writes them into the notebook, which may be published.
    paths = [os.path.relpath(path) for path in (source, output)]
    try:
        papermill.execute_notebook(
            *paths,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=KERNEL_START_SECONDS,
            cwd=str(cwd),
            coalesce_streams=True,
        )
    except papermill.PapermillExecutionError as error:
        cell = next((line for line in error.source.splitlines() if line.strip()), "")
        raise StageError(
            f"{what} failed in cell {error.cell_index + 1} ({cell.strip()}): "
            f"{error.ename}: {error.evalue}\n  output notebook: {output}"
        ) from error
    except DeadKernelError as error:
        raise StageError(
            f"{what} failed: its process died (out of memory, or killed)\n"
            f"  output notebook: {output}"
        ) from error


@contextmanager
def kernel(folder: Path, events: Path | None = None) -> Iterator[None]:
    """While the block runs, the kernel `python3` is this interpreter, whatever is installed.

    Args:
        folder: for the kernel's specification and IPython's files: nothing in the home
            directory (kernels, start-up scripts, history) plays a part.
        events: the file that `report_progress` writes.
    """
    env = {
        # this very npr_lib, installed or not
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])
        ),
        "IPYTHONDIR": str((folder / "ipython").resolve()),
        # idle OpenMP threads that spin for long take the cores from those that work; a little
        # of it saves waking them
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "2000"),
        # figures as data: the page has plotly's script once
        "PLOTLY_RENDERER": "plotly_mimetype",
        # progress is told to the pipeline, not drawn into the notebook
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }
    if events is not None:
        env[VARIABLE] = str(events.resolve())
    spec = {
        "argv": [
            *(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
            "--log-level=CRITICAL",
        ],
        "display_name": "NPR Workbench",
        "language": "python",
        "env": env,
    }
    path = folder / "kernels" / "python3" / "kernel.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(spec, indent=2), encoding="utf-8")
    before = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(folder.resolve()), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["JUPYTER_PATH"]
        else:
            os.environ["JUPYTER_PATH"] = before
