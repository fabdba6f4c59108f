"""Engine and trainer against their peers: `python -m npr_lib bench`.

Prints a table a section as it is measured, and writes OUT/bench.json and OUT/bench.html. What is
measured is in `measurements` and `training`, on what in `workload`, against what in `peers`, and
what is made of it in `sections` and `figures`.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from plotly.offline import get_plotlyjs

from npr_lib import WorkbenchError
from npr_lib.bench import figures, measurements, sections
from npr_lib.bench.peers import SHAPES, build
from npr_lib.bench.sections import SECTIONS, Row
from npr_lib.bench.training import training
from npr_lib.bench.workload import FULL, QUICK
from npr_lib.workbench import manifest, pages
from npr_lib.workbench.stages import REPOSITORY

OUT = REPOSITORY / "reports" / "bench"
COMMAND = "python -m npr_lib bench"
MODELS = {"cpu": ("tiny", "llama25m"), "cuda": ("llama135m", "qwen3-1.7b")}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
MEASURE = {  # of every model
    "decoding": measurements.decoding,
    "throughput": measurements.throughput,
    "slots": measurements.slots,
    "marginal": measurements.marginal,
    "training": training,
}


def run(
    models: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quick: bool = False,
    pairs: int | None = None,
    out: Path = OUT,
) -> Path:
    """Measure and write out/bench.json (as it is measured) and out/bench.html; returns the page.

    Left out, `models` (of `peers.SHAPES`) and `dtype` are those that fit the device, `only` is all
    of `SECTIONS`, and `pairs`, how many paired runs, what the sizes say. WorkbenchError for an
    unknown model, no such device, or arms that did not do the same work.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise WorkbenchError("--device cuda: torch sees no GPU; use --device cpu")
    models, dtype = models or MODELS[device], dtype or DTYPES[device]
    for name in (name for name in models if name not in SHAPES):
        raise WorkbenchError(f"unknown model {name!r}; there are: {', '.join(SHAPES)}")
    if pairs is not None and pairs < 1:
        raise WorkbenchError(f"--pairs {pairs}: expected at least 1")
    sizes = QUICK if quick else FULL
    sizes = replace(sizes, pairs=pairs or sizes.pairs, turns=pairs or sizes.turns)
    only = only or tuple(SECTIONS)
    result: dict[str, Any] = {"machine": machine(device, dtype), "pairs": sizes.pairs}
    result |= {"turns": sizes.turns, "quick": quick, "models": {}, "rows": []}
    print(facts(result), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    if "layout" in only:
        _measure(result, out, measurements.layouts(sizes), section="layout")
    for name in models:
        subject = build(name, device, getattr(torch, dtype))
        result["models"][name] = about = subject.about()
        print(f"\n{name}: {about['parameters']:,} parameters", flush=True)
        for section in (section for section in only if section in MEASURE):
            lines = MEASURE[section](subject, sizes)
            _measure(result, out, lines, section=section, model=name)
    return write_page(out)


def _measure(result: dict[str, Any], out: Path, lines: Iterator[list[Row]], **of: str) -> None:
    """Keep a section's measurements and print them, a line of its table at a time; every row says
    that it is `of` this section and model."""
    print(f"\n{SECTIONS[of['section']].title}", flush=True)
    for i, measured in enumerate(lines):
        rows = [{**of, **row} for row in measured]
        result["rows"] += rows
        manifest.write_json(out / "bench.json", result)
        line = sections.table(of["section"], sections.frame(rows))
        # A line is laid out by itself: as wide as its column can get.
        widths = [max(len(c), 32 * (c == "case"), 23 * (" " in str(line[c][0])), 9) for c in line]
        print(line.to_string(index=False, header=i == 0, col_space=widths), flush=True)


def machine(device: str, dtype: str) -> dict[str, Any]:
    """What the figures were measured on, and with what."""
    hardware, packages = manifest.hardware(), manifest.versions()
    return {
        "cpu": hardware["cpu"],
        "cores": hardware["cores"],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load": round(os.getloadavg()[0], 2),  # of other work, when the benchmark began
        "packages": {name: packages[name] for name in ("torch", "transformers")},
        "date": manifest.now(),
        "git": manifest.git(REPOSITORY),
    }


def facts(result: Mapping[str, Any]) -> str:
    """One line on how the figures were taken."""
    on = result["machine"]
    where = on["gpu"] or f"{on['cpu']}, {on['cores']} cores, {on['threads']} threads"
    packages = ", ".join(f"{name} {version}" for name, version in on["packages"].items())
    commit = (on["git"]["commit"] or "no git")[:10] + "+" * bool(on["git"]["dirty"])
    quick = "quick: sizes too small to conclude from; " if result["quick"] else ""
    return (
        f"{quick}{where}, load {on['load']}, {on['dtype']}, {packages}, commit {commit}, "
        f"{on['date']}; median [min, max] of {result['pairs']} paired runs"
        + f" ({result['turns']} for throughput)"
        * (result["turns"] != result["pairs"])
    )


def read(folder: Path) -> dict[str, Any] | None:
    """The result in a folder, None if there is none, or one of an earlier form."""
    path = Path(folder) / "bench.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return result if "rows" in result else None


def find(run_dir: Path) -> dict[str, Any] | None:
    """The result in a run's folder, else the one in `bench` beside it, else None."""
    return read(run_dir) or read(Path(run_dir).parent / "bench")


def tables(result: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Title -> table of text, for every section that was measured."""
    measured = sections.split(sections.frame(result["rows"]))
    return {SECTIONS[name].title: sections.table(name, rows) for name, rows in measured.items()}


def write_page(folder: Path) -> Path:
    """Turn folder/bench.json into folder/bench.html, a page on its own; returns it."""
    result = read(folder)
    if result is None:
        raise WorkbenchError(f"no bench.json in {folder}; make it with: {COMMAND} --out {folder}")
    models = ", ".join(f"{name} {m['parameters']:,}" for name, m in result["models"].items())
    body = ["<h1>The engine against its peers</h1>"]
    body += [f"<p>{html.escape(facts(result))}. Parameters: {models}.</p>"]
    drawn = figures.benchmark(result)
    plain = {"full_html": False, "include_plotlyjs": False, "config": pages.CONFIG}
    for title, table in tables(result).items():
        body += [f"<h2>{html.escape(title)}</h2>", pages.table([*table], table.to_numpy().tolist())]
        body += [figure.to_html(**plain) for figure in drawn[title]]
    script = f"<script>{get_plotlyjs()}</script>"
    page = pages.page("NPR Workbench: benchmark", "\n".join(body), script)
    target = folder / "bench.html"
    target.write_text(page, encoding="utf-8")
    return target
