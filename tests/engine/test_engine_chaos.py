"""Chaos: many random requests at once through a pool that is hardly larger than the largest one.

Requests come in calls of every kind (generate, stream, submit), with common prefixes, forks,
nesting, garbage, budgets, stop strings, prefixes to go on from; some are cancelled, some streams
are closed halfway, some can never fit. After every step the slots are counted again from the
tokens; at the end nothing is left, and every response is what the same call gives alone in a large
pool.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from invariants import by_path, check_empty, check_slots, first_difference, margin
from oracles import random_model
from policies import random_policy
from test_engine_oracle import check_against_dense

from npr_lib.engine import EngineConfig, Event, Finish, SamplingParams, TorchEngine
from npr_lib.engine.api import Prefix
from npr_lib.engine.branch import Response
from npr_lib.engine.scheduler import Request
from npr_lib.reasoning.layout import sampled_tokens
from npr_lib.reasoning.tokens import encode
from npr_lib.reasoning.trajectory import Mode, Trajectory
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
STEMS = ["", "A=1+2;", "A=1+2;B=3;C=", "7+8=" * 6, "A=1+2;B=4;" * 5]


@dataclass
class ChaosCall:
    """One call, how it is made and left, and what came of it."""

    prompts: list[list[int]]
    params: list[SamplingParams]
    n: int
    mode: Mode
    prefix: list[Prefix | None] | None
    way: str  # generate | stream | submit
    leave: int | None  # streams: after that many events; submits: after that many steps
    requests: list[Request] = field(default_factory=list)
    stream: Iterator[Event] | None = None
    events: list[Event] = field(default_factory=list)
    trajectories: list[Trajectory | None] = field(default_factory=list)

    @property
    def arguments(self) -> tuple:
        return self.prompts, self.params, self.n, self.mode, self.prefix

    @property
    def size(self) -> int:
        """Slots that its largest response may need."""
        pairs = zip(self.prompts, self.params, strict=True)
        return max(len(prompt) + params.max_tokens for prompt, params in pairs)


def random_params(rng: random.Random) -> SamplingParams:
    stops = [("7",), ("=", "1+"), ("</step>",), ("AB",), ("3</",), ("D;", "zz")]
    return SamplingParams(
        max_tokens=rng.choice([1, 20, 60, 120, 120, 200]),
        max_span=rng.choice([None] * 6 + [25]),
        min_fork_tokens=rng.choice([0] * 6 + [30]),
        temperature=rng.choice([0.0, 0.7, 1.0, 1.0, 1.3]),
        top_p=rng.choice([1.0, 1.0, 0.8]),
        top_k=rng.choice([0, 0, 5]),
        branch_penalty=rng.choice([1.0, 1.0, 1.2]),
        stop=rng.choice([(), (), (), rng.choice(stops)]),
        seed=rng.randrange(2**64),
    )


def random_call(rng: random.Random) -> ChaosCall:
    ids = lambda: encode(rng.choice(STEMS) + rng.choice("ABCD0123") * rng.randint(0, 3), TOKENIZER)  # noqa: E731
    prompts = [ids() or [rng.randrange(11, 100)] for _ in range(rng.choice([1, 1, 2, 3]))]
    params = [random_params(rng) for _ in prompts]
    way = rng.choice(["generate", "stream", "stream", "submit", "submit"])
    mode = rng.choice(["parallel"] * 4 + ["sequential"])
    leave = rng.randint(0, 250) if way == "stream" else rng.randint(0, 10)
    leave = leave if way != "generate" and rng.random() < 0.35 else None
    return ChaosCall(prompts, params, rng.choice([1, 1, 2]), mode, None, way, leave)


def chaotic_policy(rng: random.Random):
    """Writes structure, sometimes garbage, and leaves some tokens to the model: all of it a
    function of the branch alone."""
    plain = random_policy(TOKENIZER, broken=rng.choice([0.0, 0.1]), nested=0.3)
    garbage = random_policy(TOKENIZER, garbage=0.2)

    def choose(response, branch):
        if response.grammar.mode == "sequential":
            return None
        own = random.Random(f"{response.root.key}")
        policy = garbage if own.random() < 0.1 else plain
        free = random.Random(f"{branch.key}?{len(branch.sampled)}").random() < 0.05
        return None if free and branch.state in ("text", "takeaway") else policy(response, branch)

    return choose


def cut(rng: random.Random, t: Trajectory) -> Prefix:
    """A trajectory's chosen tokens up to a random position."""
    ids = t.prompt_ids + t.completion_ids
    chosen = [True] * t.work
    if t.mode == "parallel":
        chosen = sampled_tokens(ids, t.layout, TOKENIZER, t.style)
    start, last = len(t.prompt_ids), int(t.position_ids.max())
    position = rng.randint(start - 1, max(start - 1, last - 1))
    prefix = {}
    for path, own in by_path(t).items():
        keep = [x[0] for x in own if x[1] <= position and chosen[x[3] - start]]
        prefix[path] = keep
    return prefix


def with_prefixes(rng: random.Random, calls: Sequence[ChaosCall], engine: TorchEngine) -> None:
    """Let a fifth of the calls go on from cuts of what they would be."""
    for call in calls:
        if rng.random() > 0.2:
            continue
        whole = engine.generate(*call.arguments)[:: call.n]
        cuts = [cut(rng, t) if t.finish_reason == "stop" else None for t in whole]
        call.prefix = [p if p and any(p.values()) else None for p in cuts]


class Chaos:
    """One round: a model, an engine with hardly any room, calls that get in each other's way."""

    def __init__(self, seed: int, count: int, style: str = "compact") -> None:
        self.rng = rng = random.Random(seed)
        model = random_model(rng, TOKENIZER)
        depth = rng.choice([1, 2, 3])
        # one call after the other, one response at a time, with room for all
        limits = {"max_running": 1, "max_depth": depth, "style": style}
        self.alone = TorchEngine(model, TOKENIZER, EngineConfig(num_slots=4096, **limits))
        self.calls = []
        while sum(len(call.prompts) * call.n for call in self.calls) < count:
            self.calls.append(random_call(rng))
        self.depth, self.model = depth, model

    def run(self, patch: pytest.MonkeyPatch) -> Counter[str]:
        policy = chaotic_policy(self.rng)
        patch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
        with_prefixes(self.rng, self.calls, self.alone)
        persistent = self.rng.random() < 0.3
        self.engine = TorchEngine(
            self.model,
            TOKENIZER,
            EngineConfig(
                num_slots=int(1.2 * max(call.size for call in self.calls)),
                max_running=self.rng.choice([2, 5, 256]),
                max_depth=self.depth,
                max_step_tokens=self.rng.choice([5, 12, 40, 4096]),
                persistent_prefix=persistent,
                style=self.alone.style.name,
            ),
        )
        step = self.engine.step

        def checking() -> list[Event]:
            events = step()
            check_slots(self.engine)
            return events

        self.engine.step = checking
        self.go()
        check_empty(self.engine, cached=persistent)
        self.engine.weights_changed()
        assert (
            self.engine.kv.num_cached == 0 and len(self.engine.kv._free) == self.engine.kv.num_slots
        )
        return self.compare()

    def go(self) -> None:
        rng, queue, open_ = self.rng, list(self.calls), []
        while queue or open_:
            if queue and (len(open_) < 4 or rng.random() < 0.1):
                self.begin(queue.pop(0), open_)
                continue
            call = rng.choice(open_)
            if call.stream is not None:
                self.advance(call)
            else:
                self.wait(call)
            if call.trajectories:
                open_.remove(call)
            if rng.random() < 0.003:
                self.engine.weights_changed()  # to the same ones: everything is preempted
                check_slots(self.engine)
            if rng.random() < 0.02:
                with pytest.raises(ValueError, match="slots, the pool has"):
                    room = SamplingParams(max_tokens=self.engine.kv.num_slots)
                    self.engine.generate([[20]], room)

    def begin(self, call: ChaosCall, open_: list[ChaosCall]) -> None:
        if call.way == "generate":
            call.trajectories = self.engine.generate(*call.arguments)
            return
        open_.append(call)
        if call.way == "stream":
            call.stream = self.engine.stream(*call.arguments)
        else:
            call.requests = self.engine.submit(*call.arguments)

    def advance(self, call: ChaosCall) -> None:
        """Some events of a stream."""
        for _ in range(self.rng.randint(1, 60)):
            if call.leave is not None and len(call.events) >= call.leave:
                call.stream.close()
                check_slots(self.engine)
                event = None
            else:
                event = next(call.stream, None)
            if event is None:
                found = {e.index: e.trajectory for e in call.events if isinstance(e, Finish)}
                count = len(call.prompts) * call.n
                call.trajectories = [found.get(i) for i in range(count)]
                assert len(found) == count or call.leave is not None
                return
            call.events.append(event)

    def wait(self, call: ChaosCall) -> None:
        """Some steps for what was submitted."""
        for _ in range(self.rng.randint(1, 10)):
            if call.leave == 0:
                self.engine.cancel(
                    self.rng.sample(call.requests, self.rng.randint(1, len(call.requests)))
                )
                check_slots(self.engine)
                call.leave = -1
            if all(r.trajectory is not None or r.error is not None for r in call.requests):
                break
            self.engine.step()
            if call.leave is not None and call.leave > 0:
                call.leave -= 1
        else:
            return
        call.trajectories = [r.trajectory for r in call.requests]
        for request in call.requests:
            assert request.error is None or isinstance(request.error, InterruptedError)

    def compare(self) -> Counter[str]:
        """Every response with the same call's in the engine that has room for all."""
        counts: Counter[str] = Counter(preemptions=self.engine.stats.preemptions)
        for call in self.calls:
            expected = self.alone.generate(*call.arguments)
            for i, (want, own) in enumerate(zip(expected, call.trajectories, strict=True)):
                counts["responses"] += 1
                if own is None:
                    counts["left"] += 1
                    continue
                self.compare_one(call, i, want, own, counts)
        return counts

    def compare_one(
        self, call: ChaosCall, i: int, want: Trajectory, own: Trajectory, counts: Counter[str]
    ) -> None:
        params = call.params[i // call.n]
        counts[own.finish_reason] += 1
        counts["tokens"] += own.work
        counts["nested"] += any(len(path) > 1 for path in by_path(own))
        if own.finish_reason == "cancelled":
            ours, theirs = by_path(own), by_path(want)
            ends = {p: x[: len(ours.get(p, []))] for p, x in theirs.items()}
            same = all(
                [a[:2] for a in x] == [b[:2] for b in ends.get(p, [])] for p, x in ours.items()
            )
        else:
            same = first_difference(want, own) is None
        if same:
            if own.finish_reason != "cancelled":
                assert (own.finish_reason, own.violation) == (want.finish_reason, want.violation)
                assert own.layout == want.layout and own.sampled == want.sampled
                assert np.allclose(own.logprobs, want.logprobs, atol=1e-4, equal_nan=True)
        else:
            position, path, index = first_difference(want, own)
            prompt = own.prompt_ids
            occurrence = call.prompts[: i // call.n].count(prompt)
            near = margin(self.model, own, path, index, params, occurrence, i % call.n)
            assert near < 1e-4, f"differs at position {position} of {path}: {near}"
            counts["near-ties"] += 1
        if self.rng.random() < 0.25:
            counts["oracle"] += 1
            check_against_dense(self.model, own)


def rounds(
    patch: pytest.MonkeyPatch, seeds: Sequence[int], count: int, style: str = "compact"
) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            counts += Chaos(seed, count, style).run(patch)
        except BaseException as error:
            error.add_note(f"chaos round {seed} of {count} responses in style {style}")
            raise
    print(dict(counts))
    assert counts["near-ties"] <= max(1, counts["tokens"] / 10_000)
    assert {"stop", "length", "invalid", "stop_string", "cancelled"} <= counts.keys()
    assert counts["preemptions"] and counts["nested"] and counts["oracle"] and counts["left"]
    return counts


@pytest.mark.parametrize("style, number", [("compact", 8), ("lines", 5)])
def test_chaos(monkeypatch, style, number):
    assert rounds(monkeypatch, range(number), 25, style)["responses"] >= 25 * number


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("style", ["compact", "lines"])
def test_chaos_of_2000(monkeypatch, style):
    assert rounds(monkeypatch, range(100, 150), 40, style)["responses"] >= 2000


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_soak(monkeypatch):
    """One engine for NPR_SOAK_SECONDS (600): memory at the end is what it was after warming up."""
    duration = float(os.environ.get("NPR_SOAK_SECONDS", "600"))
    chaos, memory, count = Chaos(1, 1), [], 0
    policy = chaotic_policy(random.Random(0))
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    config = EngineConfig(num_slots=300, max_depth=2, max_step_tokens=64)
    engine = chaos.engine = TorchEngine(chaos.model, TOKENIZER, config)
    begin = time.monotonic()
    while (spent := time.monotonic() - begin) < duration:
        chaos.rng = random.Random(count % 10)  # the same ten loads again and again
        chaos.calls = []
        while sum(len(call.prompts) * call.n for call in chaos.calls) < 20:
            chaos.calls.append(random_call(chaos.rng))
        chaos.go()
        check_empty(engine)
        chaos.calls = []
        gc.collect()
        memory.append((spent, resident(), len(gc.get_objects())))
        count += 1
    assert count > 20
    after, end = ([m for m in memory if low <= m[0] / duration < low + 0.1] for low in (0.2, 0.9))
    grown, objects = (
        np.median([m[i] for m in end]) - np.median([m[i] for m in after]) for i in (1, 2)
    )
    print(
        f"{count} rounds, {engine.stats.responses} responses: {grown / 2**20:+.2f} MiB, {objects:+}"
    )
    assert grown < 4 * 2**20 and objects < 100
