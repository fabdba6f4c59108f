"""Self-distillation: NPR-Zero's own responses, sampled and filtered (paper section 3.2).

Up to K samples a problem; one that is correct and has no violation is kept. No teacher. Which one
is a setting, `keep`:

    first   the first such sample (the paper)
    varied  a number of blocks is drawn from those that such samples have, all alike; the first
            sample with as many. What sequential decoding seldom does would be lost on the next
            stage, though it may be what parallel decoding needs: a division into several blocks,
            where a branch would otherwise have to see its sibling. Stage 3 can only strengthen
            what is still there.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from npr_lib import WorkbenchError
from npr_lib.engine import Engine
from npr_lib.engine.sampling import mix
from npr_lib.files import model_digest, set_aside
from npr_lib.identity import closure, fingerprint, made_before
from npr_lib.profiles.stage import Stage
from npr_lib.reasoning.trajectory import PER_TOKEN
from npr_lib.tasks import problems as tasks
from npr_lib.tasks.problems import Problem, ProblemSet, build_prompt, load_problems
from npr_lib.train import portions
from npr_lib.train.engines import checkpoint_engine
from npr_lib.train.rollout import Rollout, score, to_table


def collect(stage: Stage) -> pd.DataFrame:
    """One kept response a problem, with its problem, as a rollouts table without `PER_TOKEN`.

    All of it is written to run_dir / "rejection.parquet"; what was collected before, of the same,
    is read. The problems are worked through in portions of `engine.max_running`. The column
    `attempt` says which sample it was; `frame.attrs` holds how many problems were tried and how
    many gave nothing. WorkbenchError if nothing at all was kept.
    """
    section, path = stage.profile.rejection, stage.run_dir / "rejection.parquet"
    identity = _identity(stage)
    if (before := made_before(path, identity, PER_TOKEN)) is not None:
        print(f"{path} was collected before, with the same settings: nothing to do")
        return before
    problems = _problems(stage)
    count = len(portions.split(stage, problems))
    files = portions.work_through(
        sample, stage, path=path, identity=identity, count=count, title="rejection"
    )
    chosen = _choose(files, problems, random.Random(stage.seed))
    if not chosen:
        raise WorkbenchError(
            f"rejection sampling kept none of {len(problems)} problems after {section.k} "
            f"samples each: {_writer(stage)} does not yet write valid, correct responses"
        )
    told = {"tried": len(problems), "without": len(problems) - len(chosen)}
    _write(path, chosen, {**told, "identity": fingerprint(identity)})
    portions.finish(path)
    made = made_before(path, identity, PER_TOKEN)
    assert made is not None, "was written here"
    return made


def _identity(stage: Stage) -> dict[str, Any]:
    profile = stage.profile
    return {
        "section": asdict(profile.rejection),
        "task": {"prompt": profile.prompt, "problems": profile.problems},
        "kind": tasks.identity(profile.problems),
        "engine": asdict(profile.engine),
        "writer": model_digest(_writer(stage)),
        "seed": stage.seed,
        "code": closure(__name__),
    }


def _writer(stage: Stage) -> Path:
    """The checkpoint that samples are drawn from."""
    return stage.checkpoint or stage.run_dir / "npr_zero"


def sample(stage: Stage, numbers: Sequence[int]) -> Iterator[tuple[int, pd.DataFrame]]:
    """Each portion with the right and valid samples of its problems that may be kept: the first,
    or (`varied`) the first of each number of blocks."""
    problems = _problems(stage)
    every = portions.split(stage, problems)
    with checkpoint_engine(_writer(stage), stage.profile.engine) as engine:
        for number in numbers:
            found = _sample(stage, engine, every[number], problems)
            attempts = [attempt for attempt, _ in found]
            yield number, to_table([rollout for _, rollout in found], attempt=attempts)


def _sample(
    stage: Stage, engine: Engine, portion: Sequence[Problem], problems: ProblemSet
) -> list[tuple[int, Rollout]]:
    """What may be kept of some problems, in their order and then by attempts, with its attempt."""
    profile, section = stage.profile, stage.profile.rejection
    # problem -> number of blocks, or 0 where the first counts -> the first of its kind
    found: dict[str, dict[int, tuple[int, Rollout]]] = {problem.id: {} for problem in portion}
    asked = portion
    for attempt in range(section.k):
        params = replace(section.sampling, seed=mix(stage.seed, attempt))
        prompts = [build_prompt(p, profile.prompt, engine.tokenizer) for p in asked]
        trajectories = engine.generate(prompts, params, mode="sequential")
        for rollout in score(trajectories, asked, problems):
            if rollout.correct and rollout.format_reward == 0:
                kind = len(rollout.graph.blocks) if section.keep == "varied" else 0
                found[rollout.problem.id].setdefault(kind, (attempt, rollout))
        if section.keep == "first":
            asked = [problem for problem in portion if not found[problem.id]]
        if not asked:
            break
    return [one for problem in portion for one in found[problem.id].values()]


def _problems(stage: Stage) -> ProblemSet:
    every = load_problems(stage.profile.problems, "train", stage.seed)
    return every[: stage.profile.rejection.problems]


def _choose(
    files: Sequence[Path], problems: ProblemSet, draw: random.Random
) -> list[tuple[Path, int]]:
    """File and row of the sample that is kept of each problem: of several, each is as likely."""
    rows: dict[str, list[tuple[Path, int]]] = {}
    for file in files:
        if pq.read_metadata(file).num_rows:
            for row, name in enumerate(pd.read_parquet(file, columns=["problem_id"])["problem_id"]):
                rows.setdefault(name, []).append((file, row))
    return [draw.choice(rows[problem.id]) for problem in problems if problem.id in rows]


def _write(path: Path, chosen: Sequence[tuple[Path, int]], attrs: dict[str, Any]) -> None:
    """Write these rows of portions as one table, a portion in memory at a time; what was there is
    set aside."""
    schemas = [pq.read_schema(file) for file in sorted({file for file, _ in chosen})]
    told = {**schemas[0].metadata, b"PANDAS_ATTRS": json.dumps(attrs).encode()}
    # a column may be empty in one portion, and of no type there
    schema = pa.unify_schemas(schemas, promote_options="permissive").with_metadata(told)
    part = path.with_name(f"{path.name}.part")
    with pq.ParquetWriter(part, schema) as writer:
        for file, own in groupby(chosen, key=itemgetter(0)):
            frame = pd.read_parquet(file).iloc[[row for _, row in own]]
            table = pa.Table.from_pandas(frame, schema, preserve_index=False)
            writer.write_table(table.replace_schema_metadata(told))
    if path.exists():
        set_aside(path)
    part.rename(path)
