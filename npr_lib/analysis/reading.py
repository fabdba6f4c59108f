"""What the notebooks read from a run's folder, and which responses they choose from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from npr_lib import WorkbenchError
from npr_lib.analysis.ladder import LADDER, NAMES
from npr_lib.reasoning.trajectory import Trajectory, from_row, read_rollouts, rollouts_path


def read_log(run_dir: Path, name: str) -> pd.DataFrame:
    """The training log of a checkpoint, one row a logged step."""
    return pd.read_json(Path(run_dir) / name / "log.jsonl", lines=True)


def read_evaluations(run_dir: Path, names: Sequence[str] = LADDER) -> dict[str, pd.DataFrame]:
    """The paper's name of each checkpoint -> its evaluation rollouts, in the ladder's order."""
    return {NAMES[name]: read_rollouts(rollouts_path(run_dir, name)) for name in names}


def read_responses(
    run_dir: Path, pattern: str = "rollouts/eval_*.parquet", where: str = ""
) -> pd.DataFrame:
    """Rollouts of every file that matches, in the ladder's order; the file names a missing stage.

    Args:
        pattern: files in the run's folder.
        where: which rows, in the language of `DataFrame.query`; empty: all.

    Raises:
        WorkbenchError: no such file, or `where` can't be read or leaves no row.
    """
    order = {f"eval_{name}": i for i, name in enumerate(LADDER)}
    paths = sorted(Path(run_dir).glob(pattern), key=lambda p: (order.get(p.stem, 99), p.name))
    if not paths:
        raise WorkbenchError(f"no file {pattern} in {run_dir}")
    frames = [read_rollouts(path) for path in paths]
    named = [
        frame if "stage" in frame else frame.assign(stage=path.stem)
        for frame, path in zip(frames, paths, strict=True)
    ]
    return chosen(pd.concat(named, ignore_index=True), where, pattern)


def chosen(frame: pd.DataFrame, where: str, source: str) -> pd.DataFrame:
    """The rows that `where` chooses, in the language of `DataFrame.query`; empty: all. source: what
    the rows are of, for the message of the WorkbenchError when it can't be read or leaves none."""
    try:
        frame = frame.query(where) if where else frame
    except (KeyError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise WorkbenchError(f"{where!r} does not choose rows: {error}") from error
    if frame.empty:
        raise WorkbenchError(f"no response in {source}" + (f" where {where}" if where else ""))
    return frame


def read_tokenizer(run_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the run's last checkpoint; those before know no token that it does not."""
    made = [name for name in LADDER if (Path(run_dir) / name / "tokenizer_config.json").exists()]
    if not made:
        raise WorkbenchError(f"no checkpoint in {run_dir}")
    return AutoTokenizer.from_pretrained(Path(run_dir) / made[-1])


def decoding(temperature: float) -> str:
    """What decoding at a temperature is called."""
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def decodings(frame: pd.DataFrame) -> tuple[tuple[str, bool], tuple[str, bool]]:
    """What the decodings of a frame are called, and whether they are greedy: sampled, greedy."""
    return (decoding(frame["temperature"].max()), False), (decoding(0), True)


def decoded(frame: pd.DataFrame, greedy: bool) -> pd.DataFrame:
    """The rows that were decoded greedily (T = 0), or the others."""
    return frame[(frame["temperature"] == 0) == greedy]


def sampled(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that were sampled (T > 0), without the greedy ones."""
    return decoded(frame, greedy=False)


def examples(frame: pd.DataFrame, count: int = 3) -> list[tuple[Trajectory, pd.Series]]:
    """Responses worth drawing: correct and valid first, each with another shape if possible.

    A shape is the number of branches of every block; wider shapes come first. The choice is a
    function of the frame. Fewer than `count` only if the frame has fewer rows.
    """
    ranked = frame.assign(
        shape=[tuple(int(k) for k in row) for row in frame["num_branches"]],
        good=(frame["valid"] & (frame["accuracy"] == 1)).astype(int),
    )
    ranked["again"] = ranked.sort_values("good", ascending=False).groupby("shape").cumcount()
    ranked["width"] = [max(shape, default=0) for shape in ranked["shape"]]
    best = ranked.sort_values(
        ["triggered", "good", "again", "width"],
        ascending=[False, False, True, False],
        kind="stable",
    )
    return [(from_row(row), row) for _, row in best.head(count).iterrows()]
