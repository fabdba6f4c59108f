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
from dataclasses import asdict, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from npr_lib import WorkbenchError
from npr_lib.engine import TorchEngine
from npr_lib.engine.checkpoint import load_checkpoint
from npr_lib.engine.sampling import mix
from npr_lib.files import model_digest
from npr_lib.identity import closure, made_before, write_made
from npr_lib.profiles.stage import Stage
from npr_lib.progress import report_progress
from npr_lib.reasoning.trajectory import Trajectory
from npr_lib.side_by_side import at_once, side_by_side
from npr_lib.tasks import problems as tasks
from npr_lib.tasks.problems import Problem, ProblemSet, build_prompt, load_problems
from npr_lib.train.rollout import score, to_table


def collect(stage: Stage) -> pd.DataFrame:
    """One kept response a problem, with its problem, as a rollouts table.

    Also written to run_dir / "rejection.parquet"; what was collected before, of the same, is read.
    The column `attempt` says which sample it was; `frame.attrs` holds how many problems were tried
    and how many gave nothing. WorkbenchError if nothing at all was kept.
    """
    section, path = stage.profile.rejection, stage.run_dir / "rejection.parquet"
    identity = _identity(stage)
    if (before := made_before(path, identity)) is not None:
        print(f"{path} was collected before, with the same settings: nothing to do")
        return before
    # "first" asks for what is missing yet, so one attempt waits for another
    n = 1 if section.keep == "first" else min(at_once(), section.k)
    shares = [range(i, section.k, n) for i in range(n)]
    parts = side_by_side(sample, [(stage, share) for share in shares])
    problems = _problems(stage)
    found = {
        p.id: sorted(chain(*(part[p.id] for part in parts)), key=itemgetter(0)) for p in problems
    }
    draw = random.Random(stage.seed)
    kept = [(*_varied(found[p.id], draw), p) for p in problems if found[p.id]]
    if not kept:
        raise WorkbenchError(
            f"rejection sampling kept none of {len(problems)} problems after {section.k} "
            f"samples each: {_writer(stage)} does not yet write valid, correct responses"
        )
    attempts, trajectories, chosen = zip(*kept, strict=True)
    scored = score(trajectories, chosen, problems)
    frame = to_table(scored, attempt=attempts)
    frame.attrs |= {"tried": len(problems), "without": len(problems) - len(kept)}
    write_made(frame, path, identity)
    return frame


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


def sample(stage: Stage, attempts: range) -> dict[str, list[tuple[int, Trajectory]]]:
    """Problem -> the right and valid samples among these attempts, each with its attempt."""
    profile, section = stage.profile, stage.profile.rejection
    model, tokenizer = load_checkpoint(_writer(stage))
    engine = TorchEngine(model, tokenizer, profile.engine)
    problems = _problems(stage)
    found: dict[str, list[tuple[int, Trajectory]]] = {problem.id: [] for problem in problems}
    part = (
        "rejection" if attempts.step == 1 else f"rejection {attempts.start + 1} of {attempts.step}"
    )
    asked: Sequence[Problem] = problems
    for done, attempt in enumerate(attempts, start=1):
        params = replace(section.sampling, seed=mix(stage.seed, attempt))
        prompts = [build_prompt(p, profile.prompt, tokenizer) for p in asked]
        trajectories = engine.generate(prompts, params, mode="sequential")
        for rollout in score(trajectories, asked, problems):
            if rollout.correct and rollout.format_reward == 0:
                found[rollout.problem.id].append((attempt, rollout.trajectory))
        if section.keep == "first":
            asked = [problem for problem in problems if not found[problem.id]]
        report_progress(done, len(attempts), part=part, kept=sum(map(bool, found.values())))
        if not asked:
            break
    return found


def _problems(stage: Stage) -> ProblemSet:
    every = load_problems(stage.profile.problems, "train", stage.seed)
    return every[: stage.profile.rejection.problems]


def _varied(
    samples: Sequence[tuple[int, Trajectory]], draw: random.Random
) -> tuple[int, Trajectory]:
    """The first sample of a number of blocks that is drawn; of several, each is as likely."""
    firsts: dict[int, tuple[int, Trajectory]] = {}
    for attempt, trajectory in samples:
        firsts.setdefault(len(trajectory.graph.blocks), (attempt, trajectory))
    return draw.choice(list(firsts.values()))
