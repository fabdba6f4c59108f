"""Problems from rows: local files and data sets of the hub, verified mathematically."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from npr_lib.tasks.problems import (
    SHARES,
    SPLITS,
    Problem,
    ProblemSet,
    Split,
    number,
    split_of,
    text_id,
)


def load_file(
    split: Split,
    seed: int,
    count: int | None,
    path: str | dict[Split, str],
    columns: dict[str, str] | None = None,
    shares: dict[Split, float] = SHARES,
) -> ProblemSet:
    """path: a .jsonl or .parquet file cut by `shares`, or a mapping split -> file. columns: what
    the columns `problem` and `answer` are called. count None: all; else a seeded sample in the
    source's order."""
    source, cut = _source(path, split, "path")
    file = Path(source)
    problems = _problems(_read_rows(file), file.stem, str(file), columns or {})
    return _chosen(problems, str(file), split, seed, count, shares if cut else None)


def load_hub(
    split: Split,
    seed: int,
    count: int | None,
    name: str,
    config: str | None = None,
    revision: str | None = None,
    splits: str | dict[Split, str] | None = None,
    columns: dict[str, str] | None = None,
    shares: dict[Split, float] = SHARES,
) -> ProblemSet:
    """name: a data set of the hub or a local folder, read by `datasets.load_dataset` with `config`
    and `revision`. splits: the hub's split for each of ours, or one name to be cut by `shares`
    (default: the same names)."""
    import datasets

    source, cut = _source(splits or {s: s for s in SPLITS}, split, "splits")
    rows = datasets.load_dataset(name, config, split=source, revision=revision)
    title = f"{name} (split {source})"
    problems = _problems(rows, Path(name).name, title, columns or {})
    return _chosen(problems, title, split, seed, count, shares if cut else None)


def _source(sources: str | Mapping[Split, str], split: Split, key: str) -> tuple[str, bool]:
    """(where the split's rows are, whether other splits share them and a hash must cut)."""
    if isinstance(sources, str):
        return sources, True
    if split not in sources:
        raise ValueError(f"{key} names no source for the split {split!r}, only {list(sources)}")
    if list(sources.values()).count(sources[split]) > 1:
        raise ValueError(f"{key} gives {sources[split]!r} to several splits: write {key}: NAME")
    return sources[split], False


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(path).to_dict("records")
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: problems are read from .jsonl or .parquet files")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _chosen(
    rows: Iterable[Problem],
    title: str,
    split: Split,
    seed: int,
    count: int | None,
    shares: Mapping[Split, float] | None,
) -> ProblemSet:
    """The problems of a split (shares None: all of the rows), or a sample of `count`."""
    problems = [p for p in rows if shares is None or split_of(p.problem, shares) == split]
    count = len(problems) if count is None else count
    if count > len(problems):
        raise ValueError(f"{title}: {count} {split} problems asked, it has {len(problems)}")
    draw = random.Random(number(title, split, seed))
    chosen = sorted(draw.sample(range(len(problems)), count))
    return ProblemSet([problems[i] for i in chosen])


def _problems(
    rows: Iterable[Mapping[str, Any]], prefix: str, title: str, columns: Mapping[str, str]
) -> Iterator[Problem]:
    question, answer = columns.get("problem", "problem"), columns.get("answer", "answer")
    seen: Counter[str] = Counter()
    for i, row in enumerate(rows, start=1):
        for column in (question, answer):
            if row.get(column) is None:
                has = ", ".join(row) or "none"
                raise ValueError(f"{title}: row {i} lacks column {column!r}; it has {has}")
        text = str(row[question])
        id = str(row["id"]) if row.get("id") is not None else text_id(prefix, text)
        seen[id] += 1
        if seen[id] > 1:  # a set may hold a problem twice: ids must still tell rows apart
            id = f"{id}-{seen[id]}"
        rest = {k: v for k, v in row.items() if k not in (question, answer, "id")}
        yield Problem(id, text, str(row[answer]), rest)
