"""Work over many problems in portions, each written down as soon as it is done.

They lie in `FILE.portions/`, one parquet file each, until all are there: what was killed goes on
with what is missing, and nothing keeps more than a portion in memory. Processes share them. What
comes of a problem is no matter of which portion it is in, or of who did that: a response's
randomness depends on the seed, its problem and how often that stood in the same call before, and
a problem that a set holds twice is in one portion.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState

from npr_lib.files import set_aside
from npr_lib.identity import fingerprint
from npr_lib.profiles.stage import Stage
from npr_lib.progress import report_progress
from npr_lib.side_by_side import at_once, side_by_side
from npr_lib.tasks.problems import Problem
from npr_lib.train.launch import launch

# (stage, numbers of portions, ...) -> each of them with its table
Work = Callable[..., Iterator[tuple[int, pd.DataFrame]]]


def split(stage: Stage, problems: Sequence[Problem]) -> list[list[Problem]]:
    """The problems in portions of about as many as the engine answers at a time, in their order;
    one that stands twice comes with the first of its kind."""
    size = stage.profile.engine.max_running
    first: dict[str, int] = {}
    found: dict[int, list[Problem]] = {}
    for i, problem in enumerate(problems):
        at = first.setdefault(problem.problem, i)
        found.setdefault(at // size, []).append(problem)
    return [found[number] for number in sorted(found)]


def work_through(
    work: Work, stage: Stage, *more: Any, path: Path, identity: Any, count: int, title: str
) -> list[Path]:
    """The files of `count` portions, in their order, made by `work(stage, numbers, *more)` but for
    those that are there already. Whoever has made `path` of them removes them by `finish`.

    As many processes share the work as the profile launches, else two where there is no GPU. An
    SGLang that decodes needs one client, and shares it out itself.

    Args:
        work: of a module, or of a notebook; it makes the engine that it needs, once.
        identity: all that decides what is in the portions; others are set aside.
    """
    folder = _folder(path)
    made_of = folder / "made_of.txt"
    if folder.exists() and (not made_of.exists() or made_of.read_text() != fingerprint(identity)):
        print(f"begun with other settings, input or source: set aside as {set_aside(folder)}")
    folder.mkdir(parents=True, exist_ok=True)
    made_of.write_text(fingerprint(identity))
    files = [folder / f"{number:06}.parquet" for number in range(count)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    settings = stage.profile.launch
    call = (work, stage, *more)
    if stage.profile.engine.backend != "torch":
        _write(*call, numbers=missing, folder=folder, title=title)
    elif settings.num_processes > 1 and len(missing) > 1:
        launch(settings, _write_share, *call, numbers=missing, folder=folder, title=title)
    else:
        n = max(1, min(at_once(), len(missing)))
        shares = [(*call, missing[i::n], folder, _titled(title, i, n)) for i in range(n)]
        side_by_side(_write_part, shares)
    return files


def finish(path: Path) -> None:
    """Remove the portions of a file that has been made."""
    shutil.rmtree(_folder(path), ignore_errors=True)


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.portions")


def _titled(title: str, i: int, n: int) -> str:
    return title if n == 1 else f"{title} {i + 1} of {n}"


def _write_share(*call: Any, numbers: Sequence[int], folder: Path, title: str) -> None:
    """In one of accelerate's processes: its share."""
    rank, n = PartialState().process_index, PartialState().num_processes
    _write(*call, numbers=numbers[rank::n], folder=folder, title=_titled(title, rank, n))


def _write_part(*arguments: Any) -> None:
    *call, numbers, folder, title = arguments
    _write(*call, numbers=numbers, folder=folder, title=title)


def _write(
    work: Work, stage: Stage, *more: Any, numbers: Sequence[int], folder: Path, title: str
) -> None:
    if not numbers:
        return
    report_progress(0, len(numbers), part=title)
    for done, (number, frame) in enumerate(work(stage, numbers, *more), start=1):
        part = folder / f"{number:06}.part"
        frame.to_parquet(part, index=False)
        part.rename(part.with_suffix(".parquet"))
        report_progress(done, len(numbers), part=title)
