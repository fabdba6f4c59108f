"""The record of a run: what code, on what machine, with what parameters, how long each stage took.

`manifest.json` is rewritten as the run goes on and kept over resumes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from npr_lib.files import write_json
from npr_lib.workbench.notebook import Notebook

PACKAGES = (
    "npr-workbench",
    "torch",
    "transformers",
    "tokenizers",
    "trl",
    "accelerate",
    "datasets",
    "sglang",
    "numpy",
    "pandas",
    "plotly",
    "papermill",
    "math-verify",
    "reasoning-gym",
)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(run_dir: Path) -> dict:
    """The manifest of a run, {} when there is none yet."""
    path = run_dir / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(run_dir: Path, manifest: dict) -> None:
    write_json(run_dir / "manifest.json", manifest)


def record(run_dir: Path, notebook: Notebook, status: str, seconds: float | None = None) -> None:
    """Note the start ("running") or the end of a stage in the manifest.

    `runs` holds every attempt; a run that was killed leaves one without an end. `inputs` and
    `outputs` say which stages depend on which.
    """
    described = read(run_dir)
    entry = described.setdefault("stages", {}).setdefault(notebook.name, {"runs": []})
    if status == "running":
        commit = described["git"]["commit"]
        entry["runs"].append({"status": status, "start": now(), "commit": commit})
    else:
        begun = datetime.fromisoformat(entry["runs"][-1]["start"])
        took = (datetime.now(UTC) - begun).total_seconds() if seconds is None else seconds
        entry["runs"][-1] |= {"status": status, "end": now(), "seconds": round(took, 1)}
    said = {"title": notebook.title, "inputs": notebook.inputs, "outputs": notebook.outputs}
    entry |= {"end": None, "seconds": None} | entry["runs"][-1] | said
    write(run_dir, described)


def confirm(run_dir: Path, notebook: Notebook) -> None:
    """A later attempt at a stage failed, and what it left before is what is asked for again."""
    described = read(run_dir)
    entry = described["stages"].get(notebook.name)
    if entry is not None and entry["status"] != "done":
        entry["status"] = "done"
        write(run_dir, described)


def describe(root: Path, run: str, profile: str, overrides: Iterable[str], seed: int) -> dict:
    """The manifest of a run without its stages.

    Args:
        root: the repository, for git.
        run: name of the run.
        profile: the profile's name or path as it was given.
        overrides: `KEY=VALUE` changes of the profile.
        seed: the profile's `random_seed`.
    """
    given = {key.strip(): value for key, _, value in (text.partition("=") for text in overrides)}
    return {
        "run": run,
        "profile": profile,
        "parameters": given,
        "seeds": {"run": seed},
        "git": git(root),
        "python": platform.python_version(),
        "packages": versions(),
        "hardware": hardware(),
    }


def git(root: Path) -> dict[str, Any]:
    """Commit and whether the tree differs from it; both None outside a git checkout."""

    def ask(*arguments: str) -> str | None:
        command = ["git", "-C", str(root), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None

    try:
        commit, changes = ask("rev-parse", "--verify", "HEAD"), ask("status", "--porcelain")
    except FileNotFoundError:  # no git on this machine
        commit = changes = None
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter; those that are missing are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, memory in GiB, names of NVIDIA GPUs."""
    may_use = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return {
        "cpu": _cpu_model(),
        "cores": len(may_use) if may_use else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _gpus() -> list[str]:
    """As nvidia-smi names them; importing torch for this would take seconds."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
