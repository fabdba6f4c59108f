"""Responses of a model to a problem set, written down problem by problem.

A file of responses knows what made it. Whoever asks for the same again gets what is there and
answers what is missing; whoever asks for something else is refused, and told the difference.
Verdicts are no part of that: responses are scored whenever they are read.

What is answered lies in `FILE.parts/`, one parquet file a problem, until the set is done. A
response's randomness depends on the seed, its problem and the number of its sample alone, so that
which problems are answered together, and so a run that was killed, changes nothing (the embedded
engine up to near-ties; SGLang, which promises it for greedy decoding only, may sample others).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from npr_lib import WorkbenchError
from npr_lib.engine import Finish, SamplingParams, SGLangEngine, TorchEngine
from npr_lib.engine.sampling import mix
from npr_lib.files import relative, write_json
from npr_lib.progress import report_progress
from npr_lib.reasoning.tokens import encode_prompt
from npr_lib.reasoning.trajectory import Mode, Trajectory, from_row, to_rows
from npr_lib.tasks.problems import Problem, ProblemSet, Prompt, build_prompt
from npr_lib.train.rollout import Rollout, score

MADE_OF = "made_of"


def answers(
    engine: Callable[[], TorchEngine | SGLangEngine],
    problems: ProblemSet,
    path: Path,
    made_of: Mapping[str, Any],
    *,
    template: Prompt,
    sampling: SamplingParams,
    k: int,
    mode: Mode,
    at_once: int,
    title: str = "",
) -> list[list[Trajectory]]:
    """k responses to every problem, in the problems' order: those in `path`, and new ones.

    Args:
        engine: makes the engine; not called when nothing is missing.
        made_of: everything that decides a response, by name.
        at_once: problems that are answered together.
        title: what the progress is of.

    Raises:
        WorkbenchError: the responses in `path` were made otherwise.
    """
    parts = _parts(path)
    numbers = {problem.id: i for i, problem in enumerate(problems)}
    done = _read(path, parts, made_of)
    _same_problems(done, problems, path)
    there = set(done["problem_id"]) if len(done) else set()
    missing = [problem for problem in problems if problem.id not in there]
    if missing:
        parts.mkdir(parents=True, exist_ok=True)
        write_json(parts / "made_of.json", made_of)
        report_progress(len(problems) - len(missing), len(problems), part=title)
        respond = by_problem(engine(), missing, problems, template, sampling, k, mode, at_once)
        for i, (problem, found) in enumerate(respond, 1 + len(problems) - len(missing)):
            _write_part(parts / f"{numbers[problem.id]:06}.parquet", problem, found)
            report_progress(i, len(problems), part=title)
        done = _read(path, parts, made_of)
    if parts.exists():
        _write(path, done, made_of)
        shutil.rmtree(parts)
    rows = dict(iter(done.groupby("problem_id", sort=False)))
    return [
        [from_row(row) for _, row in rows[problem.id].sort_values("sample").iterrows()]
        for problem in problems
    ]


def by_problem(
    engine: TorchEngine | SGLangEngine,
    missing: Sequence[Problem],
    problems: Sequence[Problem],
    template: Prompt,
    sampling: SamplingParams,
    k: int,
    mode: Mode,
    at_once: int,
) -> Iterator[tuple[Problem, list[Trajectory]]]:
    """Each problem of `missing` with its k responses, as soon as it has them all.

    A problem that a set holds twice has two seeds, and is never asked twice in one call, where its
    randomness would depend on whether its twin is there.
    """
    seen: Counter[str] = Counter()
    occurrence = {}
    for problem in problems:
        occurrence[problem.id] = seen[problem.problem]
        seen[problem.problem] += 1
    for wave in range(max(seen.values())):
        asked = [problem for problem in missing if occurrence[problem.id] == wave]
        params = replace(sampling, seed=mix(sampling.seed, wave))
        for start in range(0, len(asked), at_once):
            batch = asked[start : start + at_once]
            yield from _batch(engine, batch, template, params, k, mode)


def _batch(
    engine: TorchEngine | SGLangEngine,
    batch: Sequence[Problem],
    template: Prompt,
    params: SamplingParams,
    k: int,
    mode: Mode,
) -> Iterator[tuple[Problem, list[Trajectory]]]:
    try:
        texts = [build_prompt(problem, template, engine.tokenizer) for problem in batch]
    except ValueError as error:  # what a tokenizer without a chat template has no place for
        raise WorkbenchError(str(error)) from error
    prompts = [encode_prompt(text, engine.tokenizer) for text in texts]
    for problem, ids in zip(batch, prompts, strict=True):
        if len(ids) >= engine.context:
            raise WorkbenchError(
                f"problem {problem.id} has {len(ids)} tokens with its prompt, the model's context "
                f"is {engine.context}: it can't be answered"
            )
    try:
        events = engine.stream(prompts, params, n=k, mode=mode)
    except ValueError as error:
        raise WorkbenchError(f"the engine refuses what is asked: {error}") from error
    found: dict[int, dict[int, Trajectory]] = {}
    for event in events:
        if isinstance(event, Finish):
            number, sample = divmod(event.index, k)
            own = found.setdefault(number, {})
            own[sample] = event.trajectory
            if len(own) == k:
                yield batch[number], [trajectory for _, trajectory in sorted(own.items())]
                del found[number]


def _write_part(path: Path, problem: Problem, found: Sequence[Trajectory]) -> None:
    samples = list(range(len(found)))
    _replace(path, to_rows(found, problem_id=problem.id, problem=problem.problem, sample=samples))


def _write(path: Path, frame: pd.DataFrame, made_of: Mapping[str, Any]) -> None:
    frame = frame.reset_index(drop=True)
    frame.attrs = {MADE_OF: json.dumps(made_of)}
    _replace(path, frame)


def write_scored(path: Path, table: pd.DataFrame) -> None:
    """Put a rollouts table in the place of the same problems' bare responses in `path`."""
    there = pd.read_parquet(path)
    others = there[~there["problem_id"].isin(table["problem_id"])]
    made_of = json.loads(there.attrs[MADE_OF])
    _write(path, pd.concat([table, others]) if len(others) else table, made_of)


def _replace(path: Path, frame: pd.DataFrame) -> None:
    """Write a table whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    frame.to_parquet(part, index=False)
    part.replace(path)


def _read(path: Path, parts: Path, made_of: Mapping[str, Any]) -> pd.DataFrame:
    """The responses that are there, in the set's file and in parts of it."""
    frames = []
    if path.exists():
        frames.append(pd.read_parquet(path))
        _refuse_other(json.loads(frames[0].attrs.get(MADE_OF, "{}")), made_of, path)
    if own := [pd.read_parquet(part) for part in sorted(parts.glob("*.parquet"))]:
        _refuse_other(json.loads((parts / "made_of.json").read_text()), made_of, parts)
        known = set(frames[0]["problem_id"]) if frames else set()
        frames += [part for part in own if part["problem_id"].iloc[0] not in known]
    columns = ["problem_id", "problem", "sample"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def check(path: Path, made_of: Mapping[str, Any]) -> None:
    """WorkbenchError if the responses in `path` were made of something else."""
    _read(path, _parts(path), made_of)


def _parts(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


def _refuse_other(then: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """WorkbenchError if responses were made of something else; it names what."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if keys:
        told = ", ".join(
            f"{k}: {_short(then.get(k))} there, {_short(now.get(k))} now" for k in keys
        )
        raise WorkbenchError(
            f"{relative(where)} holds responses that were made otherwise ({told}). Choose another "
            "--out, or move that away"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _same_problems(done: pd.DataFrame, problems: ProblemSet, path: Path) -> None:
    texts = {problem.id: problem.problem for problem in problems}
    for row in done.drop_duplicates("problem_id").itertuples():
        if texts.get(row.problem_id, row.problem) != row.problem:
            raise WorkbenchError(
                f"{relative(path)} answers another problem {row.problem_id!r} than the set has "
                "now. Choose another --out, or move that away"
            )


def scored(
    found: Sequence[Sequence[Trajectory]], problems: ProblemSet
) -> tuple[list[Rollout], list[bool]]:
    """Verdicts on what `answers` gave, by the set's own verifier; and of each response whether
    there is one: a verifier may say None, which counts as wrong."""
    asked = [problem for problem, own in zip(problems, found, strict=True) for _ in own]
    rollouts = score([trajectory for own in found for trajectory in own], asked, problems)
    return rollouts, [rollout.decided for rollout in rollouts]
