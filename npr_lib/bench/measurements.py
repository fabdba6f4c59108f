"""What the benchmark measures: five sections, each a generator of a table line's measurements.

Whatever is compared runs in turns (A B A B ...), so that a busy moment of the machine meets both,
and ratios are taken within a turn. A decode step's time is a difference, that of decoding n tokens
more over n: prompt, guideline and join cancel out.
"""

from __future__ import annotations

import random
import statistics
import tracemalloc
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from npr_lib import WorkbenchError
from npr_lib.bench import peers
from npr_lib.bench.peers import Ids, Subject, Timer, timed
from npr_lib.bench.sections import Row
from npr_lib.bench.workload import PROMPT, STUB, Sizes, block, trajectory, words
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.reasoning.layout import layout
from npr_lib.reasoning.tokens import TagIds
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

# One decode step of the engine; rows and context of the bare forward to set it against.
Step = tuple[Timer, int, int]


def engine_for(subject: Subject, slots: int, branches: int = 1) -> TorchEngine:
    """An engine with twice the slots that the work needs, so that nothing is preempted."""
    config = EngineConfig(num_slots=2 * slots, max_running=256, max_branches=branches)
    return TorchEngine(subject.model, subject.tokenizer, config)


def take_turns(arms: Mapping[Any, Timer], rounds: int, sizes: Row) -> list[Row]:
    """A row for every arm and round; in a round all are called, one after the other."""
    return [
        {**sizes, "arm": name, "round": i, "value": arm(), "unit": "s"}
        for i in range(rounds)
        for name, arm in arms.items()
    ]


def counted(counts: Mapping[str, float], unit: str, sizes: Row) -> list[Row]:
    """Rows of what is the same in every round, and so stands in the first alone."""
    about = {**sizes, "round": 0, "unit": unit}
    return [{**about, "arm": name, "value": count} for name, count in counts.items()]


def greedy(tokens: int) -> SamplingParams:
    """The most likely token, as many times."""
    return SamplingParams(max_tokens=tokens, temperature=0)


def _bare(subject: Subject, rows: int, context: int, calls: int) -> Timer:
    step = timed(subject.device, peers.bare_step(subject.peer, rows, context))
    step()
    return lambda: statistics.mean(step() for _ in range(calls))


def decoding(subject: Subject, sizes: Sizes) -> Iterator[list[Row]]:
    """The same trajectory replayed in parallel and one token after the other, one in flight, beside
    bare forwards of one row and of k rows.

    The ideal is work / span; an engine that forwards what it writes itself ("<step>i:") in one step
    can pass it by a little.
    """
    for length in sizes.lengths:
        for branches in sizes.branches + (sizes.wide if length == sizes.middle else ()):
            whole, stub = (trajectory(branches, n, subject.tokenizer) for n in (length, STUB))
            engine = engine_for(subject, PROMPT + whole.work, branches)
            context = whole.segments[1].end + length // 2  # the mean over the branch's steps
            for mode in ("sequential", "parallel"):
                engine.replay(stub, mode)
            arms = {
                "sequential": timed(subject.device, engine.replay, whole, "sequential"),
                "parallel": timed(subject.device, engine.replay, whole, "parallel"),
                "stub": timed(subject.device, engine.replay, stub, "parallel"),
                "one_row": _bare(subject, 1, context, sizes.bare_calls),
                "k_rows": _bare(subject, branches, context, sizes.bare_calls),
            }
            row = {"branches": branches, "length": length, "work": whole.work, "span": whole.span}
            yield take_turns(arms, sizes.pairs, row | {"steps": length - STUB})


def throughput(subject: Subject, sizes: Sizes) -> Iterator[list[Row]]:
    """Plain sequential generation, greedy, prefill included, beside transformers' `generate` and
    `generate_batch`. `same`: share of equal tokens, engine and `generate` (float32 near-ties and
    bfloat16 part them)."""
    for responses, new_tokens in sizes.in_flight:
        draw = random.Random(responses)
        lengths = [draw.randint(PROMPT - 8, PROMPT + 8) for _ in range(responses)]
        prompts = [words(n, subject.tokenizer, draw) for n in lengths]
        yield _throughput(subject, sizes.turns, prompts, new_tokens)


def _throughput(subject: Subject, rounds: int, prompts: Ids, new_tokens: int) -> list[Row]:
    engine = engine_for(subject, sum(map(len, prompts)) + len(prompts) * new_tokens)
    padded = peers.generate(subject.peer, prompts, new_tokens)
    made: dict[str, Ids] = {}

    def own() -> None:
        done = engine.generate(prompts, greedy(new_tokens), mode="sequential")
        made["engine"] = [t.completion_ids for t in done]

    with peers.continuous_batching(subject.peer, prompts, new_tokens) as batched:

        def continuous() -> float:
            taken, made["generate_batch"] = batched()
            return taken

        arms = {
            "engine": timed(subject.device, own),
            "generate": timed(subject.device, lambda: made.update(generate=padded())),
            "generate_batch": continuous,
        }
        sizes = {"in flight": len(prompts), "tokens": len(prompts) * new_tokens}
        take_turns(arms, 1, sizes)
        check_equal_work(made, len(prompts), new_tokens)
        rows = take_turns(arms, rounds, sizes)
    pairs = zip(made["engine"], made["generate"], strict=True)
    same = statistics.mean(a == b for x, y in pairs for a, b in zip(x, y, strict=True))
    return rows + counted({"same": same}, "share", sizes)


def check_equal_work(made: Mapping[str, Ids], responses: int, new_tokens: int) -> None:
    """WorkbenchError unless every arm made `new_tokens` tokens for each of `responses` prompts."""
    for arm, completions in made.items():
        counts = [len(ids) for ids in completions]
        if counts != [new_tokens] * responses:
            raise WorkbenchError(
                f"{arm} made {sum(counts)} tokens in {len(counts)} responses, expected {new_tokens}"
                f" in each of {responses}: the arms are not comparable"
            )


def slots(subject: Subject, sizes: Sizes) -> Iterator[list[Row]]:
    """Slots used at the peak, the tokens there are (`distinct`), and what they would be if every
    branch or sample had its own copy of what comes before it. `again`: tokens forwarded more than
    once, 0 but for preempted responses that resume; `recomputed`: as the engine counts them.

    The last token of a response is never forwarded, so `distinct` leaves it out.
    """
    for n in sizes.samples:
        prompt = words(8 * PROMPT, subject.tokenizer, random.Random(n))
        engine = engine_for(subject, len(prompt) + n * sizes.steps)
        params = SamplingParams(max_tokens=sizes.steps, temperature=1)
        engine.generate([prompt], params, n, "sequential")
        distinct = len(prompt) + n * (sizes.steps - 1)
        case = f"{n} samples of {sizes.steps}, prompt {len(prompt)}"
        yield _slots(engine, case, distinct, distinct + (n - 1) * len(prompt))
    for branches, responses in [*((k, 1) for k in sizes.branches), (sizes.branches[-1], 4)]:
        # Prompts that differ, lest the engine store them once.
        shape = (branches, sizes.middle, subject.tokenizer)
        several = [trajectory(*shape, seed) for seed in range(responses)]
        whole = PROMPT + several[0].work
        pool = 2 * whole if responses == 1 else 3 * whole // 2  # too small: they are preempted
        config = EngineConfig(num_slots=pool, max_branches=branches)
        engine = TorchEngine(subject.model, subject.tokenizer, config)
        engine.replay_all(several, "parallel")
        distinct = responses * (whole - 1)
        copies = distinct + responses * (branches - 1) * several[0].segments[1].end
        case = f"{responses} x {branches} branches of {sizes.middle}, pool {pool}"
        yield _slots(engine, case, distinct, copies)


def _slots(engine: TorchEngine, case: str, distinct: int, copies: int) -> list[Row]:
    stats = engine.stats
    tokens = {"peak": stats.peak_slots, "distinct": distinct, "copies": copies}
    tokens |= {"again": stats.forwarded - distinct, "recomputed": stats.recomputed}
    preempted = counted({"preempted": stats.preemptions}, "times", {"case": case})
    return counted(tokens, "tokens", {"case": case}) + preempted


def layouts(sizes: Sizes, rounds: int = 5) -> Iterator[list[Row]]:
    """Positions and visibility of n tokens in blocks of 5 branches: time, and peak memory in a run
    of its own (tracing slows it down)."""
    tokenizer, draw = tiny_tokenizer(), random.Random(0)
    tags = TagIds.from_tokenizer(tokenizer)
    for n in sizes.layouts:
        ids = words(PROMPT, tokenizer, draw)
        while len(ids) + 800 < n:
            ids += block(5, 128, tokenizer, draw)
        ids += words(n - len(ids), tokenizer, draw)
        make = timed(torch.device("cpu"), layout, ids, tags, PROMPT)
        tracemalloc.start()
        make()
        memory = counted({"memory": tracemalloc.get_traced_memory()[1]}, "B", {"tokens": n})
        tracemalloc.stop()
        yield memory + take_turns({"time": make}, rounds, {"tokens": n})


def marginal(subject: Subject, sizes: Sizes) -> Iterator[list[Row]]:
    """A decode step with more and more branches, responses in flight, thousands of tokens of
    prefix, engine beside bare forwards; all counts of them take their turns in one round."""
    for more, counts, make in (
        ("1 branch", sizes.more_branches, _branches),
        ("1 response", sizes.more_responses, _responses),
        ("1000 tokens of prefix", sizes.more_prefix, _prefix),
    ):
        arms: dict[tuple[str, float], Timer] = {}
        for count in counts:
            step = make(subject, sizes.steps, count)  # type: ignore[arg-type]  # int where asked for
            arms["engine", count], rows, context = step
            arms["bare", count] = _bare(subject, rows, context, sizes.bare_calls)
        taken = take_turns(arms, sizes.pairs, {"with more": more})
        yield [row | dict(zip(("arm", "count"), row["arm"], strict=True)) for row in taken]


def _branches(subject: Subject, steps: int, count: int) -> Step:
    whole, stub = (trajectory(count, STUB + n, subject.tokenizer) for n in (steps, 0))
    engine = engine_for(subject, PROMPT + whole.work, count)
    long, short = (timed(subject.device, engine.replay, t, "parallel") for t in (whole, stub))
    short()
    return lambda: (long() - short()) / steps, count, whole.segments[1].end + STUB + steps // 2


def _responses(subject: Subject, steps: int, count: int, prefix: int = PROMPT) -> Step:
    draw = random.Random(prefix)
    prompts = [words(prefix, subject.tokenizer, draw) for _ in range(count)]
    engine = engine_for(subject, count * (prefix + steps + 2))
    long, short = (
        timed(subject.device, engine.generate, prompts, greedy(n), mode="sequential")
        for n in (steps + 2, 2)
    )
    short()
    return lambda: (long() - short()) / steps, count, prefix + steps // 2


def _prefix(subject: Subject, steps: int, thousands: float) -> Step:
    return _responses(subject, steps, 1, prefix=round(1000 * thousands))
