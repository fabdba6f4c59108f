"""The oracle on real SGLang, on a CPU: what CI runs (`make test-sglang`)."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from sglang_engines import TOKENIZER, model_of_type, sglang_engine, written_by_policy
from test_engine_oracle import check_against_dense, check_lines

from npr_lib.engine import (
    EngineConfig,
    Finish,
    Fork,
    SamplingParams,
    SGLangEngine,
    Token,
    TorchEngine,
)
from npr_lib.engine.arguments import forced
from npr_lib.engine.sglang import backend
from npr_lib.engine.sglang.wire import pack
from npr_lib.reasoning.layout import layout
from npr_lib.reasoning.style import STYLES
from npr_lib.reasoning.tokens import StyleIds, TagIds, encode

pytestmark = pytest.mark.timeout(400)
TAGS = TagIds.from_tokenizer(TOKENIZER)
CONFIG = EngineConfig(num_slots=4096, max_depth=2)


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def pair(request, tmp_path_factory):
    """(model, SGLang on it)."""
    model = model_of_type(request.param)
    with sglang_engine(model, tmp_path_factory.mktemp("model"), CONFIG) as engine:
        yield model, engine


@pytest.mark.parametrize("style", STYLES)
def test_forks_and_joins_match_a_dense_forward(pair, style, monkeypatch):
    """Uneven branches, several blocks, nested, n > 1, shared prompts, truncated, invalid."""
    model, engine = pair
    config = replace(CONFIG, style=style)
    trajectories = []
    for seed, limits in enumerate([{"max_span": 60}, {"max_tokens": 90}, {"temperature": 0.7}]):
        params = {"max_tokens": 300, **limits}
        trajectories += written_by_policy(model, monkeypatch, seed, config, params, n=3)
    replayed = engine.replay_all(trajectories, "parallel")
    off = [check_against_dense(model, t) for t in replayed]
    assert max(off) > 0.1, "a plain causal forward passes too: the test can't fail"
    assert {t.finish_reason for t in trajectories} == {"stop", "length", "invalid"}
    assert {k for t in trajectories for k in t.num_branches} == {1, 2, 3, 4, 5}
    assert any(len(s.path) == 2 for t in trajectories for s in t.segments)
    for again, t in zip(replayed, trajectories, strict=True):
        assert again.completion_ids == t.completion_ids
        assert again.sampled == t.sampled
        assert again.layout == t.layout
        assert again.text == t.text and again.style == t.style == STYLES[style]
        if t.finish_reason == "stop":
            ids = again.prompt_ids + again.completion_ids
            writes = StyleIds.from_tokenizer(TOKENIZER, STYLES[style])
            assert layout(ids, TAGS, len(t.prompt_ids), writes) == again.layout
            if style == "lines":
                check_lines(again)


def test_branches_really_run_side_by_side(pair, monkeypatch):
    """The timeline: of the branches of a block, tokens at the same index share a step."""
    model, engine = pair
    trajectories = written_by_policy(model, monkeypatch, 9, CONFIG, {"max_tokens": 200}, n=2)
    for t in engine.replay_all(trajectories, "parallel"):
        prompt = len(t.prompt_ids)
        if any(len(s.path) > 1 for s in t.segments):
            continue  # a nested block holds its branch up, not the others
        for block in {s.path[0][0] for s in t.segments if s.path}:
            steps = [
                [t.decode_steps[i - prompt] for i in range(s.start, s.end)]
                for s in t.segments
                if s.path and s.path[0][0] == block
            ]
            for own in zip(*steps, strict=False):
                assert len(set(own)) == 1


@pytest.mark.parametrize("style", STYLES)
def test_budgets_cut_where_lock_step_would(pair, style, monkeypatch):
    """`max_tokens` at every place of a response, what the engine writes among them: the largest
    prefix by position that fits is left of it."""
    model, engine = pair
    config = replace(CONFIG, style=style)
    full = written_by_policy(model, monkeypatch, 5, config, {"max_tokens": 900}, n=1, broken=0)
    cuts = [(t, budget) for t in full for budget in range(12, 84)]
    settings = [engine.replay_settings(t, "parallel") for t, _ in cuts]
    settings = [
        replace(own, params=replace(own.params, max_tokens=budget))
        for own, (_, budget) in zip(settings, cuts, strict=True)
    ]
    parts = engine._run([t.prompt_ids for t, _ in cuts], settings)
    for part, (t, budget) in zip(parts, cuts, strict=True):
        positions = t.position_ids[len(t.prompt_ids) :]
        last = max(p for p in positions if (positions <= p).sum() <= budget)
        kept = [i for i, p in zip(t.completion_ids, positions, strict=True) if p <= last]
        assert part.completion_ids == kept
        assert part.finish_reason == ("stop" if t.work <= budget else "length")


def test_replay_sequentially(pair, monkeypatch):
    """The same ids one after the other, scored under a plain causal mask."""
    model, engine = pair
    trajectories = written_by_policy(model, monkeypatch, 4, CONFIG, {"max_tokens": 120}, n=1)
    for again in engine.replay_all(trajectories, "sequential"):
        assert all(again.sampled)
        assert again.span == again.work
        check_against_dense(model, again)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_sampling_is_that_of_the_embedded_engine(pair, temperature):
    """The same uniform for the same token: equal responses up to near-ties."""
    model, engine = pair
    prompts = [encode(text, TOKENIZER) for text in ("A=1+2", "7;8;9=", "B", "A=1+2")]
    params = SamplingParams(max_tokens=40, temperature=temperature, top_p=0.9, seed=3)
    ours = TorchEngine(model, TOKENIZER, CONFIG).generate(prompts, params, n=2)
    theirs = engine.generate(prompts, params, n=2)
    assert len(theirs) == 8
    for own, other in zip(ours, theirs, strict=True):
        check_against_dense(model, other)
        assert other.finish_reason == own.finish_reason
        assert other.completion_ids == own.completion_ids
        assert other.entropies == pytest.approx(own.entropies, abs=1e-4)
        assert other.behaviour_logprobs == pytest.approx(own.behaviour_logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "broken, message",
    [
        ("plugin.SUPPORTED = ('9.9',)", "pip install sglang==9.9"),
        ("plugin.HOOKS['managers.scheduler.Scheduler.fork'] = ('after', print)", "Scheduler.fork"),
        ("plugin.HOOKS['managers.fork.Fork.join'] = ('after', print)", "fork.Fork.join"),
    ],
)
def test_the_plugin_refuses_what_it_does_not_know(broken, message):
    """Another version, a hook that finds nothing: SGLang's process ends, and says why."""
    code = f"import npr_lib.engine.sglang.plugin as plugin; {broken}; plugin.register()"
    environment = {**os.environ, **backend.environment()}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr


def test_options_that_do_not_work_are_refused_before_anything_starts():
    with pytest.raises(ValueError, match="page_size = 16 is not supported, use --page-size 1"):
        SGLangEngine("nowhere", CONFIG, page_size=16)
    with pytest.raises(ValueError, match="use --disable-overlap-schedule"):
        SGLangEngine("nowhere", CONFIG, disable_overlap_schedule=False)


def test_requests_that_cannot_be_served_are_refused(pair):
    _, engine = pair
    with pytest.raises(ValueError, match="4097"):
        engine.generate([[20, 21]], SamplingParams(max_tokens=4095))
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        engine.generate([[20], []], SamplingParams())
    assert engine.generate([[20, 21]], SamplingParams(max_tokens=4094, max_span=5))[0].span <= 5
    assert engine.report()["num_used"] == engine.report()["families"] == 0


@pytest.mark.parametrize("style", STYLES)
def test_a_stream_tells_what_happens(pair, style, monkeypatch):
    """Token events in the order they happened rebuild the response; Fork and Join come where the
    embedded engine tells them; closing the stream leaves nothing behind."""
    model, engine = pair
    config = replace(CONFIG, style=style)
    trajectories = written_by_policy(model, monkeypatch, 2, config, {"max_tokens": 150}, n=1)
    settings = [engine.replay_settings(t, "parallel") for t in trajectories]
    prompts = [t.prompt_ids for t in trajectories]
    told = list(engine._stream(7, prompts, [replace(own, events=True) for own in settings]))
    for index, t in enumerate(trajectories):
        events = [event for event in told if event.index == index]
        finish = events.pop()
        assert isinstance(finish, Finish)
        assert finish.trajectory.completion_ids == t.completion_ids
        by_path = {}
        for event in events:
            assert event.call == 7
            if isinstance(event, Token):
                by_path.setdefault(event.path, []).append(event.token)
        local = local_paths(t)
        for path, ids in by_path.items():
            # what lies past the budget's end was told before the end was known
            assert ids[: len(local.get(path, []))] == local.get(path, [])
        assert sum(map(len, by_path.values())) >= t.work
        forks = [event.branches for event in events if isinstance(event, Fork)]
        assert sorted(forks) == sorted(t.num_branches)
    stream = engine.stream(prompts, SamplingParams(max_tokens=200))
    next(stream)
    stream.close()
    for _ in range(100):
        if engine.report()["families"] == 0:
            break
        time.sleep(0.1)
    assert engine.report()["families"] == engine.report()["num_used"] == 0


def local_paths(t):
    """Completion tokens by branch path, with blocks counted within their parent."""
    numbers, ids = {}, {}
    for segment in t.segments:
        if segment.kind == "prompt":
            continue
        path = ()
        for block, branch in segment.path:
            siblings = numbers.setdefault(path, {})
            path = (*path, (siblings.setdefault(block, len(siblings)), branch))
        own = t.completion_ids[segment.start - len(t.prompt_ids) : segment.end - len(t.prompt_ids)]
        ids.setdefault(path, []).extend(own)
    return ids


def test_a_prompt_is_computed_once_for_its_samples(pair):
    _, engine = pair
    prompts = [encode("1+2;" * 25 + text, TOKENIZER) for text in "AB"]
    settings = engine._settings(SamplingParams(max_tokens=3), "parallel", 0)
    sampling = [{"max_new_tokens": 3, "custom_params": pack(settings)}] * 8
    outputs = engine.backend.generate([*prompts] * 4, sampling)
    cached = sorted(out["meta_info"]["cached_tokens"] for out in outputs)
    assert cached[0] == 0
    assert cached[2:] == [len(prompts[0]) - 1] * 6  # the last token's logits are wanted


def test_diverged_weights_end_responses_and_not_the_server(pair):
    model, engine = pair
    broken = type(model)(model.config)
    torch.nn.init.constant_(broken.get_output_embeddings().weight, float("nan"))
    try:
        engine.follow(broken)
        engine.weights_changed()
        with pytest.raises(RuntimeError, match="logits are not finite"):
            engine.generate([[20, 21]], SamplingParams(max_tokens=10))
    finally:
        engine.follow(model)
        engine.weights_changed()
        engine.follow(None)
    (t,) = engine.generate([[20, 21]], SamplingParams(max_tokens=10))
    check_against_dense(model, t)


@pytest.mark.parametrize("style", STYLES)
def test_going_on_from_a_prefix(pair, style, monkeypatch):
    """A fork that the prefix holds, one branch of it complete: the others are sampled, with the
    branch penalty, as the embedded engine samples them."""
    model, engine = pair
    config = replace(CONFIG, style=style)
    monkeypatch.setattr(engine, "style", STYLES[style])
    written = written_by_policy(model, monkeypatch, 3, config, {"max_tokens": 300}, n=6, broken=0)
    checked = 0
    for t in written:
        given = forced(t, "parallel", TOKENIZER)
        first, second = (given.get(((0, i),), []) for i in range(2))
        if first[-1:] != [TAGS.step_end] or not second or TAGS.guideline in [*first, *second[:1]]:
            continue  # a nested block would need its branches too
        fork = given[()].index(TAGS.guideline_end) + 1
        prefix = {(): given[()][:fork], ((0, 0),): first, ((0, 1),): second[:1]}
        params = SamplingParams(max_tokens=120, max_span=60, branch_penalty=1.3, seed=checked)
        (own,) = TorchEngine(model, TOKENIZER, config).generate(
            [t.prompt_ids], params, prefix=prefix
        )
        (other,) = engine.generate([t.prompt_ids], params, prefix=prefix)
        assert other.completion_ids == own.completion_ids
        assert other.layout == own.layout
        assert other.sampled == own.sampled
        assert other.behaviour_logprobs == pytest.approx(
            own.behaviour_logprobs, abs=1e-4, nan_ok=True
        )
        checked += 1
    assert checked >= 5, "hardly a prefix: the test shows nothing"
