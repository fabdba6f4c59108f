"""Sampling against a float64 reference, and the counter-based uniforms."""

import numpy as np
import pytest
import torch

from npr_lib.engine import SamplingParams
from npr_lib.engine.sampling import gumbels, mix, sample, truncate


def test_noise_is_gumbel_and_a_function_of_its_row():
    keys = [mix(7, i) for i in range(200)]
    noise = np.stack([gumbels(keys, [t] * 200, np.arange(5)[None]) for t in range(40)])
    u = np.exp(-np.exp(-noise))
    assert u.min() > 0 and u.max() < 1
    counts = np.histogram(u, 20, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 45  # chi-square, 19 degrees: p < 0.001
    for axis in range(3):  # over counters, keys, words
        a, b = np.delete(u, 0, axis).ravel(), np.delete(u, -1, axis).ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert gumbels([keys[5]], [9], np.array([[3]]))[0, 0] == noise[9, 5, 3]


def reference_probs(logits, temperature, top_p, top_k):
    """The kept tokens' probabilities, one at a time in plain Python."""
    weights = np.exp((logits - logits.max()) / temperature)
    probs = weights / weights.sum()
    order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    order = order[:top_k] if top_k else order
    kept, mass, whole = [], 0.0, sum(probs[i] for i in order)
    for i in order:
        if mass >= top_p * whole:
            break
        kept.append(i)
        mass += probs[i]
    return {i: probs[i] / sum(probs[j] for j in kept) for i in kept}


@pytest.mark.parametrize("top_p, top_k", [(1.0, 0), (0.7, 0), (1.0, 3), (0.9, 8)])
@pytest.mark.parametrize("vocabulary", [30, 700])
def test_draws_follow_the_distribution(top_p, top_k, vocabulary):
    """20,000 draws from one distribution: chi-square of their counts, nothing outside of it, and
    the logprobs told are a float64 reference's."""
    logits = np.random.default_rng(0).normal(size=vocabulary) * 2
    draws, params = 20_000, SamplingParams(temperature=0.8, top_p=top_p, top_k=top_k)
    rows = torch.from_numpy(logits).expand(draws, -1)
    keys = [mix(1, r) for r in range(draws)]
    ids, logprobs, behaviour, entropies = sample(rows, keys, [3] * draws, params)
    probs = reference_probs(logits, 0.8, top_p, top_k)
    assert set(ids) <= set(probs)
    often = [i for i in probs if draws * probs[i] >= 10]
    expected = np.array([draws * probs[i] for i in often])
    counts = np.array([ids.count(i) for i in often])
    degrees = len(often)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)
    scaled = logits / 0.8
    whole = np.log(np.exp(scaled).sum())
    entropy = sum(-np.exp(x - whole) * (x - whole) for x in scaled)
    for r in range(0, draws, 100):
        assert abs(behaviour[r] - np.log(probs[ids[r]])) < 1e-9
        assert abs(logprobs[r] - (scaled[ids[r]] - whole)) < 1e-9
        assert abs(entropies[r] - entropy) < 1e-9


def test_rounding_errors_flip_few_draws():
    """Noise of 3e-5 in the logits of a large vocabulary moves at most 1 draw in 5,000: the reason
    for a race instead of inverse CDF."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 20_000, generator=generator) * 3
    noisy = logits + 3e-5 * torch.randn(logits.shape, generator=generator)
    keys, counters = [mix(2, r) for r in range(4000)], [0] * 4000
    a, b = (sample(x, keys, counters, SamplingParams())[0] for x in (logits, noisy))
    assert sum(x != y for x, y in zip(a, b, strict=True)) <= 1


def test_an_impossible_token_is_never_picked():
    rows = torch.tensor([5.0, 4.0, -torch.inf, -torch.inf]).expand(2000, -1)
    ids, _, behaviour, entropies = sample(rows, list(range(2000)), [0] * 2000, SamplingParams())
    assert set(ids) == {0, 1} and np.isfinite(behaviour).all()
    p = 1 / (1 + np.exp(-1))
    assert entropies == pytest.approx([-p * np.log(p) - (1 - p) * np.log(1 - p)] * 2000, abs=1e-6)
    assert truncate(torch.tensor([[0.2, 0.5, 0.3]]), 0.6, 0).tolist()[0][0] == 0


def test_branch_penalty_applies_to_own_tokens_inside_steps_only():
    logits = torch.tensor([[2.0, -1.0, 0.5], [2.0, -1.0, 0.5]])
    params = SamplingParams(branch_penalty=2.0)
    _, logprobs, behaviour, entropies = sample(logits, [1, 2], [0, 0], params, [[0, 1], []], [0, 0])
    penalized = torch.log_softmax(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), -1)
    plain = torch.log_softmax(logits[0].double(), -1)
    assert behaviour[0] == pytest.approx(penalized[0].item())
    assert behaviour[1] == pytest.approx(plain[0].item())
    assert logprobs == pytest.approx([plain[0].item()] * 2)
    assert entropies == pytest.approx([-(plain.exp() * plain).sum().item()] * 2)
    assert not params.on_policy and SamplingParams().on_policy
