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
from pathlib import Path
from typing import Any

import pandas as pd

from npr_lib import WorkbenchError
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.sampling import mix
from npr_lib.problems import build_prompt, load_problems
from npr_lib.progress import report_progress
from npr_lib.train.checkpoints import load_checkpoint
from npr_lib.trajectory import Trajectory, to_rows


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
    model, tokenizer = load_checkpoint(input_checkpoint)
    engine = TorchEngine(model, tokenizer, EngineConfig(**profile["engine"]))
    problem_set = load_problems(profile["problems"], "train", seed)
    problems = list(problem_set)[: section["problems"]]
    found: dict[str, list[tuple[int, Trajectory]]] = {problem.id: [] for problem in problems}
    open_problems = problems
    for attempt in range(section["k"]):
        params = SamplingParams(**{**section["sampling"], "seed": mix(seed, attempt)})
        prompts = [build_prompt(p, profile["prompt"], tokenizer) for p in open_problems]
        trajectories = engine.generate(prompts, params, mode="sequential")
        for problem, trajectory in zip(open_problems, trajectories, strict=True):
            graph = trajectory.graph
            if graph.valid and problem_set.verify(graph.boxed, problem):
                found[problem.id].append((attempt, trajectory))
        if section["keep"] == "first":
            open_problems = [problem for problem in problems if not found[problem.id]]
        report_progress(
            attempt + 1, section["k"], part="rejection", kept=sum(map(bool, found.values()))
        )
        if not open_problems:
            break
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


def _varied(
    samples: Sequence[tuple[int, Trajectory]], draw: random.Random
) -> tuple[int, Trajectory]:
    """The first sample of a number of blocks that is drawn; of several, each is as likely."""
    firsts: dict[int, tuple[int, Trajectory]] = {}
    for attempt, trajectory in samples:
        firsts.setdefault(len(trajectory.graph.blocks), (attempt, trajectory))
    return draw.choice(list(firsts.values()))
