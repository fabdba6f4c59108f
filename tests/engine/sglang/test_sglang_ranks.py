"""Tensor parallelism: two ranks on a CPU, each with its own families, decide alike."""

import random

import pytest
from oracles import random_model
from sglang_engines import TOKENIZER, sglang_engine, written_by_policy
from test_engine_oracle import check_against_dense

from npr_lib.engine import EngineConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_two_ranks_match_a_dense_forward(monkeypatch, tmp_path):
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # no compiler for what SGLang would compile
    models = (random_model(random.Random(seed), TOKENIZER) for seed in range(50))
    model = next(
        m for m in models if not m.config.num_key_value_heads % 2 and not m.config.vocab_size % 2
    )
    config = EngineConfig(num_slots=512, max_depth=2)  # so little that families are suspended
    trajectories = []
    for seed in range(6):
        params = {"max_tokens": 250, "max_span": 80}
        trajectories += written_by_policy(model, monkeypatch, seed, config, params, n=1)
    options = {"tp_size": 2, "schedule_conservativeness": 0.02}
    with sglang_engine(model, tmp_path, config, **options) as engine:
        replayed = engine.replay_all(trajectories, "parallel")
        assert max(check_against_dense(model, t) for t in replayed) > 0.1
        assert [t.layout for t in replayed] == [t.layout for t in trajectories]
        assert engine.report()["num_used"] == 0
