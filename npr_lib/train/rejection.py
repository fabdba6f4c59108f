"""Self-distillation: NPR-Zero's own responses, sampled and filtered (paper section 3.2).

Up to K samples a problem; the first that is correct and has no violation is kept. No teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from npr_lib import WorkbenchError
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.sampling import mix
from npr_lib.problems import build_prompt, load_problems
from npr_lib.progress import report_progress
from npr_lib.train.checkpoints import load_checkpoint
from npr_lib.trajectory import to_rows


def collect(
    profile: dict[str, Any], run_dir: Path, input_checkpoint: Path, seed: int
) -> pd.DataFrame:
    """One kept response a problem, with its problem, as a rollouts table.

    Also written to run_dir / "rejection.parquet". The column `attempt` says which sample it was;
    `frame.attrs` holds how many problems were tried and how many gave nothing. WorkbenchError if
    nothing at all was kept.
    """
    section = profile["rejection"]
    model, tokenizer = load_checkpoint(input_checkpoint)
    engine = TorchEngine(model, tokenizer, EngineConfig(**profile["engine"]))
    problems = load_problems(profile["problems"], "train", seed)
    open_problems = list(problems)[: section["problems"]]
    tried, kept = len(open_problems), []
    for attempt in range(section["k"]):
        params = SamplingParams(**{**section["sampling"], "seed": mix(seed, attempt)})
        prompts = [build_prompt(p, profile["prompt"], tokenizer) for p in open_problems]
        trajectories = engine.generate(prompts, params, mode="sequential")
        missed = []
        for problem, trajectory in zip(open_problems, trajectories, strict=True):
            graph = trajectory.graph
            if graph.valid and problems.verify(graph.boxed, problem):
                kept.append((attempt, problem, trajectory))
            else:
                missed.append(problem)
        open_problems = missed
        report_progress(attempt + 1, section["k"], part="rejection", kept=len(kept))
        if not open_problems:
            break
    if not kept:
        raise WorkbenchError(
            f"rejection sampling kept none of {tried} problems after {section['k']} samples each: "
            f"{input_checkpoint} does not yet write valid, correct responses"
        )
    attempts, chosen, trajectories = zip(*kept, strict=True)
    frame = to_rows(
        trajectories,
        problem_id=[p.id for p in chosen],
        problem=[p.problem for p in chosen],
        answer=[p.answer for p in chosen],
        attempt=attempts,
    )
    frame.to_parquet(Path(run_dir) / "rejection.parquet", index=False)
    frame.attrs |= {"tried": tried, "without": len(open_problems)}
    return frame
