"""Evaluation of checkpoints on held-out problems, and of decoding speed on one machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.checkpoint import checkpoint_mode, load_checkpoint
from npr_lib.engine.sampling import mix
from npr_lib.progress import report_progress
from npr_lib.reasoning.trajectory import Mode, Trajectory, rollouts_path, to_rows
from npr_lib.rewards import format_reward
from npr_lib.tasks.problems import ProblemSet, Split, build_prompt, load_problems


def load_engine(profile: dict[str, Any], checkpoint: Path) -> TorchEngine:
    """The engine of a profile over a checkpoint folder."""
    model, tokenizer = load_checkpoint(checkpoint)
    return TorchEngine(model, tokenizer, EngineConfig(**profile["engine"]))


def evaluate(
    profile: dict[str, Any], run_dir: Path, name: str, seed: int, split: Split = "test"
) -> pd.DataFrame:
    """Responses of checkpoint run_dir / name to every problem of a split, in the mode it was
    trained for: `samples` at T = 1 and one greedy (column `temperature` tells them apart).

    Written to `rollouts_path` for the test split.
    """
    section = profile["evaluation"]
    engine = load_engine(profile, Path(run_dir) / name)
    problems = load_problems(profile["problems"], split, seed)
    mode = checkpoint_mode(Path(run_dir) / name)
    frames = []
    settings = [(1.0, section["samples"]), (0.0, 1)]
    for i, (temperature, n) in enumerate(settings):
        params = SamplingParams(
            **{**section["sampling"], "temperature": temperature, "seed": mix(seed, i)}
        )
        frames.append(respond(profile, engine, problems, params, n, name, mode))
        report_progress(i + 1, len(settings), part=name)
    frame = pd.concat(frames, ignore_index=True)
    if split == "test":
        path = rollouts_path(run_dir, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(path, index=False)
    return frame


def respond(
    profile: dict[str, Any],
    engine: TorchEngine,
    problems: ProblemSet,
    params: SamplingParams,
    n: int,
    name: str,
    mode: Mode,
) -> pd.DataFrame:
    """A rollouts table of n scored responses of checkpoint `name` to every problem."""
    prompts = [build_prompt(p, profile["prompt"], engine.tokenizer) for p in problems]
    trajectories = engine.generate(prompts, params, n=n, mode=mode)
    asked = [problem for problem in problems for _ in range(n)]
    correct = [
        float(problems.verify(t.graph.boxed, p)) for t, p in zip(trajectories, asked, strict=True)
    ]
    return to_rows(
        trajectories,
        problem_id=[p.id for p in asked],
        problem=[p.problem for p in asked],
        answer=[p.answer for p in asked],
        stage=name,
        checkpoint=name,
        sample=[i % n for i in range(len(asked))],
        accuracy=correct,
        reward=[2 * c - 1 for c in correct],
        format_reward=[format_reward(t.graph) for t in trajectories],
    )


def speed(profile: dict[str, Any], run_dir: Path, seed: int) -> dict[str, Any]:
    """Decoding speed of NPR in parallel, of SR, and of the same NPR responses one token after the
    other, all in this process, problem by problem in turn.

    Latency is measured with one response in flight, throughput with `batch` of them. Tokens are
    completion tokens, engine-written ones included. Written to run_dir / "speed.json":
    {"latency" | "throughput": {npr, sr, replay_parallel, replay_sequential: seconds_per_response,
    tokens_per_second}}, and the ratios, each a median over `speed_rounds` rounds of the quotient
    measured within one round; `ideal` is work / span of the replayed responses.
    """
    section = profile["evaluation"]
    npr = load_engine(profile, Path(run_dir) / "npr")
    sr = load_engine(profile, Path(run_dir) / "sr")
    problems = list(load_problems(profile["problems"], "test", seed))[: section["speed_problems"]]
    prompts = [build_prompt(p, profile["prompt"], npr.tokenizer) for p in problems]
    params = SamplingParams(**{**section["sampling"], "seed": seed})
    own = npr.generate(prompts, params)
    runs: dict[str, Callable[[slice], list[Trajectory]]] = {
        "npr": lambda part: npr.generate(prompts[part], params),
        "sr": lambda part: sr.generate(prompts[part], params, mode="sequential"),
        "replay_parallel": lambda part: npr.replay_all(own[part], "parallel"),
        "replay_sequential": lambda part: npr.replay_all(own[part], "sequential"),
    }
    result: dict[str, Any] = {
        "ideal": sum(t.work for t in own) / sum(t.span for t in own),
        "problems": len(problems),
    }
    for kind, size in (("latency", 1), ("throughput", len(problems))):
        rounds = [
            {name: _measure(run, len(problems), size) for name, run in runs.items()}
            for _ in _rounds(section["speed_rounds"], kind)
        ]
        result[kind] = {name: _median([r[name] for r in rounds]) for name in runs}
        result[f"{kind}_ratios"] = {
            "npr_over_sr_tokens": _ratio(rounds, "npr", "sr", "tokens_per_second"),
            "npr_over_sr_time": _ratio(rounds, "sr", "npr", "seconds_per_response"),
            "replay": _ratio(
                rounds, "replay_sequential", "replay_parallel", "seconds_per_response"
            ),
        }
    (Path(run_dir) / "speed.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _rounds(count: int, part: str) -> Sequence[int]:
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
