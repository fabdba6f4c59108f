"""The engine's promises: lock step, reproducible sampling, exact budgets, a pool that empties."""

import random

import numpy as np
import pytest
import torch
from oracles import dense_logits, random_model
from policies import random_policy
from transformers import MistralConfig, MistralForCausalLM, StableLmConfig, StableLmForCausalLM

from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.engine.sampling import gumbels, hash_ids, mix
from npr_lib.engine.scheduler import Scheduler
from npr_lib.reasoning.layout import causal_layout
from npr_lib.reasoning.mask import dense_mask
from npr_lib.reasoning.style import STYLES
from npr_lib.reasoning.tokens import TagIds, encode
from npr_lib.reasoning.trajectory import from_row
from npr_lib.rewards import format_reward
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)


def make_engine(seed=0, **config):
    model = random_model(random.Random(seed), TOKENIZER)
    return TorchEngine(model, TOKENIZER, EngineConfig(**config))


def write_with(monkeypatch, policy):
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))


def same(a, b):
    return (a.completion_ids, a.decode_steps, a.finish_reason, a.layout) == (
        b.completion_ids,
        b.decode_steps,
        b.finish_reason,
        b.layout,
    ) and np.array_equal(a.logprobs, b.logprobs, equal_nan=True)


def test_repeated_call_is_bit_identical():
    engine = make_engine()
    params = SamplingParams(max_tokens=40, seed=3)
    first, second = (engine.generate(["A=1", "B", "A=1"], params, n=3) for _ in range(2))
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].completion_ids != first[1].completion_ids
    assert first[0].completion_ids != first[6].completion_ids, "a repeated prompt is a new one"
    other = engine.generate(["A=1"], SamplingParams(max_tokens=40, seed=4))[0]
    assert other.completion_ids != first[0].completion_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_independent_of_batch_up_to_near_ties(mode, temperature):
    """A response depends on nothing else in the batch; a difference must be a counted near-tie."""
    prompts = ["A=1+2", "B=3;", "C", "7+8-9=", "=", "D;D"]
    params = SamplingParams(max_tokens=60, temperature=temperature, seed=5)
    tokens = flips = 0
    reference = make_engine(max_running=1).generate(prompts, params, 4, mode)
    for other in (make_engine(max_running=64), make_engine(max_running=7, num_slots=130)):
        for i, (a, b) in enumerate(
            zip(reference, other.generate(prompts, params, 4, mode), strict=True)
        ):
            tokens += a.work
            if a.completion_ids == b.completion_ids:
                assert np.allclose(a.logprobs, b.logprobs, atol=1e-4, equal_nan=True)
            else:
                flips += 1
                assert_near_tie(other.model, params, a, b, i % 4)
    assert tokens > 300 and flips <= max(1, tokens / 10_000)


def assert_near_tie(model, params, a, b, sample_index):
    """At the first token in which they differ, the decision lies within 1e-4 of a boundary."""
    pairs = zip(a.completion_ids, b.completion_ids, strict=False)
    t = next(i for i, (x, y) in enumerate(pairs) if x != y)
    ids = a.prompt_ids + a.completion_ids[:t]
    layout = causal_layout(len(ids)) if a.mode == "sequential" else a.layout
    mask = dense_mask(layout)[: len(ids), : len(ids)]
    logits = dense_logits(model, ids, layout.position_ids[: len(ids)], mask)[-1].double()
    if params.temperature == 0:
        top = logits.topk(2).values
        assert top[0] - top[1] < 1e-4
        return
    assert not a.num_branches, "the noise below is that of the trunk"
    key = mix(mix(params.seed, hash_ids(a.prompt_ids), 0), sample_index)
    assert len(logits) <= 256, "one group, whose noise is numbered from 1"
    noise = gumbels([key], [t], 1 + np.arange(len(logits))[None])[0]
    top = (logits / params.temperature + torch.from_numpy(noise)).topk(2).values
    assert top[0] - top[1] < 1e-4


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_least_lengths_of_the_configuration_reach_the_format_reward(monkeypatch, mode):
    text = "<guideline><plan>1:AB</plan></guideline><step>1:7+8</step><takeaway>15</takeaway>"
    ids = encode(text + "\\boxed{15}<eos>", TOKENIZER)
    write_with(monkeypatch, lambda self, branch: ids[len(branch.sampled)])
    if mode == "parallel":
        step, takeaway = ids.index(TAGS.step), ids.index(TAGS.takeaway)
        own = {(): ids[:step] + ids[takeaway + 1 :], ((0, 0),): ids[step + 3 : takeaway]}
        write_with(monkeypatch, lambda self, branch: own[branch.path][len(branch.sampled)])
    for least, reward in [(None, 0), ((2, 3, 2), 0), ((3, 3, 2), -0.4), ((3, 4, 3), -1.2)]:
        engine = make_engine(min_chars=least)
        (t,) = engine.generate(["A"], SamplingParams(max_tokens=50), mode=mode)
        assert t.text == text + "\\boxed{15}" and format_reward(t.graph) == reward
        assert from_row(t.to_row()).graph == t.graph


def test_garbage_never_breaks_the_engine(monkeypatch):
    """300 responses of random tokens with tags sprinkled in: 300 trajectories, an empty pool."""
    engine = make_engine(num_slots=3000, max_depth=2)
    policy = random_policy(TOKENIZER, garbage=0.3)
    write_with(monkeypatch, policy)
    trajectories = engine.generate(["x", "A=1"], SamplingParams(max_tokens=50), n=100)
    write_with(monkeypatch, random_policy(TOKENIZER, garbage=1.0))
    trajectories += engine.generate(["y"], SamplingParams(max_tokens=50), n=100)
    assert len(trajectories) == 300
    assert all(t.work >= 1 and t.graph is not None for t in trajectories)
    assert all(bool(t.violation) == (t.finish_reason == "invalid") for t in trajectories)
    engine.kv.check()
    assert engine.kv.num_used == 0


def test_slots_are_distinct_forwarded_tokens(monkeypatch):
    """After every step: each forwarded token has one slot, whoever shares it."""
    plan, checked = Scheduler.plan, 0

    def checking(self):
        nonlocal checked
        rows = plan(self)
        self.pool.check()
        prompts = {r.prompt for r in (*self.running, *self.waiting) if r.prompt.table}
        prompts |= {fill.prompt for fill in self.fills if fill.prompt}
        # the last token of a prompt is its own, the others are shared with every other prompt
        shared = {tuple(p.ids[:i]) for p in prompts for i in range(1, len(p.ids))}
        completions = sum(r.response.forwarded for r in self.running)
        assert self.pool.num_used == len(shared) + len(prompts) + completions
        checked += 1
        return rows

    monkeypatch.setattr(Scheduler, "plan", checking)
    write_with(monkeypatch, random_policy(TOKENIZER))
    engine = make_engine(num_slots=400, max_depth=2)
    engine.generate(["A=1+2;B=", "7"], SamplingParams(max_tokens=200), n=10)
    assert checked > 50
    assert engine.kv.num_used == 0


@pytest.mark.parametrize("style", STYLES)
def test_fork_and_join_recompute_nothing(monkeypatch, style):
    """Every token goes through the model once: prompts once a group, completions once."""
    write_with(monkeypatch, random_policy(TOKENIZER, broken=0, nested=0))
    engine = make_engine(style=style)
    trajectories = engine.generate(["A=1+2", "B"], SamplingParams(max_tokens=400), n=6)
    assert all(t.finish_reason == "stop" for t in trajectories)
    prompts = sum(len(encode(p, TOKENIZER)) for p in ("A=1+2", "B"))
    # the last token of a response is never forwarded
    assert engine.stats.forwarded == prompts + sum(t.work - 1 for t in trajectories)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("depth", [1, 2])
def test_budgets_cut_where_lock_step_would(monkeypatch, depth, style):
    """`max_tokens` keeps the largest prefix by position that fits: checked against the same
    response without a budget, for every budget."""
    write_with(monkeypatch, random_policy(TOKENIZER, broken=0))
    engine = make_engine(num_slots=8192, max_depth=depth, style=style)
    for full in engine.generate(["A"], SamplingParams(max_tokens=700), n=8):
        assert full.finish_reason == "stop"
    full = engine.generate(["A"], SamplingParams(max_tokens=700), n=8)
    start = len(full[0].prompt_ids)
    for budget in (1, 2, 5, 9, *range(12, 80, 3)):
        cut = engine.generate(["A"], SamplingParams(max_tokens=budget), n=8)
        for whole, part in zip(full, cut, strict=True):
            if whole.work <= budget:
                assert part.completion_ids == whole.completion_ids
                assert part.finish_reason == "stop"
                continue
            positions = whole.position_ids[start:]
            last = max(p for p in positions if (positions <= p).sum() <= budget)
            kept = [i for i, p in zip(whole.completion_ids, positions, strict=True) if p <= last]
            assert part.completion_ids == kept
            assert part.position_ids[start:].tolist() == [p for p in positions if p <= last]
            assert part.finish_reason == "length"


def test_max_span_and_min_fork_tokens(monkeypatch):
    write_with(monkeypatch, random_policy(TOKENIZER, broken=0))
    engine = make_engine()
    full = engine.generate(["A"], SamplingParams(max_tokens=350), n=10)
    spans = engine.generate(["A"], SamplingParams(max_tokens=350, max_span=20), n=10)
    for whole, part in zip(full, spans, strict=True):
        if whole.span <= 20:
            assert part.completion_ids == whole.completion_ids
        else:
            kept = [
                i
                for i, p in zip(whole.completion_ids, whole.position_ids[1:], strict=True)
                if p < 21
            ]
            assert part.completion_ids == kept and part.finish_reason == "length"
    for t in engine.generate(["A"], SamplingParams(max_tokens=30, min_fork_tokens=30), n=10):
        assert t.finish_reason == "length"
        assert t.completion_ids[-1] == TAGS.guideline_end and not t.num_branches


def test_timeline_shows_branches_decoded_at_once(monkeypatch):
    write_with(monkeypatch, random_policy(TOKENIZER, broken=0))
    wide = [
        t
        for t in make_engine().generate(["A"], SamplingParams(max_tokens=350), n=20)
        if t.num_branches and t.num_branches[0] >= 3
    ]
    assert wide
    for t in wide:
        steps = {}
        for segment in t.segments:
            if segment.kind == "step" and segment.path[0][0] == 0:
                own = range(segment.start - 1, segment.end - 1)
                steps[segment.path] = {t.decode_steps[i] for i in own if t.sampled[i]}
        shortest = min(steps.values(), key=len)
        assert all(shortest <= other for other in steps.values())
        positions = dict(zip(t.decode_steps, t.position_ids[1:], strict=True))
        assert len(set(t.decode_steps)) <= t.span and positions


def test_sequential_equals_hugging_face_generate():
    engine = make_engine(seed=1)
    prompts = ["A=1+2", "B=7;"]
    ours = engine.generate(prompts, SamplingParams(max_tokens=40, temperature=0), mode="sequential")
    for prompt, trajectory in zip(prompts, ours, strict=True):
        ids = torch.tensor([encode(prompt, TOKENIZER)])
        out = engine.model.generate(ids, max_new_tokens=40, do_sample=False)
        theirs = out[0, ids.shape[1] :].tolist()
        assert trajectory.completion_ids == theirs
        n = len(trajectory.prompt_ids) + trajectory.work
        assert trajectory.position_ids.tolist() == list(range(n))


@pytest.mark.parametrize("style", STYLES)
def test_replay_repeats_the_trajectory_in_either_mode(monkeypatch, style):
    engine = make_engine(max_depth=2, style=style)
    with monkeypatch.context() as patch:
        write_with(patch, random_policy(TOKENIZER, broken=0.1))
        params = SamplingParams(max_tokens=120, temperature=0.8)
        trajectories = engine.generate(["A=1"], params, n=20)
    assert {t.finish_reason for t in trajectories} >= {"stop", "invalid"}
    for t in trajectories:
        again = engine.replay(t, "parallel")
        assert again.completion_ids == t.completion_ids and again.layout == t.layout
        assert again.sampled == t.sampled and again.finish_reason == t.finish_reason
        assert np.allclose(again.logprobs, t.logprobs, atol=1e-4, equal_nan=True)
        flat = engine.replay(t, "sequential")
        assert flat.completion_ids == t.completion_ids and flat.span == flat.work == t.work
        if t.finish_reason == "stop":
            forked = engine.replay(flat, "parallel")
            assert forked.layout == t.layout and forked.sampled == t.sampled
            assert np.allclose(forked.logprobs, t.logprobs, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("depth, style", [(1, "compact"), (2, "compact"), (2, "lines")])
def test_preemption_changes_nothing(monkeypatch, depth, style):
    """A pool of one worst case, and one that is ample: the same responses, with preemptions, and
    logprobs that agree to float32."""
    write_with(monkeypatch, random_policy(TOKENIZER, broken=0.1))
    prompts, params = ["A=1+2", "B", "A=1+2"], SamplingParams(max_tokens=120)
    ample = make_engine(max_depth=depth, style=style).generate(prompts, params, n=6)
    for slots in (5 + 120, 170, 250):
        engine = make_engine(num_slots=slots, max_depth=depth, style=style)
        tight = engine.generate(prompts, params, n=6)
        assert engine.stats.preemptions > 0
        assert engine.stats.peak_slots <= slots
        for a, b in zip(ample, tight, strict=True):
            assert a.completion_ids == b.completion_ids and a.layout == b.layout
            assert np.allclose(a.logprobs, b.logprobs, atol=1e-4, equal_nan=True)
        engine.kv.check()
        assert engine.kv.num_used == 0
        done = sum(t.work - 1 for t in tight if t.finish_reason == "stop")
        assert engine.stats.forwarded >= done


def test_replay_passes_an_eos_inside_a_branch_and_refuses_what_does_not_fit(monkeypatch):
    trunk = encode("<guideline><plan>1:A</plan><plan>2:B</plan></guideline>", TOKENIZER)

    def writer(response, branch):
        if branch.path:
            return [*encode("7+8", TOKENIZER), TOKENIZER.eos_token_id][len(branch.sampled)]
        return trunk[len(branch.sampled)]

    engine = make_engine()
    with monkeypatch.context() as patch:
        write_with(patch, writer)
        (t,) = engine.generate(["A"], SamplingParams(max_tokens=60))
    assert t.finish_reason == "invalid" and t.completion_ids.count(TOKENIZER.eos_token_id) == 2
    for mode in ("parallel", "sequential"):
        again = engine.replay(t, mode)
        assert again.completion_ids == t.completion_ids and again.finish_reason == "invalid"
    engine.context = len(t.prompt_ids) + t.span
    assert engine.replay(t, "parallel").completion_ids == t.completion_ids
    with pytest.raises(ValueError, match=rf"replay ended after {t.span} of {t.work} tokens"):
        engine.replay(t, "sequential")


def test_a_narrower_engine_replays_under_the_trajectorys_own_limits_and_style(monkeypatch):
    with monkeypatch.context() as patch:
        write_with(patch, random_policy(TOKENIZER, broken=0))
        trajectories = make_engine(max_depth=2).generate(["A"], SamplingParams(max_tokens=300), 8)
    narrow = make_engine(max_branches=1, max_depth=1, style="lines")
    for t in trajectories:
        assert narrow.replay(t, "parallel").layout == t.layout


def test_diverged_weights_are_an_error():
    engine = make_engine()
    with torch.no_grad():
        engine.model.get_input_embeddings().weight.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match="not finite"):
            engine.generate(["A"], SamplingParams(max_tokens=4, temperature=temperature))
    assert engine.kv.num_used == 0


def test_other_attention_than_full_is_refused():
    shape = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    windowed = MistralForCausalLM(MistralConfig(**shape, sliding_window=8))
    with pytest.raises(ValueError, match="layers of type sliding_attention are not supported"):
        TorchEngine(windowed, TOKENIZER)
    deaf = StableLmForCausalLM(StableLmConfig(**shape))
    with pytest.raises(ValueError, match="0 of its 2 layers pass keyword arguments on"):
        TorchEngine(deaf, TOKENIZER).generate(["A"], SamplingParams(max_tokens=4))
    full = MistralForCausalLM(MistralConfig(**shape, sliding_window=None))
    assert TorchEngine(full, TOKENIZER).generate(["A"], SamplingParams(max_tokens=4))


def test_what_can_never_fit_is_refused_at_submission():
    engine = make_engine(num_slots=105)
    with pytest.raises(ValueError, match="need 106 slots, the pool has 105"):
        engine.generate(["A=1+2"], SamplingParams(max_tokens=101))
    assert len(engine.generate(["A=1+2"], SamplingParams(max_tokens=100))) == 1


@pytest.mark.parametrize(
    "call, message",
    [
        ({"prompts": ["A", ""]}, "prompt 1 is empty"),
        ({"prompts": [[1, 2, 9999]]}, "token id 9999"),
        ({"prompts": ["A" * 600]}, "context is 512"),
        ({"prompts": ["A"], "n": 0}, "n = 0"),
        ({"prompts": "A"}, "expected a list of prompts"),
        ({"prompts": ["A"], "mode": "diagonal"}, "mode = 'diagonal'"),
    ],
)
def test_bad_calls_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        make_engine().generate(**{"params": SamplingParams(max_tokens=4), **call})


@pytest.mark.parametrize(
    "field, value",
    [("max_span", 0), ("max_tokens", 0), ("temperature", -1), ("top_p", 0), ("branch_penalty", 0)],
)
def test_bad_sampling_params_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


def test_parallel_mode_needs_the_tag_tokens():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"A": 0, "<eos>": 1}, unk_token="A")),
        eos_token="<eos>",
    )
    engine = TorchEngine(random_model(random.Random(0), TOKENIZER), bare)
    with pytest.raises(ValueError, match="lacks the tag tokens <guideline>"):
        engine.generate(["A"], SamplingParams(max_tokens=2))
    assert engine.generate(["A"], SamplingParams(max_tokens=2), mode="sequential")[0].work >= 1


def test_an_exception_leaves_the_pool_empty(monkeypatch):
    engine = make_engine()

    def fail(response, branch):
        raise RuntimeError("boom")

    write_with(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="boom"):
        engine.generate(["A"], SamplingParams(max_tokens=9), n=3)
    engine.kv.check()
    assert engine.kv.num_used == 0


def test_a_cancelled_prefill_keeps_exactly_what_was_forwarded():
    engine = make_engine(persistent_prefix=True, max_step_tokens=4)
    prompt = encode("A=1+2;B=3;C=4+5", TOKENIZER)
    assert len(prompt) > 9
    requests = engine.submit([prompt], SamplingParams(max_tokens=4))
    engine.step()
    engine.step()
    engine.cancel(requests)
    assert engine.kv.num_used == 0 and engine.kv.num_cached == engine.stats.forwarded == 8
    (again,) = engine.generate([prompt], SamplingParams(max_tokens=4, temperature=0))
    (alone,) = make_engine().generate([prompt], SamplingParams(max_tokens=4, temperature=0))
    assert engine.stats.reused == 8
    assert again.completion_ids == alone.completion_ids
    assert np.allclose(again.logprobs, alone.logprobs, atol=1e-4, equal_nan=True)
