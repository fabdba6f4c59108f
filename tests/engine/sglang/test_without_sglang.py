"""The SGLang engine where SGLang is not installed: importable, and clear about what is missing."""

import json
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import random_model
from policies import random_policy

from npr_lib import WorkbenchError
from npr_lib.engine import EngineConfig, SamplingParams, SGLangEngine, Token, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.engine.sglang import backend
from npr_lib.engine.sglang.wire import (
    Settings,
    event_from_wire,
    events_to_wire,
    from_wire,
    pack,
    to_wire,
    unpack,
)
from npr_lib.reasoning.style import named
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.train import engines


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sglang", None)
    monkeypatch.setattr("os.environ", {})
    with pytest.raises(WorkbenchError, match="SGLang is not installed here: pip install"):
        SGLangEngine("nowhere")


def test_a_model_or_a_url():
    with pytest.raises(ValueError, match="a model_path, or the url"):
        SGLangEngine()
    with pytest.raises(ValueError, match="backend = 'vllm'"):
        EngineConfig(backend="vllm")


def test_settings_survive_the_wire():
    params = SamplingParams(max_tokens=9, max_span=7, top_k=3, stop=("a", "b"), seed=2**64 - 1)
    paths = {(): [1, 2], ((0, 1), (2, 0)): [3]}
    settings = Settings(params, "sequential", 2**64 - 1, 4, 2, forced=paths, events=True)
    lines = replace(settings, style=named("lines", (1, 0, 7)))
    for own in (settings, replace(settings, forced=None, prefix=paths), lines):
        assert unpack(json.loads(json.dumps(pack(own)))["npr"], {}) == own
    with pytest.raises(ValueError, match="unknown speed"):
        unpack({"speed": 3}, {"key": 0, "max_branches": 5, "max_depth": 1})
    with pytest.raises(ValueError, match="mode = 'both'"):
        unpack("both", {"key": 0, "max_branches": 5, "max_depth": 1})


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": "hot"},
        {"max_tokens": None},
        {"max_tokens": 7.5},
        {"top_k": 2.5},
        {"min_fork_tokens": None},
        {"stop": "5"},
        {"stop": 5},
        {"key": None},
        {"max_depth": float("inf")},
        {"forced": 5},
        {"forced": "5"},
        {"forced": "[[[[0, 0]], 5]]"},
        {"forced": '[[[[0, 0]], ["a"]]]'},
        {"prefix": "[[[0], [1]]]"},
        {"prefix": "[[[[[0], 0]], [1]]]"},
        {"prefix": "[" * 100_000},
        {"style": "line"},
        {"style": ["lines"]},
        {"style": "lines", "min_chars": 5},
        {"style": "lines", "min_chars": "[1, 2]"},
        {"style": "lines", "min_chars": [1, 2, -3]},
        {"style": "lines", "min_chars": "[1, 2, 1e400]"},
    ],
)
def test_nonsense_is_answered_and_ends_nothing(asked):
    # the scheduler answers a ValueError; by any other exception it would end, with every request
    with pytest.raises(ValueError):
        unpack(asked, {"key": 0, "max_branches": 5, "max_depth": 1})


def test_trajectories_and_events_survive_the_wire(monkeypatch):
    tokenizer = tiny_tokenizer()
    policy = random_policy(tokenizer)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    model = random_model(random.Random(0), tokenizer)
    config = EngineConfig(max_depth=2, style="lines", min_chars=(1, 2, 3))
    engine = TorchEngine(model, tokenizer, config)
    greedy = SamplingParams(max_tokens=80, temperature=0.0)  # behaviour logprobs of -inf
    for t in engine.generate([[20, 21]], greedy, n=8):
        again = from_wire(json.loads(json.dumps(to_wire(t), allow_nan=False)), t.prompt_ids)
        for name, value in vars(t).items():
            if name in ("logprobs", "behaviour_logprobs", "entropies"):
                assert np.array_equal(getattr(again, name), value, equal_nan=True)
            elif name != "graph":
                assert getattr(again, name) == value
    events = [e for e in engine.stream([[20]], greedy) if type(e).__name__ != "Finish"]
    wired = json.loads(json.dumps(events_to_wire(events), allow_nan=False))
    for event, values in zip(events, wired, strict=True):
        again = event_from_wire(values, event.call, event.index)
        if isinstance(event, Token) and not event.sampled:
            assert np.isnan(again.logprob) and np.isnan(event.logprob)
            again.logprob = event.logprob = 0.0
        assert again == event


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["base", "adapter"])
def test_a_checkpoint_is_served_in_the_type_that_it_is_stored_in(
    tmp_path, monkeypatch, stored, name
):
    """SGLang itself would compute in float16 where the weights are float32. An adapter's type is
    its base's."""
    model = random_model(random.Random(0), tiny_tokenizer()).to(getattr(torch, stored))
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "../base"})
    )
    made = []

    class Recorder:
        def __init__(self, folder, config, **own):
            made.append((folder, own["dtype"]))

        def weights_changed(self):
            pass

        shutdown = weights_changed

    monkeypatch.setattr(engines, "SGLangEngine", Recorder)
    config = EngineConfig(backend="sglang")
    with engines.checkpoint_engine(tmp_path / name, config):
        assert made == [(tmp_path / name, stored)]


def test_weights_go_over_in_the_type_that_sglang_computes_in():
    model = random_model(random.Random(0), tiny_tokenizer())
    own = dict(model.named_parameters())
    for dtype, kind in (("bfloat16", torch.bfloat16), ("auto", torch.float32)):
        sent = dict(backend._weights(model, dtype))
        assert sent.keys() == own.keys() and {t.dtype for t in sent.values()} == {kind}
        assert all(torch.equal(t, own[name].detach().to(kind)) for name, t in sent.items())
