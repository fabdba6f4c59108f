"""The paper's setting at two layers: the profile's own configuration through every stage, on a CPU,
with the real Qwen3 tokenizer and chat template.

Sizes are overridden, the rollouts are on the embedded engine, and a policy writes the responses,
since random weights write none. `make test-full` brings the tokenizer.
"""

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from own_models import write_problems
from policies import random_policy
from stages_for_tests import make_stage
from test_own_model import RESPONSE
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from npr_lib.analysis.evaluate import evaluate
from npr_lib.engine.branch import Response
from npr_lib.profiles.profile import load_profile
from npr_lib.tasks.problems import build_prompt, load_problems
from npr_lib.train import dapo, papo, seed, sft

pytestmark = pytest.mark.slow

SIZES = [
    *("engine.backend=torch", "engine.num_slots=8192", "npr_zero.start_check=0"),
    *("npr_zero.validation={every: 2, problems: 2}", "npr.validation={every: 1, problems: 2}"),
    *(f"{stage}.sampling.max_tokens=60" for stage in ("npr_zero", "npr", "evaluation")),
    *("npr_zero.grpo.steps_per_generation=16", "npr_zero.grpo.gradient_accumulation_steps=8"),
    *("npr.grpo.gradient_accumulation_steps=16", "sft.trl.gradient_accumulation_steps=2"),
    *(f"{stage}.grpo.max_steps=2" for stage in ("npr_zero", "npr")),
    *("npr.start_check=0", "launch={num_processes: 1, config_file: null}"),
    *(f"{stage}.grpo.use_cpu=true" for stage in ("npr_zero", "npr")),
    *("sft.trl.use_cpu=true", "evaluation.samples=1", "npr.min_kept=0.0", "npr.max_flat=9"),
    *("npr_zero.max_flat=9", "npr_zero.resamples=0"),
]


@pytest.fixture
def profile(tmp_path):
    folder = os.environ.get("NPR_QWEN3", "")
    if not os.path.isdir(folder):  # noqa: PTH112 - an empty name is no folder
        pytest.fail("NPR_QWEN3 names no folder with Qwen3's tokenizer: `make test-full` does")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "qwen3")
    tokenizer.save_pretrained(tmp_path / "qwen3")
    path = write_problems(tmp_path / "problems.jsonl")
    problems = f"{{kind: file, path: {path}, train: 32, validation: 4, test: 4}}"
    given = [f"model={{path: {tmp_path / 'qwen3'}}}", f"problems={problems}", *SIZES]
    return load_profile("qwen3-4b", given)


def test_every_stage(profile, tmp_path, monkeypatch):
    stage = make_stage(profile, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(seed.train(stage))
    problem = load_problems(profile.problems, "train", 0)[0]
    prompt = build_prompt(problem, profile.prompt, tokenizer)
    assert prompt.startswith("<|im_start|>system\nYou reason in parallel")
    assert problem.problem in prompt and prompt.endswith("<|im_start|>assistant\n")

    zero = dapo.train(stage)  # 16 responses a problem, checkpointed, bfloat16 by autocast
    rollouts = pd.read_parquet(tmp_path / "rollouts" / "npr_zero.parquet")
    assert rollouts.groupby(["step", "problem_id"]).size().eq(16).all()
    log = [json.loads(line) for line in (zero / "log.jsonl").read_text().splitlines()]
    assert 0 < log[0]["sampling/sampling_logp_difference/max"] < 1

    ids = tokenizer.encode(prompt, add_special_tokens=False)
    pd.DataFrame([{"prompt_ids": ids, "text": RESPONSE}] * 4).to_parquet(
        tmp_path / "rejection.parquet"
    )
    beta = sft.train(stage)
    policy = random_policy(AutoTokenizer.from_pretrained(beta))
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    npr = papo.train(stage)
    log = [json.loads(line) for line in (npr / "log.jsonl").read_text().splitlines()]
    assert log[0]["trigger_rate"] > 0 and np.isfinite(log[0]["grad_norm"])
    frame = evaluate(stage, "npr")
    assert frame["triggered"].any() and set(frame["temperature"]) == {0.0, 1.0}
