"""An evaluation on benchmarks as a command runs it: alone in its folder, watched, with a page."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from npr_lib import viz
from npr_lib.analysis import benchmark, benchmark_tables
from npr_lib.analysis.benchmark import Settings
from npr_lib.analysis.sets import Asked
from npr_lib.files import REPOSITORY
from npr_lib.progress import VARIABLE
from npr_lib.workbench import manifest, pages, progress
from npr_lib.workbench.pages.notebook import SCRIPT, copy_script
from npr_lib.workbench.pages.template import render
from npr_lib.workbench.stages import take_lock

OUT = Path("reports") / "benchmarks"


class Part(NamedTuple):
    """A section of the page."""

    title: str
    text: str
    table: pd.DataFrame
    figures: tuple[go.Figure, ...] = ()


def run(models: Sequence[str], sets: Sequence[Asked], out: Path, settings: Settings) -> Path:
    """Evaluate, showing how far it is, and write out/benchmarks.html; returns it.

    Raises:
        WorkbenchError: another process works in `out`, or what `benchmark.evaluate` raises.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock, events = take_lock(out), out / "progress.jsonl"
    events.unlink(missing_ok=True)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(events.resolve())
    try:
        with progress.watch(events, "evaluate"):
            benchmark.evaluate(models, sets, out, settings, about())
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
        lock.close()
    return write_page(out)


def about() -> dict[str, Any]:
    """What the figures were taken with, and on what."""
    return {
        "date": manifest.now(),
        "machine": manifest.hardware(),
        "packages": manifest.versions(),
        "git": manifest.git(REPOSITORY),
    }


def parts(result: dict[str, Any]) -> list[Part]:
    """The sections of the page: the paper's three tables, and what belongs to each."""
    numbers = benchmark_tables.frame(result)
    curves = any(one["k"] > 1 for one in result["sets"].values())
    found = [
        Part(
            "1. Accuracy",
            "avg@k in %: the mean accuracy of a problem's k samples, over problems. Brackets: 95 % "
            "bootstrap intervals over problems. The paper's rows are for the columns it has.",
            benchmark_tables.accuracy(result),
        ),
        Part(
            "More samples",
            "best@k: a right answer among k samples; maj@k: the majority of them is right. Cut "
            "off: responses that ended at a token budget or the model's context. Could not be "
            "compared: answers on which the verifier came to no verdict; they count as wrong.",
            benchmark_tables.sampling(result),
            (viz.best_curves(numbers),) if curves else (),
        ),
        Part(
            "2. Parallelism",
            "Trigger rate: responses with at least one block that was decoded in parallel. Work: "
            "tokens of a response; span: those on its critical path.",
            benchmark_tables.parallel(result),
        ),
    ]
    differences = benchmark_tables.differences(result)
    if differences:
        figure = viz.paired(differences)
        text = "Differences on the same problems, resampled together."
        found.insert(1, Part("Who is better than whom", text, pd.DataFrame(), (figure,)))
    if len(speed := benchmark_tables.speed(result)):
        one = result["settings"]
        found.append(
            Part(
                "3. Speed",
                f"The first response to each of at most {one['speed']} problems a set, decoded "
                "again: in parallel, and the same tokens one after the other. Tokens/s and seconds "
                f"with one response in flight; mean of {one['rounds']} rounds.",
                speed,
            )
        )
    if len(against := benchmark_tables.against(result)):
        text = "Each model decodes its own responses to the same problems, one in flight."
        found.append(Part("Against another model", text, against))
    return found


def write_page(out: Path) -> Path:
    """Turn out/results.json into out/benchmarks.html; returns it."""
    result = json.loads((out / "results.json").read_text(encoding="utf-8"))
    plain = {"full_html": False, "include_plotlyjs": False, "config": pages.CONFIG}
    shown = []
    for part in parts(result):
        table = part.table.reset_index() if len(part.table) else part.table
        shown.append(
            {
                "title": part.title,
                "text": part.text,
                "columns": list(table),
                "rows": table.to_numpy().tolist(),
                "figures": [figure.to_html(**plain) for figure in part.figures],
            }
        )
    files = sorted(path.relative_to(out).as_posix() for path in out.glob("responses/*/*.parquet"))
    body = render(
        "benchmarks.html",
        facts=facts(result),
        parts=shown,
        notes=benchmark_tables.comparability(result),
        files=files,
    )
    copy_script(out)
    target = out / "benchmarks.html"
    script = f'<script src="{SCRIPT}"></script>'
    target.write_text(pages.page("NPR Workbench: benchmarks", body, script), encoding="utf-8")
    return target


def facts(result: dict[str, Any]) -> str:
    """One line on how the figures were taken."""
    settings, machine = result["settings"], result.get("machine", {})
    sampling = settings["sampling"]
    models = ", ".join(f"{name} ({one['mode']})" for name, one in result["models"].items())
    gpus = ", ".join(machine.get("gpu") or ())
    where = f"{gpus or machine['cpu']}, {machine['cores']} cores; " if machine else ""
    return (
        f"{models}; T = {sampling['temperature']:g}, top-p {sampling['top_p']:g}, at most "
        f"{sampling['max_tokens']:,} tokens, seed {sampling['seed']}; engine {settings['engine']}; "
        f"{where}{result.get('date', '')}"
    )
