"""Sampling against a float64 reference, and the counter-based uniforms."""

import numpy as np
import pytest
import torch

from npr_lib.engine import SamplingParams
from npr_lib.engine.sampling import mix, sample, truncate, uniforms


def test_uniforms_are_uniform_and_functions_of_their_row():
    keys = [mix(7, i) for i in range(200)]
    u = np.stack([uniforms(keys, [t] * 200) for t in range(200)])
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, 20, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 45  # chi-square, 19 degrees: p < 0.001
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.02
    assert uniforms([keys[5]], [9])[0] == u[9, 5]


def reference_choice(logits, u, temperature, top_p, top_k):
    """Inverse CDF over the kept tokens, one at a time in plain Python."""
    weights = np.exp((logits - logits.max()) / temperature)
    probs = weights / weights.sum()
    order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    order = order[:top_k] if top_k else order
    kept, mass, whole = set(), 0.0, sum(probs[i] for i in order)
    for i in order:
        if mass >= top_p * whole:
            break
        kept.add(i)
        mass += probs[i]
    total, seen = sum(probs[i] for i in kept), 0.0
    for i in range(len(probs)):
        if i in kept:
            seen += probs[i]
            if seen > u * total:
                return i, np.log(probs[i] / total)
    raise AssertionError


@pytest.mark.parametrize("top_p, top_k", [(1.0, 0), (0.7, 0), (1.0, 3), (0.9, 8)])
def test_sampling_equals_a_float64_reference(top_p, top_k):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(300, 30)) * 2
    u = generator.random(300)
    params = SamplingParams(temperature=0.8, top_p=top_p, top_k=top_k)
    ids, logprobs, behaviour = sample(torch.from_numpy(logits), u, params)
    for r in range(300):
        token, chosen = reference_choice(logits[r], u[r], 0.8, top_p, top_k)
        assert ids[r] == token
        assert abs(behaviour[r] - chosen) < 1e-9
        scaled = logits[r] / 0.8
        assert abs(logprobs[r] - (scaled[token] - np.log(np.exp(scaled).sum()))) < 1e-9


def test_extreme_uniforms_never_pick_an_impossible_token():
    probs_zero_tail = torch.tensor([[5.0, 4.0, -1e30, -1e30]] * 2)
    ids, _, behaviour = sample(probs_zero_tail, np.array([0.0, 1 - 2**-53]), SamplingParams())
    assert ids == [0, 1] and np.isfinite(behaviour).all()
    assert truncate(torch.tensor([[0.2, 0.5, 0.3]]), 0.6, 0).tolist()[0][0] == 0


def test_branch_penalty_applies_to_own_tokens_inside_steps_only():
    logits = torch.tensor([[2.0, -1.0, 0.5], [2.0, -1.0, 0.5]])
    params = SamplingParams(branch_penalty=2.0)
    _, logprobs, behaviour = sample(logits, np.array([0.0, 0.0]), params, [[0, 1], []])
    penalized = torch.log_softmax(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), -1)
    plain = torch.log_softmax(logits[0].double(), -1)
    assert behaviour[0] == pytest.approx(penalized[0].item())
    assert behaviour[1] == pytest.approx(plain[0].item())
    assert logprobs == pytest.approx([plain[0].item()] * 2)
    assert not params.on_policy and SamplingParams().on_policy
