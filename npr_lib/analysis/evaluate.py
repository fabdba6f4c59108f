"""Evaluation of checkpoints on held-out problems, and of decoding speed on one machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from npr_lib.engine import Engine, SamplingParams, TorchEngine
from npr_lib.engine.checkpoint import checkpoint_mode, load_checkpoint
from npr_lib.engine.sampling import mix
from npr_lib.files import model_digest, write_json
from npr_lib.identity import closure, made_before, write_made
from npr_lib.profiles.stage import Stage
from npr_lib.progress import report_progress
from npr_lib.reasoning.trajectory import Mode, Trajectory, rollouts_path
from npr_lib.tasks import problems as tasks
from npr_lib.tasks.problems import (
    ProblemSet,
    Prompt,
    Split,
    build_prompt,
    load_problems,
)
from npr_lib.train import portions
from npr_lib.train.engines import checkpoint_engine
from npr_lib.train.rollout import score, to_table


def load_engine(stage: Stage, name: str) -> TorchEngine:
    """The engine of a stage's profile over one of its run's checkpoints."""
    model, tokenizer = load_checkpoint(stage.run_dir / name)
    return TorchEngine(model, tokenizer, stage.profile.engine)


def evaluate(stage: Stage, name: str, split: Split = "test") -> pd.DataFrame:
    """Responses of checkpoint run_dir / name to every problem of a split, in the mode it was
    trained for: `samples` by `sampling` and one greedy (column `temperature` tells them apart).

    Written to `rollouts_path`; what was answered before, of the same, is read from there. The
    problems are worked through in portions of `engine.max_running`, on the profile's engine.
    """
    profile = stage.profile
    path = rollouts_path(stage.run_dir, name, split)
    identity = _identity(stage, name, split)
    if (before := made_before(path, identity)) is not None:
        return before
    problems = load_problems(profile.problems, split, stage.seed)
    count = len(portions.split(stage, problems))
    files = portions.work_through(
        _respond, stage, name, split, path=path, identity=identity, count=count, title=name
    )
    frame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    order = {problem.id: i for i, problem in enumerate(problems)}
    places = frame.assign(place=frame["problem_id"].map(order), cold=-frame["temperature"])
    frame = frame.loc[places.sort_values(["cold", "place", "sample"]).index]
    frame = frame.reset_index(drop=True)
    write_made(frame, path, identity)
    portions.finish(path)
    return frame


def _respond(
    stage: Stage, numbers: Sequence[int], name: str, split: Split
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Each portion of problems with its responses at T = 1 and greedy."""
    profile, section = stage.profile, stage.profile.evaluation
    problems = load_problems(profile.problems, split, stage.seed)
    every, mode = portions.split(stage, problems), checkpoint_mode(stage.run_dir / name)
    with checkpoint_engine(stage.run_dir / name, profile.engine) as engine:
        for number in numbers:
            own = ProblemSet(every[number], problems.verifier)
            frames = []
            hot = section.sampling.temperature
            for i, (temperature, n) in enumerate(((hot, section.samples), (0.0, 1))):
                seed = mix(stage.seed, i)
                params = replace(section.sampling, temperature=temperature, seed=seed)
                frames.append(respond(engine, own, profile.prompt, params, n, name, mode))
            yield number, pd.concat(frames, ignore_index=True)


def _identity(stage: Stage, name: str, split: Split) -> dict[str, Any]:
    profile = stage.profile
    return {
        "task": {"prompt": profile.prompt, "problems": profile.problems, "split": split},
        "kind": tasks.identity(profile.problems),
        "engine": asdict(profile.engine),
        "samples": profile.evaluation.samples,
        "sampling": asdict(profile.evaluation.sampling),
        "model": model_digest(stage.run_dir / name),
        "seed": stage.seed,
        "code": closure(__name__),
    }


def respond(
    engine: Engine,
    problems: ProblemSet,
    template: Prompt,
    params: SamplingParams,
    n: int,
    name: str,
    mode: Mode,
) -> pd.DataFrame:
    """A rollouts table of n scored responses of checkpoint `name` to every problem."""
    prompts = [build_prompt(p, template, engine.tokenizer) for p in problems]
    trajectories = engine.generate(prompts, params, n=n, mode=mode)
    asked = [problem for problem in problems for _ in range(n)]
    samples = [i % n for i in range(len(asked))]
    scored = score(trajectories, asked, problems)
    return to_table(scored, stage=name, checkpoint=name, sample=samples)


def speed(stage: Stage) -> dict[str, Any]:
    """Decoding speed of NPR in parallel, of SR, and of the same NPR responses one token after the
    other, all in this process, problem by problem in turn; without SR where a run has no baselines.

    Latency is measured with one response in flight, throughput with `batch` of them. Tokens are
    completion tokens, engine-written ones included. Written to run_dir / "speed.json":
    {"latency" | "throughput": {npr, sr, replay_parallel, replay_sequential: seconds_per_response,
    tokens_per_second}}, and the ratios, each a median over `speed_rounds` rounds of the quotient
    measured within one round; `ideal` is work / span of the replayed responses.
    """
    profile, section = stage.profile, stage.profile.evaluation
    npr = load_engine(stage, "npr")
    problems = load_problems(profile.problems, "test", stage.seed)[: section.speed_problems]
    prompts = [build_prompt(p, profile.prompt, npr.tokenizer) for p in problems]
    params = replace(section.sampling, seed=stage.seed)
    own = npr.generate(prompts, params)
    runs: dict[str, Callable[[slice], list[Trajectory]]] = {
        "npr": lambda part: npr.generate(prompts[part], params),
        "replay_parallel": lambda part: npr.replay_all(own[part], "parallel"),
        "replay_sequential": lambda part: npr.replay_all(own[part], "sequential"),
    }
    ratios = {"replay": ("replay_sequential", "replay_parallel", "seconds_per_response")}
    if profile.baselines:
        sr = load_engine(stage, "sr")
        runs["sr"] = lambda part: sr.generate(prompts[part], params, mode="sequential")
        ratios["npr_over_sr_tokens"] = ("npr", "sr", "tokens_per_second")
        ratios["npr_over_sr_time"] = ("sr", "npr", "seconds_per_response")
    result: dict[str, Any] = {
        "ideal": sum(t.work for t in own) / sum(t.span for t in own),
        "problems": len(problems),
    }
    for kind, size in (("latency", 1), ("throughput", len(problems))):
        rounds = [
            {name: _measure(run, len(problems), size) for name, run in runs.items()}
            for _ in _rounds(section.speed_rounds, kind)
        ]
        result[kind] = {name: _median([r[name] for r in rounds]) for name in runs}
        result[f"{kind}_ratios"] = {name: _ratio(rounds, *of) for name, of in ratios.items()}
    write_json(stage.run_dir / "speed.json", result)
    return result


def _rounds(count: int, part: str) -> Iterator[int]:
    for i in range(count):
        yield i
        report_progress(i + 1, count, part=part)


def _measure(run: Callable[[slice], list[Trajectory]], total: int, size: int) -> dict[str, float]:
    begin, tokens = time.perf_counter(), 0
    for start in range(0, total, size):
        tokens += sum(t.work for t in run(slice(start, start + size)))
    seconds = time.perf_counter() - begin
    return {"seconds_per_response": seconds / total, "tokens_per_second": tokens / seconds}


def _median(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def _ratio(rounds: Sequence[dict[str, Any]], top: str, bottom: str, field: str) -> float:
    return statistics.median(r[top][field] / r[bottom][field] for r in rounds)
