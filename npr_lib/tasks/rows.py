"""Problems from rows: local files and data sets of the hub, verified mathematically.

A file is JSON lines, a JSON array, parquet or csv, by its ending (`.json` may hold either of the
first two). Rows without a problem or an answer, and one problem with two answers, are errors that
name the file and the row; with `faulty: drop` they are left out, which is said.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from npr_lib.tasks import columns as rows_columns
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

Faulty = Literal["refuse", "drop"]
Placed = Iterable[tuple[str, Any]]  # (where a row stands, the row)


def load_file(
    split: Split,
    seed: int,
    count: int | None,
    path: str | list[str] | dict[Split, str | list[str]],
    columns: dict[str, str] | None = None,
    shares: dict[Split, float] = SHARES,
    faulty: Faulty = "refuse",
) -> ProblemSet:
    """path: a file, or several, which all splits share and which are cut by `shares`; or a mapping
    split -> file or files, each taken whole. columns: what the columns `problem` and `answer` are
    called [the usual names]. count None: all; else a seeded sample in the source's order."""
    source, cut = _source(path, split, "path")
    paths = files({"path": source})
    title = ", ".join(map(str, paths))
    problems = read_problems(read_rows(paths), paths[0].stem, columns, faulty)
    return chosen(problems, title, split, seed, count, shares if cut else None)


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
    faulty: Faulty = "refuse",
) -> ProblemSet:
    """name: a data set of the hub or a local folder, read by `datasets.load_dataset` with `config`
    and `revision`. splits: the hub's split for each of ours, or one name to be cut by `shares`
    (default: the same names)."""
    import datasets

    source, cut = _source(splits or {s: s for s in SPLITS}, split, "splits")
    rows = datasets.load_dataset(name, config, split=source, revision=revision)
    title = f"{name} (split {source})"
    placed = ((f"{title}: row {i}", row) for i, row in enumerate(rows, start=1))
    problems = read_problems(placed, Path(name).name, columns, faulty)
    return chosen(problems, title, split, seed, count, shares if cut else None)


def _source(sources: Any, split: Split, key: str) -> tuple[Any, bool]:
    """(where the split's rows are, whether other splits share them and a hash must cut)."""
    if not isinstance(sources, Mapping):
        return sources, True
    if split not in sources:
        raise ValueError(f"{key} names no source for the split {split!r}, only {list(sources)}")
    if list(sources.values()).count(sources[split]) > 1:
        raise ValueError(f"{key} gives {sources[split]!r} to several splits: write {key}: NAME")
    return sources[split], False


def files(spec: Mapping[str, Any]) -> list[Path]:
    """The files that a specification of kind "file" names, of every split."""
    source = spec["path"]
    paths = list(source.values()) if isinstance(source, Mapping) else [source]
    return [Path(p) for path in paths for p in ([path] if isinstance(path, str) else path)]


def read_rows(paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Every row of these files with the place it stands in, `FILE: row N` or `FILE: line N`.

    Raises:
        ValueError: an ending that isn't known, or a file that isn't what its ending says.
    """
    for file in paths:
        reader = _READERS.get(file.suffix.lower())
        if reader is None:
            known = ", ".join(_READERS)
            raise ValueError(f"{file}: problems are read from files that end in {known}")
        try:
            yield from reader(file)
        except (ValueError, csv.Error) as error:  # also of bytes that are no text, or no parquet
            told = str(error)
            raise ValueError(told if told.startswith(str(file)) else f"{file}: {told}") from error


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    # A line ends at \n, which JSON never holds in a string, as it may hold what else ends a line.
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for i, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{file}: line {i} is not JSON: {error}") from error
                yield f"{file}: line {i}", row


def _array(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        first = next((line for line in lines if line.strip()), "").strip()
    if first.startswith("{") and first.endswith("}"):
        yield from _lines(file)
        return
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file}: expected an array of rows, or a row a line")
    yield from ((f"{file}: row {i}", row) for i, row in enumerate(rows, start=1))


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(file).to_pylist()
    yield from ((f"{file}: row {i}", row) for i, row in enumerate(rows, start=1))


def _csv(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.reader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        header = next(table, [])
        for i, cells in enumerate(table, start=1):
            if len(cells) not in (0, len(header)):
                raise ValueError(
                    f"{file}: row {i} has {len(cells)} cells for {len(header)} columns"
                )
            if cells:
                yield f"{file}: row {i}", dict(zip(header, cells, strict=True))


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _lines,
    ".json": _array,
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _csv,
}


def chosen(
    problems: Sequence[Problem],
    title: str,
    split: Split,
    seed: int,
    count: int | None,
    shares: Mapping[Split, float] | None,
) -> ProblemSet:
    """The problems of a split (shares None: all of them), or a sample of `count`."""
    if shares is not None:
        every = len(problems)
        problems = [p for p in problems if split_of(p.problem, shares) == split]
        say(f"{title}: shared by all splits, {len(problems)} of {every} problems are of {split}")
    count = len(problems) if count is None else count
    if count > len(problems):
        raise ValueError(f"{title}: {count} {split} problems asked, it has {len(problems)}")
    draw = random.Random(number(title, split, seed))
    drawn = sorted(draw.sample(range(len(problems)), count))
    return ProblemSet([problems[i] for i in drawn])


def read_problems(
    rows: Placed,
    prefix: str,
    columns: Mapping[str, str] | None = None,
    faulty: Faulty = "refuse",
    rewrite: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda row: row,
) -> list[Problem]:
    """The problems of these rows; columns other than `problem` and `answer` that were taken for
    these are said.

    An `id` column is kept; else the id is made of the problem. Several answers of which any is
    right are in `meta["answers"]`, all other columns in `meta` under their names.

    Args:
        rewrite: makes of a set's own row one with the usual columns.

    Raises:
        ValueError: a row without one of both, or a problem with two answers; names the row.
    """
    given, names = columns or {}, dict.fromkeys(("problem", "answer"), "")
    places: dict[str, tuple[str, list[str]]] = {}
    seen: Counter[str] = Counter()
    found, faults = [], []
    for place, raw in rows:
        try:
            row = rewrite(rows_columns.columns_of(raw))
            if not names["answer"]:
                names = _names(row, given)
                _say_names(place, names, given)
            problem = _problem(row, names, prefix)
            _agree(problem, place, places)
        except ValueError as error:
            if faulty == "refuse":
                raise ValueError(f"{place} {error}") from error
            faults.append(f"{place} {error}")
            continue
        seen[problem.id] += 1
        if seen[problem.id] > 1:  # a set may hold a problem twice: ids must still tell rows apart
            problem = replace(problem, id=f"{problem.id}-{seen[problem.id]}")
        found.append(problem)
    if faults:
        say(f"{len(faults)} rows left out, the first: {faults[0]}")
    return found


def _names(row: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    return {
        name: rows_columns.find(row, name, usual, given.get(name))
        for name, usual in (("problem", rows_columns.PROBLEM), ("answer", rows_columns.ANSWER))
    }


def _say_names(place: str, names: Mapping[str, str], given: Mapping[str, str]) -> None:
    guessed = {name: path for name, path in names.items() if path != name and name not in given}
    if guessed:
        taken = ", ".join(f"{path} as {name}" for name, path in guessed.items())
        say(f"{place.rpartition(': ')[0]}: column {taken}")


def _problem(row: Mapping[str, Any], names: Mapping[str, str], prefix: str) -> Problem:
    for name, path in names.items():
        if rows_columns.value(row, path) is None:
            rows_columns.find(row, name, (), path)  # says which columns it has instead
            raise ValueError(f"has nothing in the column {path!r} ({name})")
    parts: dict[str, Any] = {}
    for name, read in (
        ("problem", rows_columns.problem_text),
        ("answer", lambda found: rows_columns.answer_texts(found, "solution" in names["answer"])),
    ):
        try:
            parts[name] = read(rows_columns.value(row, names[name]))
        except ValueError as error:
            raise ValueError(f"column {names[name]!r} ({name}) {error}") from error
    text, answers = parts["problem"], parts["answer"]
    # a conversation may hold more than the problem
    taken = {path for path in names.values() if not isinstance(row.get(path), list)}
    rest = {str(name): inner for name, inner in row.items() if name not in {*taken, "id"}}
    if len(answers) > 1:
        rest["answers"] = answers
    id = row.get("id")
    own = str(id) if isinstance(id, str | int) else text_id(prefix, text)
    return Problem(own, text, answers[0], rest)


def _agree(problem: Problem, place: str, places: dict[str, tuple[str, list[str]]]) -> None:
    """ValueError for a problem that came before with another answer."""
    answers = problem.meta.get("answers", [problem.answer])
    before, then = places.setdefault(problem.problem, (place, answers))
    if answers != then:
        raise ValueError(
            f"gives the problem of {before} another answer: {', '.join(answers)} "
            f"instead of {', '.join(then)}"
        )


def say(text: str) -> None:
    """A line for whoever reads along: what was taken of a file."""
    print(text, file=sys.stderr)
