"""The engine against its peers: `python -m npr_lib bench`.

Prints a table a part as it is measured, and writes OUT/bench.json and OUT/bench.html. What is
measured is in `bench_parts`, on what in `bench_work`, against what in `bench_peers`.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from npr_lib import WorkbenchError
from npr_lib.bench import figures, measurements
from npr_lib.bench.measurements import Row
from npr_lib.bench.peers import SHAPES, Subject, build
from npr_lib.bench.workload import FULL, QUICK
from npr_lib.workbench import manifest
from npr_lib.workbench.stages import REPOSITORY

OUT = REPOSITORY / "reports" / "bench"
COMMAND = "python -m npr_lib bench"
MODELS = {"cpu": ("tiny", "llama25m"), "cuda": ("llama135m", "qwen3-1.7b")}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: the row's `key` under `title`; with `spread`, "median [min, max]"."""

    title: str
    key: str
    form: str = ".2f"
    spread: bool = False

    def cell(self, row: Mapping[str, Any]) -> str:
        text = format(row[self.key], self.form).rstrip()
        if not self.spread:
            return text
        low, high = (format(row[f"{self.key}_{end}"], self.form) for end in ("min", "max"))
        return f"{text} [{low}, {high}]"

    def align(self, text: str) -> str:
        """Text as wide as the column is on a terminal; names to the left, numbers to the right."""
        if self.form.startswith("<"):
            return format(text, self.form)
        return text.rjust(max(len(self.title), 21 if self.spread else 6))


MODEL = Column("model", "model", "<10")
TABLES: dict[str, tuple[str, tuple[Column, ...]]] = {
    "decoding": (
        "The same trajectories in parallel and one token after the other, one in flight",
        (
            MODEL,
            Column("branches", "branches", "d"),
            Column("length", "length", "d"),
            Column("ideal", "ideal"),
            Column("speed-up", "speedup", spread=True),
            Column("cap", "cap", spread=True),
            Column("efficiency", "efficiency", spread=True),
            Column("step / bare step", "overhead", spread=True),
            Column("step ms", "step_ms"),
        ),
    ),
    "throughput": (
        "Tokens/s of sequential generation by responses in flight",
        (
            MODEL,
            Column("in flight", "responses", "d"),
            Column("tokens", "tokens", "d"),
            Column("engine", "engine_tps", ".0f", spread=True),
            Column("generate", "generate_tps", ".0f", spread=True),
            Column("generate_batch", "generate_batch_tps", ".0f", spread=True),
            Column("/ generate", "over_generate", spread=True),
            Column("/ generate_batch", "over_generate_batch", spread=True),
            Column("same tokens", "same_tokens", ".0%"),
        ),
    ),
    "slots": (
        "KV slots: used, distinct tokens, independent copies; tokens forwarded again",
        (
            MODEL,
            Column("case", "case", "<30"),
            Column("peak", "peak", "d"),
            Column("distinct", "distinct", "d"),
            Column("copies", "copies", "d"),
            Column("copies / peak", "saved"),
            Column("again", "again", "d"),
            Column("recomputed", "recomputed", "d"),
            Column("preempted", "preemptions", "d"),
        ),
    ),
    "layout": (
        "Construction of a layout",
        (
            Column("tokens", "tokens", "d"),
            Column("ms", "ms"),
            Column("us/token", "us_per_token"),
            Column("MB", "mb"),
            Column("bytes/token", "bytes_per_token", ".0f"),
            Column("dense mask MB", "mask_mb", ".0f"),
        ),
    ),
    "marginal": (
        "Milliseconds a decode step costs more",
        (
            MODEL,
            Column("with one more", "more", "<22"),
            Column("engine", "engine_ms", ".3f", spread=True),
            Column("bare forward", "bare_ms", ".3f", spread=True),
        ),
    ),
}
MEASURE = {
    "decoding": measurements.decoding,
    "throughput": measurements.throughput,
    "slots": measurements.slots,
    "marginal": measurements.marginal,
}


def run(
    models: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quick: bool = False,
    pairs: int | None = None,
    out: Path = OUT,
) -> Path:
    """Measure and write out/bench.json (row by row) and out/bench.html; returns the page.

    Args:
        models: of `bench_peers.SHAPES`; None: those that fit the device.
        parts: of `TABLES`; None: all.
        device: "cpu" or "cuda"; None: cuda where there is one.
        dtype: "float32" or "bfloat16"; None: bfloat16 on cuda.
        quick: the smallest sizes.
        pairs: paired runs; None: as many as the sizes say.

    Raises:
        WorkbenchError: an unknown model, no such device, or arms that did not do the same work.
    """
    models, device, dtype = _chosen(models, device, dtype)
    if pairs is not None and pairs < 1:
        raise WorkbenchError(f"--pairs {pairs}: expected at least 1")
    sizes = QUICK if quick else FULL
    sizes = replace(sizes, pairs=pairs or sizes.pairs, turns=pairs or sizes.turns)
    parts = parts or tuple(TABLES)
    result: dict[str, Any] = {
        "machine": machine(device, dtype),
        "pairs": sizes.pairs,
        "quick": quick,
        "models": {},
        "results": {part: [] for part in parts},
    }
    print(facts(result), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    if "layout" in parts:
        _measure(result, "layout", measurements.layouts(sizes), out)
    for name in models:
        subject = build(name, device, getattr(torch, dtype))
        result["models"][name] = {"parameters": subject.parameters, "shape": shape(subject)}
        print(f"\n{name}: {subject.parameters:,} parameters", flush=True)
        for part in (part for part in parts if part in MEASURE):
            _measure(result, part, MEASURE[part](subject, sizes), out)
    return write_page(out)


def _chosen(
    models: Sequence[str] | None, device: str | None, dtype: str | None
) -> tuple[Sequence[str], str, str]:
    """Models, device and dtype, by default those that fit the machine."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise WorkbenchError("--device cuda: torch sees no GPU; use --device cpu")
    models = models or MODELS[device]
    unknown = [name for name in models if name not in SHAPES]
    if unknown:
        raise WorkbenchError(f"unknown model {unknown[0]!r}; there are: {', '.join(SHAPES)}")
    return models, device, dtype or DTYPES[device]


def _measure(result: dict[str, Any], part: str, rows: Iterator[Row], out: Path) -> None:
    """Print and keep the rows of a part as they come."""
    title, columns = TABLES[part]
    print(f"\n{title}\n" + "  ".join(c.align(c.title) for c in columns), flush=True)
    for row in rows:
        print("  ".join(c.align(c.cell(row)) for c in columns), flush=True)
        result["results"][part].append(row)
        manifest.write_json(out / "bench.json", result)


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


def shape(subject: Subject) -> dict[str, Any]:
    """The sizes of a model's layers."""
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    fields += ("num_attention_heads", "num_key_value_heads")
    return {name: getattr(subject.model.config, name) for name in fields}


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
    )


def read(folder: Path) -> dict[str, Any] | None:
    """The result in a folder, None if there is none."""
    path = Path(folder) / "bench.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def find(run_dir: Path) -> dict[str, Any] | None:
    """The result in a run's folder, else the one in `bench` beside it, else None."""
    return read(run_dir) or read(Path(run_dir).parent / "bench")


def tables(result: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Title -> table of text, for every part that was measured."""
    found = {}
    for part, rows in result["results"].items():
        title, columns = TABLES[part]
        cells = [[column.cell(row) for column in columns] for row in rows]
        found[title] = pd.DataFrame(cells, columns=[column.title for column in columns])
    return found


def write_page(folder: Path) -> Path:
    """Turn folder/bench.json into folder/bench.html, a page on its own; returns it."""
    from plotly.offline import get_plotlyjs

    from npr_lib.workbench import pages

    result = read(folder)
    if result is None:
        raise WorkbenchError(f"no bench.json in {folder}; make it with: {COMMAND} --out {folder}")
    models = ", ".join(f"{name} {m['parameters']:,}" for name, m in result["models"].items())
    body = "<h1>The engine against its peers</h1>"
    body += f"<p>{html.escape(facts(result))}. Parameters: {models or 'no model'}.</p>"
    pictures = figures.benchmark(result).values()
    for (title, table), drawn in zip(tables(result).items(), pictures, strict=True):
        body += f"<h2>{html.escape(title)}</h2>"
        body += pages.table(list(table.columns), table.to_numpy().tolist())
        for figure in drawn:
            body += figure.to_html(full_html=False, include_plotlyjs=False, config=pages.CONFIG)
    script = f"<script>{get_plotlyjs()}</script>"
    target = folder / "bench.html"
    target.write_text(pages.page("NPR Workbench: benchmark", body, script), encoding="utf-8")
    return target
