"""Real SGLang with a model that forks of its own accord: beside the embedded engine, and with
ordinary requests."""

import json
import os
import random
import subprocess
import sys

import pytest
from oracles import dense_logits
from sglang_engines import (
    TOKENIZER,
    digits_prompt,
    forking_model,
    random_digits,
    sglang_engine,
)
from test_engine_oracle import check_against_dense

from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.reasoning.mask import dense_mask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
CONFIG = EngineConfig(num_slots=4096)


@pytest.fixture(scope="module")
def model():
    return forking_model("qwen3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def engine(model, folder):
    with sglang_engine(model, folder, CONFIG) as engine:
        yield engine


def prompts(count, seed=0):
    rng = random.Random(seed)
    return [digits_prompt(random_digits(rng)) for _ in range(count)]


def near_tie(model, ours, theirs):
    """Whether two greedy responses part at a token where the top two logits are as good as equal.
    In token order the histories before the first difference are the same."""
    pairs = zip(ours.completion_ids, theirs.completion_ids, strict=False)
    first = next(i for i, (a, b) in enumerate(pairs) if a != b)
    ids = ours.prompt_ids + ours.completion_ids
    logits = dense_logits(model, ids, ours.position_ids, dense_mask(ours.layout))
    top = logits[len(ours.prompt_ids) + first - 1].topk(2).values
    return (top[0] - top[1]).item() <= 1e-4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_hundred_prompts_as_the_embedded_engine_answers_them(model, engine, temperature):
    params = SamplingParams(max_tokens=150, temperature=temperature, seed=5)
    ours = TorchEngine(model, TOKENIZER, CONFIG).generate(prompts(100), params)
    theirs = engine.generate(prompts(100), params)
    assert sum(t.triggered for t in ours) > 80, "the model hardly forks: the test shows nothing"
    different = [pair for pair in zip(ours, theirs, strict=True) if not same(*pair)]
    print(f"T = {temperature}: {len(different)} of 100 differ")
    assert len(different) <= 1
    if temperature == 0:
        assert all(near_tie(model, *pair) for pair in different)
    for t in theirs[::10]:
        check_against_dense(model, t)


def same(ours, theirs):
    alike = ours.completion_ids == theirs.completion_ids and ours.layout == theirs.layout
    return alike and ours.finish_reason == theirs.finish_reason


ORDINARY = """
import json, sys
import sglang
if __name__ == "__main__":
    engine = sglang.Engine(**json.loads(sys.argv[1]))
    prompts, params = map(json.loads, sys.argv[2:])
    out = engine.generate(input_ids=prompts, sampling_params=params)
    engine.shutdown()
    print("ANSWER" + json.dumps([o["output_ids"] for o in out]))
"""


def test_ordinary_requests_are_untouched(engine, folder, tmp_path):
    """Greedy tokens of plain requests, with families running beside them, are those of the same
    SGLang without the plugin."""
    from npr_lib.engine.sglang.backend import environment, server_arguments
    from npr_lib.engine.sglang.plugin import SWITCH
    from npr_lib.engine.sglang.wire import pack

    plain = {"max_new_tokens": 24, "temperature": 0}
    script = tmp_path / "ordinary.py"
    script.write_text(ORDINARY)
    arguments = server_arguments(str(folder), CONFIG)
    done = subprocess.run(
        [sys.executable, script, *map(json.dumps, (arguments, prompts(20), plain))],
        env={**os.environ, **environment(), SWITCH: "0"},
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    expected = json.loads(done.stdout.partition("ANSWER")[2])
    params = SamplingParams(max_tokens=150, temperature=0.0)
    settings = engine._settings(params, "parallel", 0)
    npr = {"max_new_tokens": 150, "custom_params": pack(settings)}
    both = engine.backend.generate(prompts(20) * 2, [plain] * 20 + [npr] * 20)
    assert [out["output_ids"] for out in both[:20]] == expected
    assert all("npr" not in out["meta_info"] for out in both[:20])
    assert any(ids != out["output_ids"][:24] for ids, out in zip(expected, both[20:], strict=True))
