"""What the benchmark measures: five parts, each a generator of rows as they are measured.

Whatever is compared runs in turns (A B A B ...), so that a busy moment of the machine meets both,
and ratios are taken within a turn. A decode step's time is a difference, that of decoding n tokens
more over n: prompt, guideline and join cancel out.

A row is flat; a quantity `q` measured several times is `q` (median), `q_min` and `q_max`.
"""

from __future__ import annotations

import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from npr_lib import WorkbenchError
from npr_lib.bench.peers import Subject, bare_step, continuous_batching, generate, seconds
from npr_lib.bench.workload import PROMPT, STUB, Sizes, block, trajectory, words
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.reasoning.layout import layout
from npr_lib.reasoning.tokens import TagIds
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

Row = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)

# ---------------------------------------------------------------- measuring


def engine_for(subject: Subject, slots: int, branches: int = 1, running: int = 256) -> TorchEngine:
    """An engine with twice the slots that the work needs, so that nothing is preempted."""
    config = EngineConfig(num_slots=2 * slots, max_running=running, max_branches=branches)
    return TorchEngine(subject.model, subject.tokenizer, config)


def take_turns(arms: Mapping[Name, Callable[[], float]], turns: int) -> dict[Name, list[float]]:
    """What each arm returns in every turn; in a turn all are called, one after the other."""
    taken: dict[Name, list[float]] = {name: [] for name in arms}
    for _ in range(turns):
        for name, arm in arms.items():
            taken[name].append(arm())
    return taken


def spread(name: str, values: Sequence[float]) -> Row:
    """Median, smallest and largest as fields of a row."""
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _bare_seconds(subject: Subject, rows: int, context: int, calls: int) -> Callable[[], float]:
    step = bare_step(subject.peer, rows, context)
    step()
    return lambda: statistics.mean(seconds(step, subject.peer.device) for _ in range(calls))


# ---------------------------------------------------------------- 1. parallel against sequential


def decoding(subject: Subject, sizes: Sizes) -> Iterator[Row]:
    """The same trajectory replayed in parallel and one token after the other, one in flight.

    `ideal` is work / span; an engine that forwards what it writes itself ("<step>i:") in one step
    can pass it by a little. `cap` is what the hardware allows: k times a bare forward of 1 row over
    one of k rows. `overhead` is a k-branch decode step over that forward of k rows.
    """
    for length in sizes.lengths:
        middle = length == sizes.lengths[len(sizes.lengths) // 2]
        for branches in sizes.branches + (sizes.wide if middle else ()):
            yield _decode(subject, sizes, branches, length)


def _decode(subject: Subject, sizes: Sizes, branches: int, length: int) -> Row:
    whole, stub = (trajectory(branches, n, subject.tokenizer) for n in (length, STUB))
    engine = engine_for(subject, PROMPT + whole.work, branches)
    context = whole.segments[1].end + length // 2  # the mean over the branch's steps
    for mode in ("sequential", "parallel"):
        engine.replay(stub, mode)
    replay = {
        "sequential": partial(engine.replay, whole, "sequential"),
        "parallel": partial(engine.replay, whole, "parallel"),
        "stub": partial(engine.replay, stub, "parallel"),
    }
    arms = {name: partial(seconds, call, subject.model.device) for name, call in replay.items()}
    arms["one row"] = _bare_seconds(subject, 1, context, sizes.bare_calls)
    arms["k rows"] = _bare_seconds(subject, branches, context, sizes.bare_calls)
    taken = take_turns(arms, sizes.pairs)
    ideal = whole.work / whole.span
    speedup = _ratios(taken["sequential"], taken["parallel"])
    times = zip(taken["parallel"], taken["stub"], strict=True)
    step = [(long - short) / (length - STUB) for long, short in times]
    return {
        "model": subject.name,
        "branches": branches,
        "length": length,
        "tokens": whole.work,
        "ideal": ideal,
        **spread("speedup", speedup),
        **spread("cap", [branches * r for r in _ratios(taken["one row"], taken["k rows"])]),
        **spread("efficiency", [s / ideal for s in speedup]),
        **spread("overhead", _ratios(step, taken["k rows"])),
        **spread("step_ms", [1e3 * s for s in step]),
        **spread("bare_ms", [1e3 * s for s in taken["k rows"]]),
        **spread("sequential_s", taken["sequential"]),
        **spread("parallel_s", taken["parallel"]),
    }


# ---------------------------------------------------------------- 2. throughput


def throughput(subject: Subject, sizes: Sizes) -> Iterator[Row]:
    """Generated tokens/s of plain sequential generation, greedy, prefill included, beside
    transformers' `generate` and `generate_batch`. `same_tokens`: share of equal tokens, engine
    and `generate` (float32 near-ties and bfloat16 part them)."""
    for responses, new_tokens in sizes.in_flight:
        draw = random.Random(responses)
        lengths = [draw.randint(PROMPT - 8, PROMPT + 8) for _ in range(responses)]
        prompts = [words(n, subject.tokenizer, draw) for n in lengths]
        yield _throughput(subject, sizes.turns, prompts, new_tokens)


def _throughput(
    subject: Subject, turns: int, prompts: Sequence[Sequence[int]], new_tokens: int
) -> Row:
    device = subject.model.device
    engine = engine_for(subject, sum(map(len, prompts)) + len(prompts) * new_tokens)
    params = SamplingParams(max_tokens=new_tokens, temperature=0)
    padded = generate(subject.peer, prompts, new_tokens)
    made: dict[str, list[list[int]]] = {}

    def own() -> None:
        done = engine.generate(prompts, params, mode="sequential")
        made["engine"] = [t.completion_ids for t in done]

    def batch() -> None:
        made["generate"] = padded()

    with continuous_batching(subject.peer, prompts, new_tokens) as batched:

        def continuous() -> float:
            taken, made["generate_batch"] = batched()
            return taken

        arms = {
            "engine": partial(seconds, own, device),
            "generate": partial(seconds, batch, device),
            "generate_batch": continuous,
        }
        take_turns(arms, 1)
        check_equal_work(made, len(prompts), new_tokens)
        taken = take_turns(arms, turns)
    tokens = len(prompts) * new_tokens
    pair = zip(made["engine"], made["generate"], strict=True)
    same = sum(a == b for x, y in pair for a, b in zip(x, y, strict=True))
    row = {"model": subject.name, "responses": len(prompts), "tokens": tokens}
    for arm, times in taken.items():
        row |= spread(f"{arm}_tps", [tokens / t for t in times])
    for arm in ("generate", "generate_batch"):
        row |= spread(f"over_{arm}", _ratios(taken[arm], taken["engine"]))
    return row | {"same_tokens": same / tokens}


def check_equal_work(
    made: Mapping[str, Sequence[Sequence[int]]], responses: int, new_tokens: int
) -> None:
    """WorkbenchError unless every arm made `new_tokens` tokens for each of `responses` prompts."""
    for arm, completions in made.items():
        counts = [len(ids) for ids in completions]
        if counts != [new_tokens] * responses:
            raise WorkbenchError(
                f"{arm} made {sum(counts)} tokens in {len(counts)} responses, expected {new_tokens}"
                f" in each of {responses}: the arms are not comparable"
            )


# ---------------------------------------------------------------- 3. slots


def slots(subject: Subject, sizes: Sizes) -> Iterator[Row]:
    """Slots used at the peak, the tokens there are (`distinct`), and what they would be if every
    branch or sample had its own copy of what comes before it. `again`: tokens forwarded more than
    once, 0 but for preempted responses that resume; `recomputed`: as the engine counts them."""
    length = sizes.lengths[len(sizes.lengths) // 2]
    for branches in sizes.branches:
        one = trajectory(branches, length, subject.tokenizer)
        engine = engine_for(subject, PROMPT + one.work, branches)
        engine.replay(one, "parallel")
        distinct = PROMPT + one.work - 1
        copies = distinct + (branches - 1) * one.segments[1].end
        case = f"{branches} branch{'es' * (branches > 1)} of {length}"
        yield _slots(subject, engine, case, distinct, copies)
    for n in sizes.samples:
        prompt = words(8 * PROMPT, subject.tokenizer, random.Random(n))
        engine = engine_for(subject, len(prompt) + n * sizes.steps)
        params = SamplingParams(max_tokens=sizes.steps, temperature=1)
        engine.generate([prompt], params, n, "sequential")
        distinct = len(prompt) + n * (sizes.steps - 1)
        copies = distinct + (n - 1) * len(prompt)
        case = f"{n} samples of {sizes.steps}, prompt {len(prompt)}"
        yield _slots(subject, engine, case, distinct, copies)
    yield _resume(subject, sizes.branches[-1], length)


def _resume(subject: Subject, branches: int, length: int, responses: int = 4) -> Row:
    """Several responses through a pool that holds one and a half of them."""
    # Prompts that differ, lest the engine store them once.
    several = [trajectory(branches, length, subject.tokenizer, seed) for seed in range(responses)]
    pool = (PROMPT + several[0].work) * 3 // 2
    config = EngineConfig(num_slots=pool, max_branches=branches)
    engine = TorchEngine(subject.model, subject.tokenizer, config)
    engine.replay_all(several, "parallel")
    distinct = responses * (PROMPT + several[0].work - 1)
    copies = distinct + responses * (branches - 1) * several[0].segments[1].end
    case = f"{responses} x {branches} branches, pool {pool}"
    return _slots(subject, engine, case, distinct, copies)


def _slots(subject: Subject, engine: TorchEngine, case: str, distinct: int, copies: int) -> Row:
    """The last token of a response is never forwarded, so `distinct` leaves it out."""
    stats = engine.stats
    return {
        "model": subject.name,
        "case": case,
        "peak": stats.peak_slots,
        "distinct": distinct,
        "copies": copies,
        "saved": copies / stats.peak_slots,
        "again": stats.forwarded - distinct,
        "recomputed": stats.recomputed,
        "preemptions": stats.preemptions,
    }


# ---------------------------------------------------------------- 4. layout


def layouts(sizes: Sizes, repeats: int = 5) -> Iterator[Row]:
    """Positions and visibility of n tokens in blocks of 5 branches: best time of several, and peak
    memory in a run of its own (tracing slows it down). `mask_mb`: what a dense boolean mask of as
    many tokens would take."""
    tokenizer, draw = tiny_tokenizer(), random.Random(0)
    tags = TagIds.from_tokenizer(tokenizer)
    for n in sizes.layouts:
        ids = words(PROMPT, tokenizer, draw)
        while len(ids) + 800 < n:
            ids += block(5, 128, tokenizer, draw)
        ids += words(n - len(ids), tokenizer, draw)
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            layout(ids, tags, PROMPT)
            times.append(time.perf_counter() - begin)
        tracemalloc.start()
        layout(ids, tags, PROMPT)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        row = {"tokens": n, "ms": 1e3 * min(times), "us_per_token": 1e6 * min(times) / n}
        yield row | {"mb": peak / 1e6, "bytes_per_token": peak / n, "mask_mb": n * n / 1e6}


# ---------------------------------------------------------------- 5. marginal costs


def marginal(subject: Subject, sizes: Sizes) -> Iterator[Row]:
    """What a decode step costs more with one more branch, one more response in flight, a thousand
    tokens more of prefix: slopes of least squares (ms), engine beside bare forwards."""
    yield _slope(subject, sizes, "branch", 1, sizes.more_branches, _branch_step)
    yield _slope(subject, sizes, "response", 1, sizes.more_responses, _response_step)
    yield _slope(subject, sizes, "1000 tokens of prefix", 1000, sizes.more_prefix, _prefix_step)


def _slope(
    subject: Subject,
    sizes: Sizes,
    more: str,
    unit: int,
    counts: Sequence[int],
    make: Callable[[Subject, Sizes, int], tuple[Callable[[], float], int, int]],
) -> Row:
    """make: (subject, sizes, count) -> the engine's seconds a step, rows and context of the bare
    forward to set it against."""
    arms: dict[tuple[str, int], Callable[[], float]] = {}
    for count in counts:
        arms["engine", count], rows, context = make(subject, sizes, count)
        arms["bare", count] = _bare_seconds(subject, rows, context, sizes.bare_calls)
    taken = take_turns(arms, sizes.pairs)
    row: Row = {"model": subject.name, "more": more, "counts": list(counts)}
    for side in ("engine", "bare"):
        ms = 1e3 * np.array([taken[side, count] for count in counts])  # [counts, turns]
        row |= spread(f"{side}_ms", (unit * np.polyfit(counts, ms, 1)[0]).tolist())
        row[f"{side}_ms_at"] = np.median(ms, axis=1).tolist()
    return row


def _difference(
    subject: Subject, steps: int, long: Callable[[], object], short: Callable[[], object]
) -> Callable[[], float]:
    """Seconds of one decode step, from a call that makes `steps` more than another."""
    device = subject.model.device
    short()
    return lambda: (seconds(long, device) - seconds(short, device)) / steps


def _branch_step(
    subject: Subject, sizes: Sizes, count: int
) -> tuple[Callable[[], float], int, int]:
    whole, stub = (trajectory(count, STUB + n, subject.tokenizer) for n in (sizes.steps, 0))
    engine = engine_for(subject, PROMPT + whole.work, count)
    long, short = (partial(engine.replay, t, "parallel") for t in (whole, stub))
    context = whole.segments[1].end + STUB + sizes.steps // 2
    return _difference(subject, sizes.steps, long, short), count, context


def _response_step(
    subject: Subject, sizes: Sizes, count: int, prefix: int = PROMPT
) -> tuple[Callable[[], float], int, int]:
    draw = random.Random(prefix)
    prompts = [words(prefix, subject.tokenizer, draw) for _ in range(count)]
    engine = engine_for(subject, count * (prefix + sizes.steps + 2))
    greedy = (SamplingParams(max_tokens=n, temperature=0) for n in (sizes.steps + 2, 2))
    long, short = (partial(engine.generate, prompts, p, mode="sequential") for p in greedy)
    return _difference(subject, sizes.steps, long, short), count, prefix + sizes.steps // 2


def _prefix_step(
    subject: Subject, sizes: Sizes, count: int
) -> tuple[Callable[[], float], int, int]:
    return _response_step(subject, sizes, 1, prefix=count)
