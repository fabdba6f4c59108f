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

import random
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from npr_lib import WorkbenchError
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.checkpoint import load_checkpoint
from npr_lib.engine.sampling import mix
from npr_lib.progress import report_progress
from npr_lib.reasoning.trajectory import Trajectory, to_rows
from npr_lib.side_by_side import at_once, side_by_side
from npr_lib.tasks.problems import ProblemSet, build_prompt, load_problems


def collect(
    profile: dict[str, Any], run_dir: Path, input_checkpoint: Path, seed: int
) -> pd.DataFrame:
    """One kept response a problem, with its problem, as a rollouts table.

    Also written to run_dir / "rejection.parquet". The column `attempt` says which sample it was;
    `frame.attrs` holds how many problems were tried and how many gave nothing. WorkbenchError if
    nothing at all was kept.
    """
    section = profile["rejection"]
    if section["keep"] not in ("first", "varied"):
        raise WorkbenchError(f"rejection.keep = {section['keep']!r}; it is one of first, varied")
    # "first" asks for what is missing yet, so one attempt waits for another
    n = 1 if section["keep"] == "first" else min(at_once(), section["k"])
    shares = [range(i, section["k"], n) for i in range(n)]
    calls = [(profile, Path(input_checkpoint), seed, share) for share in shares]
    parts = side_by_side(sample, calls)
    problems = _problems(profile, seed)
    found = {
        p.id: sorted(chain(*(part[p.id] for part in parts)), key=itemgetter(0)) for p in problems
    }
    draw = random.Random(seed)
    kept = [(*_varied(found[p.id], draw), p) for p in problems if found[p.id]]
    if not kept:
        raise WorkbenchError(
            f"rejection sampling kept none of {len(problems)} problems after {section['k']} "
            f"samples each: {input_checkpoint} does not yet write valid, correct responses"
        )
    attempts, trajectories, chosen = zip(*kept, strict=True)
    frame = to_rows(
        trajectories,
        problem_id=[p.id for p in chosen],
        problem=[p.problem for p in chosen],
        answer=[p.answer for p in chosen],
        attempt=attempts,
    )
    frame.to_parquet(Path(run_dir) / "rejection.parquet", index=False)
    frame.attrs |= {"tried": len(problems), "without": len(problems) - len(kept)}
    return frame


def sample(
    profile: dict[str, Any], checkpoint: Path, seed: int, attempts: range
) -> dict[str, list[tuple[int, Trajectory]]]:
    """Problem -> the right and valid samples among these attempts, each with its attempt."""
    section = profile["rejection"]
    model, tokenizer = load_checkpoint(checkpoint)
    engine = TorchEngine(model, tokenizer, EngineConfig(**profile["engine"]))
    problems = _problems(profile, seed)
    found: dict[str, list[tuple[int, Trajectory]]] = {problem.id: [] for problem in problems}
    part = (
        "rejection" if attempts.step == 1 else f"rejection {attempts.start + 1} of {attempts.step}"
    )
    asked = problems
    for done, attempt in enumerate(attempts, start=1):
        params = SamplingParams(**{**section["sampling"], "seed": mix(seed, attempt)})
        prompts = [build_prompt(p, profile["prompt"], tokenizer) for p in asked]
        trajectories = engine.generate(prompts, params, mode="sequential")
        for problem, trajectory in zip(asked, trajectories, strict=True):
            graph = trajectory.graph
            if graph.valid and problems.verify(graph.boxed, problem):
                found[problem.id].append((attempt, trajectory))
        if section["keep"] == "first":
            asked = [problem for problem in problems if not found[problem.id]]
        report_progress(done, len(attempts), part=part, kept=sum(map(bool, found.values())))
        if not asked:
            break
    return found


def _problems(profile: dict[str, Any], seed: int) -> ProblemSet:
    return load_problems(profile["problems"], "train", seed)[: profile["rejection"]["problems"]]


def _varied(
    samples: Sequence[tuple[int, Trajectory]], draw: random.Random
) -> tuple[int, Trajectory]:
    """The first sample of a number of blocks that is drawn; of several, each is as likely."""
    firsts: dict[int, tuple[int, Trajectory]] = {}
    for attempt, trajectory in samples:
        firsts.setdefault(len(trajectory.graph.blocks), (attempt, trajectory))
    return draw.choice(list(firsts.values()))
