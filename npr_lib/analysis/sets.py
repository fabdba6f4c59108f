"""The problem sets and models that an evaluation is asked for, by what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npr_lib import WorkbenchError
from npr_lib.tasks import benchmarks
from npr_lib.tasks.problems import ProblemSet, load_problems

GENERATED = 100
"""Problems of a generator, where no limit says how many."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem set as an evaluation is asked for it.

    spec: for `load_problems`. whole: how many problems the set has, of which these may be a part.
    k: samples a problem, where nobody says otherwise. paper: its column in the paper's tables.
    """

    name: str
    spec: Mapping[str, Any]
    problems: ProblemSet
    whole: int
    k: int = 1
    paper: str | None = None


def read_sets(
    named: str | Sequence[str],
    limit: int | None = None,
    data: str = benchmarks.FOLDER,
    base: Path = Path(),
) -> list[Asked]:
    """Sets by name, in the order given.

    Args:
        named: `aime25` (a benchmark), `rg:leg_counting` (a generator of reasoning-gym), or the path
            of a file of problems, whole; `FILE@choice` for another verifier than `math`. A file
            that is called as a benchmark (`my/aime25.json`) is a copy of it. Several with commas
            between.
        limit: of each the first so many problems.
        data: the folder in which a benchmark is looked for before it is asked of the hub.
        base: where relative paths begin.

    Raises:
        WorkbenchError: no such benchmark or file, or two sets of one name.
    """
    if limit is not None and limit < 1:
        raise WorkbenchError(f"limit = {limit}: expected at least 1")
    texts = named.split(",") if isinstance(named, str) else named
    asked = [_read(text.strip(), limit, data, base) for text in texts]
    _distinct([one.name for one in asked], "sets", texts)
    return asked


def _read(text: str, limit: int | None, data: str, base: Path) -> Asked:
    name, k, paper = text, 1, None
    spec: dict[str, Any]
    source, _, verifier = text.partition("@") if not (base / text).is_file() else (text, "", "")
    known = {one.name: one for one in benchmarks.BENCHMARKS if not one.training}
    if text.startswith("rg:"):
        name = text.removeprefix("rg:")
        spec = {"kind": "reasoning-gym", "name": name, "test": limit or GENERATED}
    elif text in known:
        spec = {"kind": "benchmark", "name": text, "folder": str(base / data)}
        k, paper = known[text].k, known[text].paper
    elif (file := base / source).is_file():
        name, spec = file.stem, {"kind": "file", "path": {"test": str(file)}}
        if name in known:  # a copy of it
            k, paper = known[name].k, known[name].paper
            verifier = verifier or known[name].verifier
        spec |= {"verifier": verifier} if verifier else {}
    else:
        raise WorkbenchError(
            f"{text!r} is no file and no set: expected a path, rg:GENERATOR, or one of "
            f"{', '.join(known)}"
        )
    try:
        problems = load_problems(spec, "test", seed=0)
    except ValueError as error:
        raise WorkbenchError(str(error)) from error
    if not problems:
        raise WorkbenchError(f"{text} has no problems")
    whole = known[name].size if name in known else len(problems)
    return Asked(name, spec, problems[:limit], whole, k, paper)


def model_names(models: Sequence[str | Path]) -> dict[str, Path]:
    """What the reports call each model -> its folder: the folder's name, with that of the folder
    above where two are the same. WorkbenchError for one named twice."""
    folders = [Path(model) for model in models]
    names = [folder.resolve().name for folder in folders]
    counts = Counter(names)
    full = [
        f"{folder.resolve().parent.name}-{name}" if counts[name] > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]
    _distinct(full, "models", [str(model) for model in models])
    return dict(zip(full, folders, strict=True))


def _distinct(names: Sequence[str], what: str, given: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise WorkbenchError(f"two {what} are called {twice[0]!r}, of {', '.join(given)}")
