"""The oracle: a plain dense forward under `Trajectory.layout` gives the engine's logprobs."""

import random

import pytest
import torch
from oracles import (
    FAMILIES,
    PARTIAL_ROTARY,
    brute_force_mask,
    dense_logits,
    random_model,
    trajectory_paths,
)
from policies import random_policy

from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine, attention, paged
from npr_lib.engine.branch import Response
from npr_lib.reasoning.layout import LayoutError, layout
from npr_lib.reasoning.mask import dense_mask
from npr_lib.reasoning.style import STYLES
from npr_lib.reasoning.tokens import StyleIds, TagIds, encode
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)


def brute_force_positions(trajectory, paths):
    """Section 4 by hand: +1 after the previous token of the branch, a branch after its fork, a
    takeaway after the longest branch of its block."""
    positions = []
    for t, path in enumerate(paths):
        before = [s for s in range(t) if paths[s] == path]
        deeper = [s for s in range(t) if len(paths[s]) > len(path)]
        inside = [s for s in deeper if path.items() <= paths[s].items()]
        if not t:
            positions.append(0)
        elif before and before[-1] == t - 1:
            positions.append(positions[t - 1] + 1)
        elif inside and before and inside[-1] > before[-1]:
            block = list(paths[inside[-1]])[len(path)]
            positions.append(1 + max(positions[s] for s in inside if block in paths[s]))
        else:
            outer = dict(list(path.items())[:-1])
            fork = max(s for s in range(t) if paths[s] == outer)
            positions.append(positions[fork] + 1)
    return positions


def check_against_dense(model, trajectory, tolerance=1e-4):
    """Returns how far a plain causal forward is off (inf: nothing was sampled after a fork)."""
    ids = trajectory.prompt_ids + trajectory.completion_ids
    paths = trajectory_paths(trajectory)
    mask = brute_force_mask(paths)
    assert torch.equal(mask, dense_mask(trajectory.layout))
    assert trajectory.position_ids.tolist() == brute_force_positions(trajectory, paths)
    scale = trajectory.temperature or 1.0
    logits = dense_logits(model, ids, trajectory.position_ids, mask)
    dense = torch.log_softmax(logits.double() / scale, -1)
    causal = dense_logits(model, ids, range(len(ids)), torch.ones_like(mask).tril())
    causal = torch.log_softmax(causal.double() / scale, -1)
    off = 0.0
    start = len(trajectory.prompt_ids)
    for i, (token, sampled) in enumerate(
        zip(trajectory.completion_ids, trajectory.sampled, strict=True)
    ):
        value, entropy = trajectory.logprobs[i], trajectory.entropies[i]
        if not sampled:
            assert value != value and trajectory.behaviour_logprobs[i] != value
            assert entropy != entropy
            continue
        row = dense[start + i - 1]
        assert abs(row[token].item() - value) <= tolerance
        assert abs(-(row.exp() * row).sum().item() - entropy) <= tolerance
        off = max(off, abs(causal[start + i - 1, token].item() - value))
    return off


def check_lines(trajectory):
    """A response in style lines is written as the style is defined, token by token; what the engine
    wrote of it, and nothing else, was not sampled."""
    words = [TOKENIZER.decode([i]) for i in trajectory.completion_ids]
    paths = trajectory_paths(trajectory)[len(trajectory.prompt_ids) :]
    written = set()

    def expect(start, tokens, path):
        assert words[start : start + len(tokens)] == tokens
        assert all(p == path for p in paths[start : start + len(tokens)])
        written.update(range(start, start + len(tokens)))

    for t, word in enumerate(words):
        if word == "<step>":
            number = list(paths[t].values())[-1] + 1
            expect(t - 1, ["\n", "<step>", "\n", str(number), ":"], paths[t])
        elif word == "</step>":
            expect(t + 1, ["\n"], paths[t])
        elif word == "<takeaway>":
            expect(t, ["<takeaway>", "\n"], paths[t])
    assert trajectory.sampled == [t not in written for t in range(len(words))]


@pytest.mark.parametrize(
    "seed, style", [(i, s) for s, n in (("compact", 30), ("lines", 20)) for i in range(n)]
)
def test_oracle(seed, style, monkeypatch):
    """500 trajectories in all: uneven branches, several blocks, nested, truncated, invalid,
    preempted in between."""
    rng = random.Random(seed)
    model = random_model(rng, TOKENIZER, families=tuple(FAMILIES))
    policy = random_policy(TOKENIZER, broken=rng.choice([0.0, 0.1, 0.4]))
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    # a fork of 5 takes 10 tokens more in lines
    max_tokens = rng.choice([40, 120, 300]) + (30 if style == "lines" else 0)
    # half of the time so little room that responses are preempted and resumed
    slots = rng.choice([4096, max_tokens + 10])
    config = EngineConfig(num_slots=slots, max_depth=2, style=style)
    engine = TorchEngine(model, TOKENIZER, config)
    prompts = [encode(rng.choice(["A=1+2", "7;8;9=", "B"]), TOKENIZER) for _ in range(5)]
    params = SamplingParams(
        max_tokens=max_tokens,
        max_span=rng.choice([None, 60]),
        min_fork_tokens=rng.choice([0, 30]),
        temperature=rng.choice([0.7, 1.0, 1.3]),
        seed=seed,
    )
    trajectories = engine.generate(prompts, params, n=2)
    assert len(trajectories) == 10
    engine.kv.check()
    assert engine.kv.num_used == 0
    off = [check_against_dense(model, t) for t in trajectories]
    for t in trajectories:
        assert 1 <= t.work <= params.max_tokens
        assert t.span <= (params.max_span or params.max_tokens)
        ids = t.prompt_ids + t.completion_ids
        writes = StyleIds.from_tokenizer(TOKENIZER, STYLES[style])
        assert t.style == STYLES[style]
        if t.finish_reason == "stop":
            assert layout(ids, TAGS, len(t.prompt_ids), writes) == t.layout
            if style == "lines":
                check_lines(t)
        elif t.finish_reason == "invalid":
            assert t.violation
            with pytest.raises(LayoutError):
                layout(ids, TAGS, len(t.prompt_ids), writes)
    if any(len(k) and max(k) > 1 for k in (t.num_branches for t in trajectories)):
        assert max(off) > 0.1, "a plain causal forward passes too: the test can't fail"


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", PARTIAL_ROTARY)
def test_a_query_may_lie_head_by_head(family, compiled, monkeypatch):
    """Read in place by the kernel, and gathered where there is no compiler."""
    policy = random_policy(TOKENIZER, broken=0)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    if not compiled:
        monkeypatch.setattr(paged, "kernel", lambda: None)
    model = random_model(random.Random(1), TOKENIZER, families=(family,))
    layouts, attend = set(), attention._slot_attention

    def watch(layer, query, *rest):
        if query.shape[2] > 1:
            layouts.add(query.stride(1) > query.stride(2))
        return attend(layer, query, *rest)

    monkeypatch.setattr(attention, "_slot_attention", watch)
    engine = TorchEngine(model, TOKENIZER, EngineConfig(max_depth=2))
    trajectories = engine.generate(["A=1+2", "B"], SamplingParams(max_tokens=120, seed=1), n=2)
    assert layouts == {True}, "no query like that: the test can't fail"
    assert max(check_against_dense(model, t) for t in trajectories) > 0.1


def test_keys_of_another_shape_than_the_pool_are_refused():
    model = random_model(random.Random(0), TOKENIZER, families=("llama",))
    engine = TorchEngine(model, TOKENIZER)
    engine.kv.values[0] = engine.kv.values[0][..., :-1].contiguous()
    engine.kv.keys[0] = engine.kv.keys[0][..., :-1].contiguous()
    with pytest.raises(ValueError, match="not supported"):
        engine.generate(["A"], SamplingParams(max_tokens=4))
    assert engine.kv.num_used == 0


def test_greedy_responses_are_scored_at_temperature_one(monkeypatch):
    policy = random_policy(TOKENIZER, broken=0)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    model = random_model(random.Random(0), TOKENIZER)
    params = SamplingParams(max_tokens=120, temperature=0)
    trajectories = TorchEngine(model, TOKENIZER).generate(["A=1+2"], params, n=5)
    assert max(check_against_dense(model, t) for t in trajectories) > 0.1


def test_the_random_writer_covers_the_cases(monkeypatch):
    """What the oracle is worth: every kind of ending, nesting, and widths 1 to 5 do occur."""
    policy = random_policy(TOKENIZER, broken=0.2)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    model = random_model(random.Random(0), TOKENIZER, max_position_embeddings=1024)
    engine = TorchEngine(model, TOKENIZER, EngineConfig(max_depth=2))
    trajectories = engine.generate([[20]], SamplingParams(max_tokens=120), n=120)
    assert {t.finish_reason for t in trajectories} == {"stop", "length", "invalid"}
    assert {k for t in trajectories for k in t.num_branches} == {1, 2, 3, 4, 5}
    assert any(len(s.path) == 2 for t in trajectories for s in t.segments)
    assert any(len(t.num_branches) > 2 for t in trajectories)
