"""Executing one notebook: this interpreter as its kernel, and errors a person can read."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.execute import ERROR_MARKER_TAG

from npr_lib import WorkbenchError
from npr_lib.files import PACKAGE, relative
from npr_lib.progress import VARIABLE

KERNEL_START_SECONDS = 120
CHAINED = re.compile(r"^(?:The above exception was|During handling of the above)", re.MULTILINE)
COLOURS = re.compile(r"\x1b\[[\d;]*m")
# Of IPython: `Cell In[4], line 2, in reward(rollout)`, `File ~/rewards.py:7, in reward(rollout)`.
# Of Python: `  File "/home/me/rewards.py", line 7, in reward`.
FRAME = re.compile(
    r"^(?:Cell In\[(?P<count>\d+)\], line (?P<line>\d+)|File (?P<path>[^\n\"]+):(?P<row>\d+)"
    r'|\s*File "(?P<file>[^"\n]+)", line (?P<at>\d+))(?:, in (?P<function>[^\s(]+))?',
    re.MULTILINE,
)


class StageError(WorkbenchError):
    """A stage's notebook failed; the message names the cell, the exception, the line of one's own
    that it was raised in, and the notebook."""


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
        place = raised_at(error.traceback, json.loads(output.read_text(encoding="utf-8"))["cells"])
        raise StageError(
            f"{what} failed in cell {error.cell_index + 1} ({cell.strip()}): "
            f"{error.ename}: {error.evalue}\n"
            + (f"  raised in {place}\n" if place else "")
            + f"  output notebook: {output}"
        ) from error
    except DeadKernelError as error:
        raise StageError(
            f"{what} failed: its process died (out of memory, or killed)\n"
            f"  output notebook: {output}"
        ) from error


def raised_at(traceback: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> str | None:
    """The innermost place in a traceback that is one's own: `line 2 of cell 4, in reward`, or
    `line 7 of rewards.py, in reward`; None if all is npr_lib's, or installed. Of an exception that
    was raised from another, the place of the first.

    Args:
        traceback: as IPython writes it, colours included; within it, of another process, as Python
            does.
        cells: of the notebook as it was executed; they are counted from 1, all of them but what
            papermill puts in where it fails.
    """
    own = [cell for cell in cells if ERROR_MARKER_TAG not in cell["metadata"].get("tags", ())]
    numbers = {cell.get("execution_count"): i for i, cell in enumerate(own, start=1)}
    for told in CHAINED.split(COLOURS.sub("", "\n".join(traceback))):
        for frame in reversed(list(FRAME.finditer(told))):
            if frame["count"]:
                where = f"cell {numbers.get(int(frame['count']), '?')}"
            elif _is_own(path := Path(frame["path"] or frame["file"]).expanduser()):
                where = "a cell" if "ipykernel_" in str(path) else relative(path)
            else:
                continue
            function = f", in {frame['function']}" if frame["function"] else ""
            return f"line {frame['line'] or frame['row'] or frame['at']} of {where}{function}"
    return None


def _is_own(path: Path) -> bool:
    """A file that is neither of npr_lib nor installed nor of Python itself."""
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    ours = path.is_relative_to(PACKAGE) or path.is_relative_to(Path(json.__file__).parents[1])
    return path.is_absolute() and not installed and not ours


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
