r"""Benchmarks by name: where they are, how they are verified, how often the paper samples them.

    load_problems({"kind": "benchmark", "name": "aime25"}, "test", seed=0)

They are read from the hub, or from a folder of files where it has one of that name (`aime25.jsonl`,
or the folder `aime25/` that `hf download` makes), which is said. A revision is one that others pin
for the same set; None: none is known to us, and what the hub has today is read. A licence is what
the set's page on the hub says. docs/evaluation.md tells what of this was seen and what wasn't.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npr_lib import WorkbenchError
from npr_lib.tasks.problems import SHARES, ProblemSet, Split, number
from npr_lib.tasks.rows import Faulty, chosen, read_problems, read_rows, say

FOLDER = "benchmarks"
LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A published problem set.

    hub: its name there, read with `config` and `revision`; split: the hub's. size: problems. k: the
    k of the paper's avg@k. files: which of the hub's files it is, as a pattern. columns: what
    `problem` and `answer` are called there; None: `rewrite` makes them. paper: what the paper's
    tables call it, None where it isn't in them.
    """

    name: str
    title: str
    hub: str
    split: str
    size: int
    verifier: str
    licence: str
    k: int
    files: str
    columns: tuple[str, str] | None = ("problem", "answer")
    config: str | None = None
    revision: str | None = None
    paper: str | None = None
    rewrite: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda row: row
    training: bool = False


def _choices(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """GPQA: the question with its four answers in an order that depends on it alone."""
    if "Correct Answer" not in row:
        return row
    right = str(row["Correct Answer"]).strip()
    options = [right, *(str(row[f"Incorrect Answer {i}"]).strip() for i in (1, 2, 3))]
    random.Random(number(row["Question"])).shuffle(options)
    listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return {
        "id": row.get("Record ID"),
        "problem": "\n".join([str(row["Question"]).strip(), "", *listed]),
        "answer": LETTERS[options.index(right)],
        "options": options,
    }


def _grid(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """ZebraLogic: the whole table is the answer, as JSON."""
    solution = row.get("solution")
    if not isinstance(solution, Mapping):
        return row
    if any("___" in map(str, cells) for cells in solution["rows"]):
        raise ValueError("has no solution: it is masked in this copy of the set")
    empty = {"header": list(solution["header"]), "rows": [["…"] * len(solution["header"])]}
    asked = json.dumps(empty, ensure_ascii=False)
    return {
        "id": row.get("id"),
        "problem": f"{row['puzzle']}\n\nGive the whole table, a row a house, as {asked}.",
        "answer": json.dumps(solution, ensure_ascii=False),
        "size": row.get("size"),
    }


BENCHMARKS = (
    Benchmark(
        name="aime25",
        title="AIME25",
        hub="math-ai/aime25",
        split="test",
        size=30,
        verifier="math",
        licence="not stated",
        k=8,
        files="test.jsonl",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        paper="AIME25",
    ),
    Benchmark(
        name="aime24",
        title="AIME24",
        hub="HuggingFaceH4/aime_2024",
        split="train",
        size=30,
        verifier="math",
        licence="not stated",
        k=8,
        files="data/train-*.parquet",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        paper="AIME24",
    ),
    Benchmark(
        name="hmmt25",
        title="HMMT25 (February)",
        hub="MathArena/hmmt_feb_2025",
        split="train",
        size=30,
        verifier="math",
        licence="CC-BY-NC-SA-4.0",
        k=8,
        files="data/train-*.parquet",
        revision="6fdc4277120810ff75aa22d2d5489b91f7a262a1",
        paper="HMMT25",
    ),
    Benchmark(
        name="olympiadbench",
        title="OlympiadBench (text only, English, mathematics)",
        hub="math-ai/olympiadbench",
        split="test",
        size=674,
        verifier="math",
        licence="not stated (Hothan/OlympiadBench, its source: Apache-2.0)",
        k=1,
        files="test*",
        columns=("question", "final_answer"),
        revision="4faaf1e6ec17d11a4218a9bf4c049ecaf954dd84",
        paper="OlympiadBench",
    ),
    Benchmark(
        name="minerva",
        title="Minerva-Math",
        hub="math-ai/minervamath",
        split="test",
        size=272,
        verifier="math",
        licence="not stated",
        k=1,
        files="test.jsonl",
        columns=("question", "answer"),
        revision="ee46ddc498933b1977577953250ca5c66be64f96",
        paper="Minerva",
    ),
    Benchmark(
        name="zebralogic",
        title="ZebraLogic (whole tables)",
        hub="WildEval/ZebraLogic",
        split="test",
        size=1000,
        verifier="grid",
        licence="not stated",
        k=1,
        files="grid_mode/test-*.parquet",
        columns=None,
        config="grid_mode",
        revision="0a473f5a0054835754ed156d5a79c6ce27178bb1",
        paper="ZebraLogic",
        rewrite=_grid,
    ),
    Benchmark(
        name="amc23",
        title="AMC23",
        hub="math-ai/amc23",
        split="test",
        size=40,
        verifier="math",
        licence="not stated",
        k=8,
        files="test-*.parquet",
        columns=("question", "answer"),
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        paper="AMC23",
    ),
    Benchmark(
        name="math500",
        title="MATH500",
        hub="HuggingFaceH4/MATH-500",
        split="test",
        size=500,
        verifier="math",
        licence="not stated (MATH, its source: MIT)",
        k=1,
        files="test.jsonl",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        paper="MATH500",
    ),
    Benchmark(
        name="gpqa",
        title="GPQA-Diamond",
        hub="Idavidrein/gpqa",
        split="train",
        size=198,
        verifier="choice",
        licence="CC-BY-4.0; access is asked for on its page",
        k=1,
        files="gpqa_diamond.csv",
        columns=None,
        config="gpqa_diamond",
        revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        rewrite=_choices,
    ),
    Benchmark(
        name="orz57k",
        title="ORZ-57k",
        hub="Open-Reasoner-Zero/orz_math_57k_collection",
        split="train",
        size=56_878,
        verifier="math",
        licence="MIT",
        k=1,
        files="orz_math_57k_collected.json",
        columns=("0.value", "1.ground_truth.value"),
        training=True,
    ),
)
"""In the order of the paper's tables; then the others."""


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name. ValueError: there is none."""
    found = {one.name: one for one in BENCHMARKS}
    if name not in found:
        raise ValueError(f"no benchmark is called {name!r}; there are: {', '.join(found)}")
    return found[name]


def load(
    split: Split,
    seed: int,
    count: int | None,
    name: str,
    folder: str = FOLDER,
    shares: dict[Split, float] = SHARES,
) -> ProblemSet:
    """name: of `BENCHMARKS`. folder: of local files, read instead of the hub where it has the set.
    What is there for evaluation is taken whole, as the split `test`; a set for training is cut by
    `shares`, and its rows that can't be right (two answers to a problem) are left out."""
    one = benchmark(name)
    if split != "test" and not one.training:
        raise ValueError(
            f"{one.title} is there for evaluation: it has no split {split!r}, only test"
        )
    if here := local_files(name, folder):
        say(f"{name}: read from {', '.join(map(str, here))}")
    rows = read_rows(here) if here else _from_hub(one, folder)
    # a file of one's own may call them otherwise
    known = None if here else one.columns
    columns = dict(zip(("problem", "answer"), known, strict=True)) if known else None
    faulty: Faulty = "drop" if one.training else "refuse"
    problems = read_problems(rows, name, columns, faulty, one.rewrite)
    if len(problems) != one.size:
        say(f"{name}: {len(problems)} problems, {one.title} has {one.size}")
    found = chosen(problems, one.title, split, seed, count, shares if one.training else None)
    return ProblemSet(found, one.verifier)


def local_files(name: str, folder: str = FOLDER) -> list[Path]:
    """The files of a folder that a benchmark is read from; none: it is read from the hub.
    ValueError for several of its name."""
    one, base = benchmark(name), Path(folder)
    own = sorted(file for file in base.glob(f"{name}.*") if file.is_file())
    if len(own) > 1:
        raise ValueError(f"{folder} has several files for {name}: {', '.join(map(str, own))}")
    return own or sorted((base / name).glob(one.files))


def files(spec: Mapping[str, Any]) -> list[Path]:
    """The files that a specification of this kind is read from."""
    return local_files(spec["name"], spec.get("folder", FOLDER))


def _from_hub(one: Benchmark, folder: str) -> Any:
    import datasets

    title = f"{one.hub} (split {one.split})"
    try:
        rows = datasets.load_dataset(one.hub, one.config, split=one.split, revision=one.revision)
    except (OSError, ValueError) as error:  # no network, no such set, not allowed
        reason = " ".join(str(error).split())[:200]
        told = f"{one.title} can't be read from the hub ({reason})"
        raise WorkbenchError(f"{told}. {how_to_get(one, folder)}") from error
    return ((f"{title}: row {i}", row) for i, row in enumerate(rows, start=1))


def how_to_get(one: Benchmark, folder: str = FOLDER) -> str:
    """What to do on a machine without a network."""
    revision = f" --revision {one.revision}" if one.revision else ""
    return (
        f"Where there is a network: hf download {one.hub} --repo-type dataset{revision} "
        f"--include '{one.files}' --local-dir {one.name}; put that folder into {folder}/ here. Or "
        f"put a file {folder}/{one.name}.jsonl there (.json, .parquet, .csv), with the columns "
        "problem and answer"
    )
