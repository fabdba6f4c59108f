"""The steppable engine: events, streams, cancelling, prefixes, prefix tree, chunks, the kernel.

Expected values are worked out from tokens, positions and paths, from another run with nothing
else in the way, or from plain formulas in float64.
"""

import random
from collections import Counter
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
import torch
from invariants import (
    by_path,
    check_empty,
    check_every_step,
    check_slots,
    first_difference,
    rebuild,
)
from oracles import random_model
from policies import random_policy
from test_engine_oracle import check_against_dense
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from npr_lib.engine import (
    EngineConfig,
    Finish,
    Fork,
    Preempt,
    Resume,
    SamplingParams,
    Token,
    TorchEngine,
    paged,
    torch_engine,
)
from npr_lib.engine.branch import Response
from npr_lib.engine.prefix import PrefixTree
from npr_lib.engine.scheduler import Scheduler
from npr_lib.reasoning.layout import by_branch, sampled_tokens
from npr_lib.reasoning.schema import TAGS
from npr_lib.reasoning.style import STYLES
from npr_lib.reasoning.tokens import TagIds, encode
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TAG_IDS = TagIds.from_tokenizer(TOKENIZER)
EOS = TOKENIZER.eos_token_id
PROMPTS = ["A=1+2", "B", "7;8;9=", "C=", "D;", "1", "22", "AB=3"]


def ids_of(text):
    return encode(text, TOKENIZER)


def make_engine(seed=0, **config):
    model = random_model(random.Random(seed), TOKENIZER)
    return check_every_step(TorchEngine(model, TOKENIZER, EngineConfig(**config)))


def write_with(monkeypatch, policy):
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))


def write_structure(monkeypatch, share=0.1, **options):
    """The policy writes responses, and leaves a share of the tokens to the model."""
    policy = random_policy(TOKENIZER, **options)

    def choose(response, branch):
        free = random.Random(f"{branch.key}?{len(branch.sampled)}").random() < share
        return None if free and branch.state in ("text", "takeaway") else policy(response, branch)

    write_with(monkeypatch, choose)


def write_script(monkeypatch, script, otherwise="B"):
    """Each branch writes what the script says for its path, then one token for ever."""

    def choose(response, branch):
        own, index = script.get(branch.path, ()), len(branch.sampled)
        return own[index] if index < len(own) else ids_of(otherwise)[0]

    write_with(monkeypatch, choose)


def block(*plans):
    return "<guideline>" + "".join(f"<plan>{p}</plan>" for p in plans) + "</guideline>"


def assert_same(a, b):
    """Two runs of one response (none of these tests' seeds hits a near-tie)."""
    assert a.completion_ids == b.completion_ids and a.layout == b.layout
    assert (a.finish_reason, a.violation) == (b.finish_reason, b.violation)
    assert np.allclose(a.logprobs, b.logprobs, atol=1e-4, equal_nan=True)


def is_beginning(part, whole):
    """Every branch of `part` is the beginning of that branch of `whole`."""
    ours, theirs = by_path(part), by_path(whole)
    pairs = ((ours[p], theirs.get(p, [])) for p in ours)
    return all([x[:2] for x in own] == [x[:2] for x in all_[: len(own)]] for own, all_ in pairs)


def finished(events):
    return [e.trajectory for e in sorted(events, key=lambda e: e.index) if isinstance(e, Finish)]


def run(engine):
    while engine.busy:
        engine.step()


# events, streams, steps


@pytest.mark.parametrize(
    "config",
    [{}, {"num_slots": 150}, {"num_slots": 160, "max_step_tokens": 9, "max_running": 3}],
)
@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("style", STYLES)
def test_events_tell_the_whole_trajectory(monkeypatch, config, mode, style):
    if style == "lines" and mode == "sequential":
        pytest.skip("there the engine writes nothing")
    write_structure(monkeypatch, broken=0.1)
    config = {**config, "style": style}
    engine = make_engine(max_depth=2, **{"num_slots": 4096, **config})
    params = SamplingParams(max_tokens=130)
    plain = make_engine(max_depth=2, style=style).generate(PROMPTS[:3], params, 3, mode)
    events = list(engine.stream(PROMPTS[:3], params, 3, mode))
    assert len({e.call for e in events}) == 1
    assert [e.step for e in events] == sorted(e.step for e in events)
    seconds = [e.seconds for e in events]
    assert seconds == sorted(seconds) and seconds[0] > 0
    preempted = [e for e in events if isinstance(e, Preempt)]
    resumed = [e for e in events if isinstance(e, Resume)]
    assert len(preempted) == engine.stats.preemptions
    assert bool(preempted) == ("num_slots" in config) or mode == "sequential"
    assert sum(e.recomputed for e in resumed) == engine.stats.recomputed
    for index, alone in enumerate(plain):
        own = [e for e in events if e.index == index]
        t = own[-1].trajectory
        assert_same(t, alone)
        told = rebuild(own, len(t.prompt_ids), TAG_IDS, after_step=int(style == "lines"))
        ids, logprobs, sampled, steps, positions = map(list, zip(*told, strict=True))
        assert ids == t.completion_ids and sampled == t.sampled and steps == t.decode_steps
        assert positions == t.position_ids[len(t.prompt_ids) :].tolist()
        assert np.array_equal(logprobs, t.logprobs, equal_nan=True)
        forks = [e for e in own if isinstance(e, Fork)]
        assert [e.branches for e in forks if len(e.path) < 1] == [
            sum(1 for p in by_path(t) if len(p) == 1 and p[0][0] == b)
            for b in range(sum(len(e.path) < 1 for e in forks))
        ] or t.finish_reason != "stop"
        kinds = [type(e) for e in own if isinstance(e, Preempt | Resume)]
        # one preempted before its first token begins again, it doesn't resume
        assert all(a is not b or a is Preempt for a, b in pairwise(kinds))
    check_empty(engine)


def test_submit_and_step(monkeypatch):
    write_structure(monkeypatch)
    params = SamplingParams(max_tokens=150)
    alone = [make_engine().generate([p], params, 2) for p in PROMPTS[:2]]
    engine = make_engine()
    first = engine.submit(PROMPTS[:1], params, 2)
    assert engine.busy and all(r.trajectory is None and r.error is None for r in first)
    events = [e for _ in range(5) for e in engine.step()]
    second = engine.submit(PROMPTS[1:2], params, 2)
    calls = [r.response.call.number for r in (first[0], second[0])]
    assert calls[0] != calls[1]
    while engine.busy:
        new = engine.step()
        assert new and all(e.call in calls for e in new)
        events += new
    for call, requests, expected in zip(calls, (first, second), alone, strict=True):
        own = finished(e for e in events if e.call == call)
        for request, t, want in zip(requests, own, expected, strict=True):
            assert request.trajectory is t
            assert_same(t, want)
            assert min(t.decode_steps) >= 0
    check_empty(engine)


def test_events_carry_the_step_that_they_happened_in(monkeypatch):
    write_structure(monkeypatch)
    engine = make_engine(num_slots=170, max_step_tokens=9)
    engine.generate(["C"], SamplingParams(max_tokens=9))
    first = engine.stats.steps
    engine.submit(PROMPTS[:3], SamplingParams(max_tokens=130), 2)
    kinds = set()
    while engine.busy:
        step = engine.stats.steps - first
        events = engine.step()
        kinds.update(map(type, events))
        assert {event.step for event in events} <= {step}
    assert kinds >= {Token, Fork, Preempt, Resume, Finish}


def test_an_idle_step_does_nothing():
    engine = make_engine(persistent_prefix=True)
    engine.generate(["A=1+2"], SamplingParams(max_tokens=3))
    cached = engine.kv.num_cached
    assert engine.step() == []
    assert engine.kv.num_cached == cached > 0


@pytest.mark.parametrize("structured", [True, False])
def test_calls_between_each_other_change_nothing(monkeypatch, structured):
    """Two streams in turns, and a `generate` while both are open."""
    if structured:
        write_structure(monkeypatch)
    params = [SamplingParams(max_tokens=m, seed=m) for m in (90, 120, 60)]
    alone = [make_engine().generate(PROMPTS[i : i + 2], params[i], 2) for i in range(3)]
    engine = make_engine(num_slots=400)
    streams = [engine.stream(PROMPTS[i : i + 2], params[i], 2) for i in range(2)]
    events = [[next(stream)] for stream in streams]
    middle = engine.generate(PROMPTS[2:4], params[2], 2)
    assert engine.busy
    rng = random.Random(0)
    while any(streams):
        i = rng.randrange(2)
        if streams[i] is not None:
            event = next(streams[i], None)
            streams[i] = streams[i] if event else None
            events[i] += [event] if event else []
    for expected, own in zip(alone, [*map(finished, events), middle], strict=True):
        for a, b in zip(expected, own, strict=True):
            assert_same(a, b)
    for own in events:
        for index in range(4):
            t = finished(own)[index]
            told = rebuild([e for e in own if e.index == index], len(t.prompt_ids), TAG_IDS)
            assert [x[0] for x in told] == t.completion_ids
    check_empty(engine)


def test_a_stream_has_the_events_of_its_prefix_whenever_it_is_begun():
    engine = make_engine()
    params, prefix = SamplingParams(max_tokens=30), {(): ids_of(block("1:A"))}
    streams = [engine.stream([p], params, prefix=prefix) for p in PROMPTS[:2]]
    for stream in streams:
        events = list(stream)
        t = events[-1].trajectory
        told = rebuild(events, len(t.prompt_ids), TAG_IDS)
        assert [x[0] for x in told] == t.completion_ids
    check_empty(engine)


def test_a_refused_prefix_leaves_no_events():
    engine, params = make_engine(), SamplingParams(max_tokens=9)
    with pytest.raises(ValueError, match="prefix"):
        engine.stream(["A"], params, prefix={(): ids_of("7</step>")})
    requests = engine.submit(["B"], params)
    assert {e.call for e in engine.step()} == {requests[0].response.call.number}
    engine.cancel(requests)
    check_empty(engine)


def test_a_stream_that_is_never_begun_leaves_nothing():
    engine, params = make_engine(), SamplingParams(max_tokens=9)
    engine.stream(["A"], params, prefix={(): ids_of("7")}).close()
    check_empty(engine)
    requests = engine.submit(["B"], params)
    assert {e.call for e in engine.step()} == {requests[0].response.call.number}
    engine.cancel(requests)


def test_streams_refuse_like_generate():
    engine = make_engine(num_slots=50)
    with pytest.raises(ValueError, match="need 61 slots, the pool has 50"):
        engine.stream(["A"], SamplingParams(max_tokens=60))
    assert list(engine.stream([], SamplingParams(max_tokens=60))) == []
    check_empty(engine)


@pytest.mark.parametrize("after", [1, 2, 7, 20, 55, 120, 200])
def test_closing_a_stream_frees_it_and_others_go_on(monkeypatch, after):
    write_structure(monkeypatch)
    params = SamplingParams(max_tokens=150)
    alone = make_engine(max_depth=2).generate(PROMPTS[:2], params, 2)
    engine = make_engine(num_slots=500, max_depth=2, max_step_tokens=16)
    sibling = engine.stream(PROMPTS[:2], params, 2)
    events = [next(sibling)]
    # the same prompts: their slots are shared with the sibling's
    stream = engine.stream(PROMPTS[:2], params, 3)
    for _ in range(after):
        next(stream)
    stream.close()
    check_slots(engine)
    assert {r.response.call.number for r in engine.scheduler.running} <= {events[0].call}
    events += sibling
    for a, b in zip(alone, finished(events), strict=True):
        assert_same(a, b)
    check_empty(engine)


@pytest.mark.parametrize("state", ["waiting", "prefilling", "running", "forked", "preempted"])
def test_cancel(monkeypatch, state):
    write_structure(monkeypatch, broken=0)
    params = SamplingParams(max_tokens=200)
    prompts = ["A=1+2" * 8 + "7", "A=1+2" * 8 + "8"]
    alone = make_engine(max_depth=2).generate(prompts, params, 2)
    config = {"waiting": {"max_running": 1}, "prefilling": {"max_step_tokens": 5}}.get(state, {})
    engine = make_engine(max_depth=2, num_slots=4096, **config)
    requests = engine.submit(prompts, params, 2)
    victim = requests[1]
    reached = {
        "waiting": lambda: victim in engine.scheduler.waiting,
        "prefilling": lambda: any(fill.done > 5 for fill in engine.scheduler.fills),
        "running": lambda: len(victim.response.root.sampled) > 1,
        "forked": lambda: any(len(b.sampled) > 1 for b in victim.response.root.children),
        "preempted": lambda: bool(victim.response.root.children),
    }[state]
    while not reached() or not engine.scheduler.running:
        assert engine.busy
        engine.step()
    victims = requests[:2] if state == "prefilling" else [victim]
    if state == "preempted":
        engine.weights_changed()
        assert victim in engine.scheduler.waiting and victim.preempted
    engine.cancel(victims)
    check_slots(engine)
    for request in victims:
        assert isinstance(request.error, InterruptedError)
        if state in ("waiting", "prefilling"):
            assert request.trajectory is None
        else:
            t = request.trajectory
            assert t.finish_reason == "cancelled" and is_beginning(t, alone[1])
            check_against_dense(engine.model, t)
    engine.cancel(victims)  # again: nothing
    run(engine)
    for request, expected in zip(requests, alone, strict=True):
        if request not in victims:
            assert_same(request.trajectory, expected)
    check_empty(engine)


def test_cancel_of_all_at_any_step(monkeypatch):
    write_structure(monkeypatch)
    engine = make_engine(max_depth=2, num_slots=300, max_step_tokens=12)
    for steps in range(0, 60, 3):
        requests = engine.submit(PROMPTS[:3], SamplingParams(max_tokens=140), 2)
        for _ in range(steps):
            if engine.busy:
                engine.step()
        engine.cancel(requests)
        check_empty(engine)


def test_a_cancelled_trajectory_replays_or_is_refused_before_it_is_decoded(monkeypatch):
    """A bystander's stream survives whatever happens to the replay."""
    trunk = ids_of(block("1:", "2:"))
    script = {(): trunk, ((0, 0),): ids_of(block("1:", "2:")), ((0, 1),): ids_of("7" * 40)}
    engine = make_engine(max_depth=2)
    with monkeypatch.context() as patch:
        write_script(patch, script)
        requests = engine.submit(["A"], SamplingParams(max_tokens=90))
        while not any(b.children for b in requests[0].response.root.children):
            assert engine.busy
            engine.step()
        engine.cancel(requests)
    t = requests[0].trajectory
    stream = engine.stream(["B"], SamplingParams(max_tokens=9))
    next(stream)
    with suppress(ValueError):
        assert engine.replay(t, "parallel").completion_ids == t.completion_ids
    assert [type(e) for e in stream][-1] is Finish


# errors inside a step


def fail_at(monkeypatch, owner, name, call, error):
    """The `call`-th call of a method raises, after doing its work."""
    method, calls = getattr(owner, name), 0

    def failing(*args, **kwargs):
        nonlocal calls
        calls += 1
        result = method(*args, **kwargs)
        if calls == call:
            raise error
        return result

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt("boom")])
@pytest.mark.parametrize(
    "owner, name, call",
    [
        (Response, "forced_token", 2),
        (Response, "forced_token", 60),
        (Response, "accept", 30),
        (Scheduler, "plan", 1),
        (Scheduler, "plan", 9),
        (Scheduler, "finish", 1),
        (Scheduler, "filled", 1),
        (PrefixTree, "acquire", 2),
        (torch_engine, "forward", 1),
        (torch_engine, "forward", 12),
    ],
)
def test_an_exception_in_a_step_drops_everything_and_names_the_response(
    monkeypatch, owner, name, call, error
):
    write_structure(monkeypatch)
    params = SamplingParams(max_tokens=120)
    engine = make_engine(max_depth=2, num_slots=500, max_step_tokens=20)
    before = engine.generate(PROMPTS[:3], params, 2)
    training = engine.model.train().training
    stream = engine.stream(PROMPTS[3:5], params, 2)
    next(stream)
    submitted = engine.submit(PROMPTS[5:6], params)
    with monkeypatch.context() as patch:
        fail_at(patch, owner, name, call, error)
        error.__notes__ = []
        with pytest.raises(type(error), match="boom") as caught:
            engine.generate(PROMPTS[:3], params, 2)
    assert engine.model.training == training
    engine.model.eval()
    if owner is Response and isinstance(error, Exception):
        (note,) = caught.value.__notes__
        index = int(note.split("response ")[1].split()[0])
        assert "'" in note and index < 6
    assert all(r.error is error and r.trajectory is None for r in submitted)
    with pytest.raises(RuntimeError, match="another call's step failed"):
        list(stream)
    check_empty(engine)
    for a, b in zip(before, engine.generate(PROMPTS[:3], params, 2), strict=True):
        assert_same(a, b)
    check_empty(engine)


def test_the_note_names_the_right_response(monkeypatch):
    engine = make_engine()

    def choose(response, branch):
        if response.index == 3 and len(branch.sampled) == 4:
            raise RuntimeError("boom")
        return ids_of("7")[0]

    write_with(monkeypatch, choose)
    with pytest.raises(RuntimeError, match="boom") as caught:
        engine.generate(["A", "B"], SamplingParams(max_tokens=9), 2)
    assert caught.value.__notes__ == ["while decoding response 3 of its call, to 'B'"]
    check_empty(engine)


# weights


def test_changed_weights_count_from_the_next_token_on(monkeypatch):
    """Tokens before the change are scored by the old weights, those after it by the new ones."""
    write_structure(monkeypatch, share=0, broken=0)
    old, new = (random_model(random.Random(3), TOKENIZER) for _ in range(2))
    with torch.no_grad():
        for p in new.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    for chunk in (4096, 6):
        model = random_model(random.Random(3), TOKENIZER)
        config = EngineConfig(max_depth=2, max_step_tokens=chunk, persistent_prefix=True)
        engine = check_every_step(TorchEngine(model, TOKENIZER, config))
        requests = engine.submit(PROMPTS[:3], SamplingParams(max_tokens=150))
        while engine.stats.steps < 25:
            assert engine.busy
            engine.step()
        model.load_state_dict(new.state_dict())
        engine.weights_changed()
        assert engine.kv.num_used == engine.kv.num_cached == 0
        run(engine)
        both = 0
        for request in requests:
            t = request.trajectory
            start, early = len(t.prompt_ids), [step < 25 for step in t.decode_steps]
            both += len(set(early)) == 2
            for weights, wanted in ((old, True), (new, False)):
                if wanted not in early:
                    continue
                now = np.array([step < 25 for step in t.decode_steps]) == wanted
                reference = TorchEngine(weights, TOKENIZER, EngineConfig(max_depth=2))
                with monkeypatch.context() as patch:
                    patch.undo()
                    write_with(patch, lambda r, b: r.forced[b.path][len(b.sampled)])
                    scored = reference.replay(t, "parallel").logprobs
                off = np.abs(np.array(t.logprobs) - scored)
                assert np.nanmax(off[now]) < 1e-4
                assert now.all() or np.nanmax(off[~now]) > 1e-2
            assert start
        assert both
        check_empty(engine, cached=True)


# the prefix tree


def distinct_prefixes(prompts):
    return {tuple(p[:i]) for p in prompts for i in range(1, len(p))}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("config", [{}, {"max_running": 1}, {"max_step_tokens": 7}])
def test_common_prefixes_are_forwarded_once(seed, config):
    rng = random.Random(seed)
    words = ids_of("ABCD")
    prompts = [[rng.choice(words[:2]) for _ in range(rng.randint(1, 12))] for _ in range(12)]
    prompts += [[words[2]] * 100 + [words[3]], [words[2]] * 100 + words[:2]]
    engine = make_engine(seed, **config)
    trajectories = engine.generate(prompts, SamplingParams(max_tokens=5, seed=seed), 2)
    # each distinct prefix once, and the last token of each prompt, which is its own
    fresh = len(distinct_prefixes(prompts)) + len(prompts)
    assert engine.stats.prompt_tokens == sum(map(len, prompts))
    assert engine.stats.reused == engine.stats.prompt_tokens - fresh
    assert engine.stats.forwarded == fresh + sum(t.work - 1 for t in trajectories)
    for t in trajectories:
        check_against_dense(engine.model, t)
    check_empty(engine)


def reused_by(engine, prompt):
    """Prompt tokens that a call finds in the pool."""
    before = engine.stats.reused
    engine.generate([prompt], SamplingParams(max_tokens=1))
    return engine.stats.reused - before


def test_the_least_recently_used_prefix_goes_first():
    a, b, c, d = (ids_of(x * 30) for x in "ABCD")
    engine = make_engine(num_slots=100, persistent_prefix=True)
    for prompt in (a, b, c):
        assert reused_by(engine, prompt) == 0
    assert engine.kv.num_cached == 3 * 29
    assert reused_by(engine, a) == 29
    assert reused_by(engine, d) == 0  # takes what b held, and no more
    assert engine.kv.num_cached == 3 * 29
    for prompt in (a, c, d):
        assert reused_by(engine, prompt) == 29
    assert reused_by(engine, b) == 0  # and now a went
    for prompt in (c, d, b):
        assert reused_by(engine, prompt) == 29
    assert engine.weights_changed() is None
    assert engine.kv.num_cached == engine.kv.num_used == 0
    assert reused_by(engine, b) == 0


def test_leaves_go_before_what_others_build_on():
    stem = ids_of("A" * 40)
    a, b = stem + ids_of("B" * 20), stem + ids_of("C" * 20)
    engine = make_engine(num_slots=100, persistent_prefix=True)
    assert reused_by(engine, a) == 0
    assert reused_by(engine, b) == 40
    assert engine.kv.num_cached == 40 + 19 + 19
    assert reused_by(engine, ids_of("D" * 25)) == 0
    assert reused_by(engine, b) == 59
    assert engine.stats.reused and reused_by(engine, a) == 40


def test_a_prefix_in_use_is_never_evicted(monkeypatch):
    write_structure(monkeypatch, share=0, broken=0)
    engine = make_engine(num_slots=400, persistent_prefix=True)
    held = ids_of("A=1" * 20)
    stream = engine.stream([held], SamplingParams(max_tokens=200))
    next(stream)
    for i in range(12):
        prompt = held[: 5 * i] + ids_of(f"{i}" + "BCD"[i % 3] * 80)
        (t,) = engine.generate([prompt], SamplingParams(max_tokens=30))
        check_against_dense(engine.model, t)
        assert reused_by(engine, held) == len(held) - 1
    check_against_dense(engine.model, finished(stream)[0])
    check_empty(engine, cached=True)


def test_a_persistent_prefix_lasts_until_the_weights_change(monkeypatch):
    write_structure(monkeypatch)
    params = SamplingParams(max_tokens=60)
    prompts = [ids_of(p) for p in PROMPTS[:3]]
    kept = len(distinct_prefixes(prompts))
    engine, plain = make_engine(persistent_prefix=True), make_engine()
    first = engine.generate(prompts, params, 2)
    assert engine.kv.num_cached == kept and engine.kv.num_used == 0
    forwarded = engine.stats.forwarded
    second = engine.generate(prompts, params, 2)
    assert engine.stats.forwarded - forwarded == forwarded - kept
    with torch.no_grad():
        engine.model.get_input_embeddings().weight += 0.1
    engine.weights_changed()
    assert engine.kv.num_cached == 0
    third = engine.generate(prompts, params, 2)
    for own, change in ((first, False), (second, False), (third, True)):
        if change:
            plain.model.load_state_dict(engine.model.state_dict())
        for a, b in zip(plain.generate(prompts, params, 2), own, strict=True):
            assert_same(a, b)
        assert plain.kv.num_cached == 0
    check_empty(engine, cached=True)


def test_cancelling_keeps_the_finished_part_of_a_persistent_prefix():
    engine = make_engine(persistent_prefix=True, max_step_tokens=5)
    prompt, other = ids_of("A=1;" * 8), ids_of("B=2;" * 8)
    assert reused_by(engine, prompt) == 0
    requests = engine.submit([other, other + other], SamplingParams(max_tokens=3))
    for _ in range(3):
        engine.step()
    engine.cancel(requests)
    assert engine.kv.num_used == 0 and engine.kv.num_cached == 31 + 15
    assert reused_by(engine, prompt) == 31
    before = engine.stats.reused
    for t in engine.generate([other + other, other], SamplingParams(max_tokens=9)):
        check_against_dense(engine.model, t)
    # three chunks of five tokens, and then the shorter prompt from the longer one
    assert engine.stats.reused - before == 15 + 31
    check_empty(engine, cached=True)


# chunked prefill


def test_a_long_prompt_stalls_nobody(monkeypatch):
    write_structure(monkeypatch, share=0, broken=0)
    limit, params = 16, SamplingParams(max_tokens=250)
    long = ids_of("A=1+2;" * 60)
    alone = make_engine().generate(PROMPTS[:2], params)
    engine = make_engine(max_step_tokens=limit)
    engine.submit(PROMPTS[:2], params)
    before = list(engine.scheduler.waiting)
    while not any(len(r.response.turn) > 1 for r in before):
        assert engine.busy
        engine.step()
    (late,) = engine.submit([long], SamplingParams(max_tokens=40))
    steps = 0
    while late.prompt.logits is None:
        assert engine.busy
        frontier = {r: r.response.turn[0].position for r in before if r.trajectory is None}
        forwarded = engine.stats.forwarded
        engine.step()
        assert 0 < engine.stats.forwarded - forwarded <= limit
        for request in frontier:
            assert request.trajectory or request.response.turn[0].position > frontier[request]
        steps += bool(frontier)
    assert steps > 5
    run(engine)
    for request, expected in zip(before, alone, strict=True):
        assert_same(request.trajectory, expected)
    check_against_dense(engine.model, late.trajectory)


@pytest.mark.parametrize(
    "limit, style",
    [(1, "compact"), (3, "compact"), (10, "compact"), (64, "compact"), (1, "lines"), (9, "lines")],
)
def test_chunks_change_nothing(monkeypatch, limit, style):
    """Prompts and, after everything was dropped in between, partial graphs in small pieces."""
    write_structure(monkeypatch, broken=0.05)
    prompts, params = [p * 5 for p in PROMPTS[:4]], SamplingParams(max_tokens=120)
    whole = make_engine(max_depth=2, style=style).generate(prompts, params, 2)
    engine = make_engine(max_depth=2, max_step_tokens=limit, style=style)
    requests = engine.submit(prompts, params, 2)
    drops = 0
    while engine.busy:
        # the branches of one response advance together, whatever the limit
        turn = max(
            (
                sum(len(b.pending) for b in (*r.response.turn, *r.response.flush))
                for r in engine.scheduler.running
            ),
            default=0,
        )
        forwarded = engine.stats.forwarded
        engine.step()
        assert engine.stats.forwarded - forwarded <= max(limit, turn)
        if engine.stats.steps in (20, 40, 70, 300):
            engine.weights_changed()
            drops += 1
    assert drops
    for request, expected in zip(requests, whole, strict=True):
        assert_same(request.trajectory, expected)
        check_against_dense(engine.model, request.trajectory)
    check_empty(engine)


# prefixes to go on from


def random_cut(rng, t):
    """How many chosen tokens of each branch a person keeps: any state that decoding can be in,
    whatever order the branches were decoded in."""
    tree = by_path(t)
    keep = {}

    def cut(path, all_of_it):
        """Keep a part of a branch (or all); returns whether it is complete."""
        own = [x for x in tree[path] if x[2]]
        stop = len(own) if all_of_it else rng.randint(0, len(own))
        done = 0
        inner = sorted(p for p in tree if len(p) == len(path) + 1 and p[:-1] == path)
        for number in sorted({p[-1][0] for p in inner}):
            children = [p for p in inner if p[-1][0] == number]
            fork = sum(x[3] < tree[children[0]][0][3] for x in own)
            if stop < fork:
                break
            # beyond the join only if every branch is complete
            go_on = all_of_it or stop > fork
            complete = [cut(p, go_on) for p in children]
            if not all(complete):
                stop = fork
                break
        done = own[:stop]
        keep[path] = [x[0] for x in done]
        return stop == len(own)

    cut((), False)
    return keep


def cut_at(t, position):
    """What lock-step decoding had chosen up to a position."""
    ids = t.prompt_ids + t.completion_ids
    chosen = sampled_tokens(ids, t.layout, TOKENIZER, t.style)
    prefix = by_branch(t.layout, t.completion_ids, chosen)
    kept = {p: sum(x[2] and x[1] <= position for x in own) for p, own in by_path(t).items()}
    return {path: own[: kept[path]] for path, own in prefix.items()}


def go_on(engine, whole, prefixes, params):
    """Continue each trajectory from its prefix, and compare with what it was."""
    prompts = [t.prompt_ids for t in whole]
    again = engine.generate(prompts, params, prefix=prefixes)
    for t, new, prefix in zip(whole, again, prefixes, strict=True):
        assert first_difference(t, new) is None
        assert new.completion_ids == t.completion_ids and new.layout == t.layout
        assert new.finish_reason == t.finish_reason
        given = sum(map(len, prefix.values()))
        assert t.sampled.count(True) - new.sampled.count(True) == given
        own = np.isfinite(new.logprobs)
        assert own.tolist() == new.sampled
        assert np.allclose(np.array(new.logprobs)[own], np.array(t.logprobs)[own], atol=1e-4)
    check_empty(engine)


@pytest.mark.parametrize("depth, style", [(1, "compact"), (2, "compact"), (2, "lines")])
def test_a_cut_trajectory_goes_on_as_it_was(monkeypatch, depth, style):
    write_structure(monkeypatch, share=0.03, broken=0)
    params = SamplingParams(max_tokens=400, seed=4)
    engine = make_engine(seed=2, max_depth=depth, style=style)
    whole = [t for t in engine.generate(PROMPTS, params) if t.finish_reason == "stop"]
    assert len(whole) > 3 and any(len(p) == depth for t in whole for p in by_path(t))
    last = max(len(t.prompt_ids) + t.span for t in whole)
    for position in range(0, last - 1, 11 if style == "compact" else 37):
        open_ = [t for t in whole if position < len(t.prompt_ids) + t.span - 1]
        go_on(engine, open_, [cut_at(t, position) for t in open_], params)
    rng = random.Random(depth)
    limits = {"num_slots": 500, "max_step_tokens": 13, "style": style}
    tight = make_engine(seed=2, max_depth=depth, **limits)
    unequal = 0
    for i in range(10 if style == "compact" else 4):
        cuts = [random_cut(rng, t) for t in whole]
        pairs = zip(whole, cuts, strict=True)
        open_ = [(t, c) for t, c in pairs if sum(map(len, c.values())) < t.sampled.count(True)]
        unequal += sum(len({len(v) for p, v in c.items() if p}) > 1 for _, c in open_)
        if open_:
            go_on((engine, tight)[i % 2], *map(list, zip(*open_, strict=True)), params)
    assert unequal > 1
    ends = cut_at(whole[0], last)
    with pytest.raises(ValueError, match="prefix: it already ends"):
        engine.generate([whole[0].prompt_ids], params, prefix=ends)


def test_a_sequential_prefix_goes_on_as_it_was():
    engine, params = make_engine(), SamplingParams(max_tokens=40)
    whole = engine.generate(PROMPTS[:4], params, mode="sequential")
    for cut in (1, 5, 20, 39):
        prefixes = [{(): t.completion_ids[: min(cut, t.work - 1)]} for t in whole]
        for t, new in zip(
            whole,
            engine.generate(PROMPTS[:4], params, mode="sequential", prefix=prefixes),
            strict=True,
        ):
            assert new.completion_ids == t.completion_ids and new.layout == t.layout


def test_a_changed_branch_is_an_ordinary_response(monkeypatch):
    """Another plan, a rewritten branch: what follows is scored under the new history."""
    write_structure(monkeypatch, share=0, broken=0)
    prefix = {(): ids_of(block("1:A", "2:B")), ((0, 1),): ids_of("7+8</step>")}
    engine = make_engine()
    trajectories = engine.generate(["A"], SamplingParams(max_tokens=60), 6, prefix=prefix)
    for t in trajectories:
        assert (
            t.text.startswith(block("1:A", "2:B") + "<step>1:") and "<step>2:7+8</step>" in t.text
        )
        assert t.sampled[: len(prefix[()])] == [False] * len(prefix[()])
        check_against_dense(engine.model, t)
    assert len({tuple(t.completion_ids) for t in trajectories}) == 6


def test_a_prefix_that_is_far_ahead_fits_or_is_refused(monkeypatch):
    """The budget may yet cut what a branch of a prefix holds ahead of the others: until then it
    takes slots beyond max_tokens, and submission counts them."""
    trunk = ids_of(block("1:", "2:"))
    prefix = {(): trunk, ((0, 0),): ids_of("A" * 30)}
    write_script(monkeypatch, {})
    budget = len(trunk) + 6 + 30 + 10
    fitting = []
    for slots in range(1 + budget - 1, 1 + budget + 34, 3):
        engine = make_engine(num_slots=slots)
        params = SamplingParams(max_tokens=budget)
        try:
            (t,) = engine.generate(["A"], params, prefix=prefix)
        except ValueError as error:
            assert f"the pool has {slots}" in str(error)
            assert not fitting
            continue
        fitting.append(slots)
        assert t.finish_reason == "length" and t.work == budget
        assert t.branch_lengths[0][0] == t.branch_lengths[0][1]
    assert fitting[0] <= 1 + budget + 30 + 3


def test_a_nested_fork_resumes_in_a_pool_of_its_own_size(monkeypatch):
    """Preempted at any step, alone in a pool of prompt + max_tokens."""
    trunk, inner = ids_of(block("1:", "2:")), ids_of(block("1:", "2:", "3:", "4:", "5:"))
    write_script(monkeypatch, {(): trunk, ((0, 0),): inner, ((0, 1),): ids_of("A" * 60)})
    budget = len(trunk) + 6 + 2 * len(inner) + 5
    (whole,) = make_engine(max_depth=2).generate(["A"], SamplingParams(max_tokens=budget))
    for steps in range(2, whole.span):
        engine = make_engine(max_depth=2, num_slots=1 + budget)
        (request,) = engine.submit(["A"], SamplingParams(max_tokens=budget))
        for _ in range(steps):
            engine.step()
        engine.weights_changed()
        run(engine)
        assert_same(request.trajectory, whole)


@pytest.mark.parametrize("style", STYLES)
def test_a_join_that_waits_resumes_in_a_pool_of_its_own_size(monkeypatch, style):
    """The first branch has joined a block of its own and waits for the second: what the engine
    wrote there may lie beyond the budget, and then takes no slot. Preempted at any step since."""
    trunk, inner = ids_of(block("1:", "2:")), ids_of(block("1:", "2:", "3:"))
    end = ids_of("7</step>")
    nested = {((0, 0), (0, i)): end for i in range(3)}
    write_script(monkeypatch, {(): trunk, ((0, 0),): inner, ((0, 1),): ids_of("A" * 60), **nested})
    for budget in range(len(trunk) + 66, len(trunk) + 72):
        params = SamplingParams(max_tokens=budget)
        (whole,) = make_engine(max_depth=2, style=style).generate(["A"], params)
        for steps in range(whole.span - 7, whole.span):
            engine = make_engine(max_depth=2, num_slots=1 + budget, style=style)
            (request,) = engine.submit(["A"], params)
            for _ in range(steps):
                engine.step()
            engine.weights_changed()
            run(engine)
            assert_same(request.trajectory, whole)


def test_samples_of_a_prefix_of_one_token_wait_for_each_other():
    """The second finds the prompt computed, and has nothing to fill."""
    engine = make_engine(max_running=1)
    prefix = {(): ids_of("<guideline>")}
    trajectories = engine.generate(["A"], SamplingParams(max_tokens=9), n=3, prefix=prefix)
    assert [t.completion_ids[0] for t in trajectories] == [TAG_IDS.guideline] * 3


@pytest.mark.parametrize(
    "prefix, message",
    [
        ({((0, 0),): [20]}, "1 tokens are of branches that end before or never begin"),
        ({(): "<guideline><plan>1:A", ((0, 0),): "7"}, "never begin"),
        ({(): block("1:A"), ((0, 1),): "7"}, "never begin"),
        ({(): block("1:A"), ((0, 0),): "7</step>8"}, "1 tokens are of branches that end before"),
        ({(): block("1:A") + "7"}, "1 tokens"),
        ({(): "7</step>"}, "it already ends.*step_end"),
        ({(): block("2:A")}, "it already ends.*plan 1"),
        ({(): block()}, "it already ends.*without a plan"),
        ({(): block("1:A"), ((0, 0),): block("1:B")}, "it already ends.*depth 2"),
        ({(): "7<eos>"}, "it already ends.*stop"),
        ({(): "A" * 40}, "it already ends.*length"),
        ({(): "A" * 60}, "it already ends.*length"),
        ({(): [10**6]}, "1000000"),
        ({(): [-1]}, "-1"),
        ([{}], "1 prefix for 2 prompts"),
    ],
)
def test_bad_prefixes_say_what_is_wrong(prefix, message):
    engine = make_engine()
    if isinstance(prefix, dict):
        prefix = {p: ids_of(v) if isinstance(v, str) else v for p, v in prefix.items()}
    stream = engine.stream(["B"], SamplingParams(max_tokens=5))
    next(stream)
    with pytest.raises(ValueError, match=message):
        engine.generate(["A", "C"], SamplingParams(max_tokens=40), prefix=prefix)
    assert isinstance(list(stream)[-1], Finish), "a bad prefix harms nobody else"
    check_empty(engine)


# stop strings


def stopped_at(t, stops):
    """The position of the first token that completes a stop string in a stretch of one branch's
    text that was sampled in one go; None if there is none."""
    found = []
    for own in by_path(t).values():
        text, before = "", None
        for token, position, sampled, index in own:
            if not sampled or index - 1 != before:
                text = ""
            before = index
            if sampled:
                text += TOKENIZER.decode([token])
                if any(stop in text for stop in stops):
                    found.append(position)
                    break
    return min(found, default=None)


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_stop_strings_cut_where_they_are_completed(monkeypatch, mode):
    if mode == "parallel":
        write_structure(monkeypatch, broken=0)
    engine = make_engine(max_depth=2)
    whole = engine.generate(PROMPTS, SamplingParams(max_tokens=200), mode=mode)
    rng = random.Random(5)
    in_branch = Counter()
    for _ in range(6):
        stops = []
        for _ in range(rng.randint(1, 2)):
            own = rng.choice([x for t in whole for x in by_path(t).values() if len(x) > 6])
            start, length = rng.randrange(3, len(own) - 2), rng.randint(1, 3)
            stops.append(TOKENIZER.decode([x[0] for x in own[start : start + length]]))
        if rng.random() < 0.5:
            stops = [stop[1:] or stop for stop in stops]  # from the middle of a token
        params = SamplingParams(max_tokens=200, stop=tuple(stops))
        for t, part in zip(whole, engine.generate(PROMPTS, params, mode=mode), strict=True):
            at = stopped_at(t, stops)
            keep = t.position_ids[len(t.prompt_ids) :] <= (10**9 if at is None else at)
            ids = [i for i, kept in zip(t.completion_ids, keep, strict=True) if kept]
            assert part.completion_ids == ids
            same_end = part.finish_reason == t.finish_reason
            assert same_end if at is None else part.finish_reason in ("stop_string", "stop")
            in_branch[at is not None and bool(t.num_branches)] += at is not None
    assert in_branch[True] > 5 or mode == "sequential"
    check_empty(engine)


def test_a_stop_string_does_not_reach_across_a_block(monkeypatch):
    script = {(): ids_of(block("1:") + "A</takeaway>7<eos>"), ((0, 0),): ids_of("B</step>")}
    write_script(monkeypatch, script)
    params = SamplingParams(max_tokens=60, stop=("</guideline>A",))
    (t,) = make_engine().generate(["A"], params)
    assert "</guideline>A" not in t.text and t.finish_reason == "stop"


def test_a_stop_string_may_hold_the_text_around_a_tag(monkeypatch):
    """A branch's text goes on from before a block into its guideline, and after its takeaway."""
    trunk = "AB" + block("1:C") + "D</takeaway>7<eos>"
    script = {(): ids_of(trunk), ((0, 0),): ids_of("E</step>")}
    write_script(monkeypatch, script)
    for stop in ("B<guideline>", "</takeaway>7", ":C</plan>", "D</takeaway>"):
        (t,) = make_engine().generate(["A"], SamplingParams(max_tokens=60, stop=(stop,)))
        assert t.finish_reason == "stop_string" and t.text.endswith(stop), stop


def test_stop_strings_do_not_look_into_prefixes_or_what_the_engine_writes(monkeypatch):
    script = {(): ids_of(block("1:", "2:")), ((0, 0),): ids_of("7</step>")}
    script[((0, 1),)] = ids_of("9</step>")
    write_script(monkeypatch, script | {(): script[()] + ids_of("C</takeaway>D<eos>")})
    engine = make_engine()
    for stop in ("<step>", "<step>1", "2:9", "<takeaway>", "<takeaway>C", "1:7"):
        (t,) = engine.generate(["A"], SamplingParams(max_tokens=60, stop=(stop,)))
        assert t.finish_reason == "stop", stop
    for stop, end in (("9<", "stop"), ("</step>", "stop"), ("CD", "stop"), ("D", "stop_string")):
        params = SamplingParams(max_tokens=60, stop=(stop,))
        (t,) = engine.generate(["A"], params, prefix=script)
        assert t.finish_reason == end, stop


def byte_tokenizer():
    """Every byte a token: a character of several bytes spans tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*TAGS, "<eos>", *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    tokenizer.pad_token = "<eos>"
    tokenizer.add_tokens(list(TAGS))
    return tokenizer


@pytest.mark.parametrize("stop", ["é", "€7", "😀", "a😀😀b", "😀😀😀😀"])
def test_stop_strings_of_several_bytes(monkeypatch, stop):
    tokenizer = byte_tokenizer()
    text = "xé€€7y😀a😀😀b" + "😀" * 4 + "z" * 20
    tokens = encode(text, tokenizer)
    assert len(tokens) == len(text.encode())
    write_with(monkeypatch, lambda response, branch: tokens[len(branch.sampled)])
    engine = TorchEngine(random_model(random.Random(0), tokenizer), tokenizer)
    params = SamplingParams(max_tokens=len(tokens), stop=(stop,))
    (t,) = engine.generate(["A"], params)
    assert t.finish_reason == "stop_string"
    assert t.text == text[: text.index(stop) + len(stop)]


# best of, parameters


def test_best_of_keeps_the_most_probable():
    engine, params = make_engine(), SamplingParams(max_tokens=25, seed=8)
    every = engine.generate(PROMPTS[:3], params, n=7)
    best = engine.generate(PROMPTS[:3], params, n=3, best_of=7)
    assert len(best) == 9
    for i in range(3):
        score = lambda t: sum(x for x in t.logprobs if x == x) / t.sampled.count(True)  # noqa: E731
        ranked = sorted(every[7 * i : 7 * i + 7], key=score, reverse=True)
        assert [t.completion_ids for t in best[3 * i : 3 * i + 3]] == [
            t.completion_ids for t in ranked[:3]
        ]
    for wrong in (2, 0):
        with pytest.raises(ValueError, match=f"best_of = {wrong}: expected at least n = 3"):
            engine.generate(["A"], params, n=3, best_of=wrong)


def test_parameters_of_each_prompt_equal_separate_calls(monkeypatch):
    write_structure(monkeypatch, share=0.5, broken=0)
    params = [
        SamplingParams(max_tokens=90, temperature=0),
        SamplingParams(max_tokens=40, temperature=1.5, top_k=5),
        SamplingParams(max_tokens=120, top_p=0.7, branch_penalty=1.3, seed=9),
        SamplingParams(max_tokens=120, max_span=25, stop=("7",)),
        SamplingParams(max_tokens=90, min_fork_tokens=80, temperature=0.3),
        SamplingParams(max_tokens=120, temperature=1.5, top_k=5, stop=("A",)),
    ]
    engine = make_engine()
    together = engine.generate(PROMPTS[:6], params, n=2)
    for i, own in enumerate(params):
        for a, b in zip(engine.generate([PROMPTS[i]], own, n=2), together[2 * i :], strict=False):
            assert_same(a, b)
            assert np.allclose(
                a.behaviour_logprobs, b.behaviour_logprobs, atol=1e-4, equal_nan=True
            )
    with pytest.raises(ValueError, match="6 params for 2 prompts"):
        engine.generate(PROMPTS[:2], params)


# the kernel


def needs_kernel():
    if paged.kernel() is None:
        pytest.skip("no C compiler")


@pytest.mark.parametrize("seed", range(40))
def test_the_kernel_computes_attention(seed):
    """Against a float64 softmax over each row's own slots, and against SDPA."""
    needs_kernel()
    rng, random_ = np.random.default_rng(seed), random.Random(seed)
    torch.manual_seed(seed)
    kv_heads, share = random_.choice([1, 2, 3, 4]), random_.choice([1, 2, 3, 7])
    dim, fresh = random_.choice([8, 16, 20, 33, 64, 80, 128]), random_.randint(1, 8)
    rows, num_slots = random_.randint(1, 9), 700
    heads = kv_heads * share
    lengths = np.array([random_.randint(fresh, random_.choice([12, 600])) for _ in range(rows)])
    tables = rng.integers(0, num_slots, (rows + 5, 640))
    which = rng.choice(rows + 5, rows, replace=False)
    keys, values = torch.randn(2, num_slots, kv_heads, dim)
    # as the engine passes them: a slice of tokens of [heads, T, d], in either memory order
    query = torch.randn(heads, rows * fresh + 3, dim) * random_.choice([1, 8])
    if seed % 2:
        query = query.transpose(0, 1).contiguous().transpose(0, 1)
    query = query[:, 3:]
    scale = random_.choice([dim**-0.5, 0.3])
    output = torch.full((rows * fresh, heads, dim), float("nan"))
    paged.paged_attention(query, keys, values, tables, which, lengths, fresh, scale, output)
    exact = torch.empty(rows * fresh, heads, dim, dtype=torch.float64)
    for r in range(rows):
        for i in range(fresh):
            slots = tables[which[r], : lengths[r] - fresh + i + 1]
            for h in range(heads):
                k, v = (x[slots, h // share].double() for x in (keys, values))
                weights = (k @ query[h, r * fresh + i].double() * scale).softmax(0)
                exact[r * fresh + i, h] = weights @ v
    assert (output - exact).abs().max() < 2e-5
    for r in range(rows):
        slots = tables[which[r], : lengths[r]]
        k, v = (x[slots].transpose(0, 1).repeat_interleave(share, 0) for x in (keys, values))
        own = slice(r * fresh, r * fresh + fresh)
        mask = torch.ones(fresh, lengths[r], dtype=torch.bool).tril(int(lengths[r]) - fresh)
        dense = torch.nn.functional.scaled_dot_product_attention(
            query[:, own], k, v, attn_mask=mask, scale=scale
        )
        assert (output[own].transpose(0, 1) - dense).abs().max() < 2e-5


def test_the_kernel_changes_nothing(monkeypatch):
    needs_kernel()
    write_structure(monkeypatch, share=0, broken=0.05)
    calls, attend = 0, paged.paged_attention

    def counting(*args):
        nonlocal calls
        calls += 1
        attend(*args)

    monkeypatch.setattr(paged, "paged_attention", counting)
    for seed in range(4):
        params = SamplingParams(max_tokens=150, seed=seed)
        config = {"max_depth": 2, "num_slots": 400, "max_step_tokens": 24}
        calls = 0
        fast = make_engine(seed, **config).generate(PROMPTS[:4], params, 2)
        assert calls > 50
        with monkeypatch.context() as patch:
            patch.setattr(paged, "kernel", lambda: None)
            calls = 0
            slow = make_engine(seed, **config).generate(PROMPTS[:4], params, 2)
            assert not calls
        for a, b in zip(fast, slow, strict=True):
            assert a.completion_ids == b.completion_ids
            assert np.allclose(a.logprobs, b.logprobs, atol=1e-5, equal_nan=True)
