"""Several threads call one engine: they take turns at step boundaries, and none hangs."""

import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from invariants import check_empty, check_every_step, rebuild
from oracles import random_model
from policies import random_policy

from npr_lib.engine import EngineConfig, Finish, SamplingParams, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.reasoning.tokens import TagIds, encode
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

pytestmark = pytest.mark.timeout(240)
TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)
PROMPTS = ["A=1+2", "B", "7;8;9=", "C=", "D;", "1", "22", "AB=3"]
WORD = encode("7", TOKENIZER)[0]


def make_engine(**config):
    model = random_model(random.Random(0), TOKENIZER)
    return check_every_step(TorchEngine(model, TOKENIZER, EngineConfig(max_depth=2, **config)))


@pytest.fixture
def writer(monkeypatch):
    """Forks and joins; what is written depends on the branch alone, so no near-tie can flip."""
    policy = random_policy(TOKENIZER)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))


def together(*functions: Callable[[], object], seconds: float = 120) -> list:
    """What each returns, or the exception it ends with, run at the same time."""
    results = ["hangs"] * len(functions)

    def run(i: int) -> None:
        try:
            results[i] = functions[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    assert "hangs" not in [r for r in results if isinstance(r, str)]
    return results


def assert_same(got, expected):
    assert not isinstance(got, BaseException), repr(got)
    for a, b in zip(got, expected, strict=True):
        assert a.completion_ids == b.completion_ids and a.layout == b.layout
        assert a.finish_reason == b.finish_reason and a.prompt_ids == b.prompt_ids
        assert np.allclose(a.logprobs, b.logprobs, atol=1e-4, equal_nan=True)


def assert_told(events, expected):
    """The events of a stream tell these trajectories, in whatever order they ended."""
    ends = {e.index: e.trajectory for e in events if isinstance(e, Finish)}
    assert_same([ends[i] for i in sorted(ends)], expected)
    for index, t in ends.items():
        told = rebuild([e for e in events if e.index == index], len(t.prompt_ids), TAGS)
        assert [x[0] for x in told] == t.completion_ids


def call(thread, i):
    """Arguments of a call: different prompts, budgets and seeds."""
    prompts = [PROMPTS[(thread + i) % 8], PROMPTS[(thread + 3 * i + 1) % 8]]
    return prompts, SamplingParams(max_tokens=20 + 10 * (i % 5), seed=10 * thread + i), 1 + i % 2


def test_calls_of_four_threads_equal_the_calls_alone(writer):
    """A small pool, so that responses of one thread are preempted by those of another."""
    alone = [[make_engine().generate(*call(t, i)) for i in range(10)] for t in range(4)]
    engine = make_engine(num_slots=250)
    engine.model.train()

    def work(thread):
        return [engine.generate(*call(thread, i)) for i in range(10)]

    results = together(*(lambda t=t: work(t) for t in range(4)))
    for own, expected in zip(results, alone, strict=True):
        assert not isinstance(own, BaseException), repr(own)
        for got, one in zip(own, expected, strict=True):
            assert_same(got, one)
    assert engine.model.training
    assert engine.stats.preemptions
    check_empty(engine)


def test_a_suspended_stream_holds_nobody_up(writer):
    """Its consumer rests while other threads call, then goes on, or closes it."""
    params = SamplingParams(max_tokens=90, seed=3)
    alone = make_engine().generate(PROMPTS[:2], params, 2)
    others = [make_engine().generate(*call(t, 2)) for t in range(3)]
    engine = make_engine(num_slots=500)
    streams = [engine.stream(PROMPTS[:2], params, 2) for _ in range(2)]
    events = [[next(stream) for _ in range(25)] for stream in streams]
    calls = [lambda t=t: engine.generate(*call(t, 2)) for t in range(3)]
    for got, expected in zip(together(*calls), others, strict=True):
        assert_same(got, expected)
    # one goes on and the other is closed while the threads are at it again
    rest, _, *results = together(lambda: list(streams[0]), streams[1].close, *calls)
    assert_told(events[0] + rest, alone)
    for got, expected in zip(results, others, strict=True):
        assert_same(got, expected)
    check_empty(engine)


def test_streams_cancelling_and_forgetting_at_the_same_time(writer):
    alone = [[make_engine().generate(*call(t, i)) for i in range(4)] for t in range(2)]
    engine = make_engine(num_slots=300)
    over = threading.Event()

    def stream(thread):
        return [list(engine.stream(*call(thread, i))) for i in range(4)]

    def abandon():
        rng = random.Random(0)
        while not over.is_set():
            doomed = engine.stream(*call(5, rng.randrange(9)))
            for _ in range(rng.randrange(1, 30)):
                next(doomed, None)
            doomed.close()
            requests = engine.submit(*call(6, rng.randrange(9)))
            for _ in range(rng.randrange(5)):
                with engine.lock:  # until the slots have been checked
                    engine.step()
            engine.cancel(requests)

    def forget():
        while not over.wait(0.02):
            engine.weights_changed()

    def work():
        try:
            return together(lambda: stream(0), lambda: stream(1))
        finally:
            over.set()

    results, *rest = together(work, abandon, forget)
    assert rest == [None, None] and isinstance(results, list), repr([results, *rest])
    for t, own in enumerate(results):
        assert isinstance(own, list), repr(own)
        for i, events in enumerate(own):
            assert_told(events, alone[t][i])
    check_empty(engine)


def test_a_short_call_ends_before_a_long_one(monkeypatch):
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: WORD)
    engine = make_engine()
    begun, order = threading.Event(), []

    def long():
        for _ in engine.stream(["A"], SamplingParams(max_tokens=500)):
            begun.set()
        order.append("long")

    def short():
        assert begun.wait(60)
        for _ in range(3):
            engine.generate(["B"], SamplingParams(max_tokens=5))
        order.append("short")

    assert together(long, short) == [None, None]
    assert order == ["short", "long"]
    check_empty(engine)


def test_a_broken_step_ends_the_calls_of_all_threads(monkeypatch):
    engine = make_engine()
    begun = threading.Event()

    def choose(response, branch):
        if response.params.seed:
            raise RuntimeError("boom")
        begun.set()
        return WORD

    monkeypatch.setattr(Response, "forced_token", choose)

    def fail():
        assert begun.wait(60)
        engine.generate(["B"], SamplingParams(max_tokens=9, seed=1))

    errors = together(lambda: engine.generate(["A"], SamplingParams(max_tokens=500)), fail)
    assert all(isinstance(error, RuntimeError) for error in errors)
    assert {str(e) for e in errors} == {"boom", "another call's step failed, and this one with it"}
    check_empty(engine)
    assert engine.generate(["A"], SamplingParams(max_tokens=4))[0].work == 4


def test_a_stream_may_be_closed_in_the_middle_of_a_step(monkeypatch):
    """As the garbage collector does with one that was forgotten."""
    policy, doomed = random_policy(TOKENIZER, broken=0), []
    steps = 0

    def choose(response, branch):
        nonlocal steps
        steps += 1
        if steps == 40:
            doomed.pop().close()
        return policy(response, branch)

    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    params = SamplingParams(max_tokens=150)
    alone = make_engine().generate(PROMPTS[:2], params)
    engine = make_engine()
    doomed.append(engine.stream(PROMPTS[:3], params))
    next(doomed[0])
    monkeypatch.setattr(Response, "forced_token", choose)
    assert_same(engine.generate(PROMPTS[:2], params), alone)
    assert not doomed
    check_empty(engine)
