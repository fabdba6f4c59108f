"""Models whose configuration would stop a training, or end it after its first checkpoint."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from policies import random_policy
from stages_for_tests import make_stage
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from npr_lib import WorkbenchError
from npr_lib.engine.branch import Response
from npr_lib.profiles.profile import load_profile
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.train import dapo, papo, seed, sft
from npr_lib.train.reinforce import switch_dropout_off

TOKENIZER = tiny_tokenizer()
IDS = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
SIZES = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    **IDS,
    "bos_token_id": None,
}
RESPONSE = (
    "<guideline><plan>1:A</plan><plan>2:B</plan></guideline><step>1:x</step><step>2:y</step>"
    "<takeaway>z</takeaway>\\boxed{7}"
)


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.5))


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 512, **IDS}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), **sizes, bos_token_id=None))


def moe():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    heads = {"num_key_value_heads": 1, "head_dim": 8}
    config = Qwen3MoeConfig(**SIZES, **experts, **heads, output_router_logits=True)
    return Qwen3MoeForCausalLM(config)


def stage_of(model, tmp_path, *overrides):
    """A stage whose seed is this model, adopted."""
    torch.manual_seed(0)
    model().save_pretrained(tmp_path / "mine")
    TOKENIZER.save_pretrained(tmp_path / "mine")
    steps = ["npr_zero.grpo.max_steps=2", "npr.grpo.max_steps=2", "sft.trl.max_steps=2"]
    profile = load_profile("smoke", [*steps, *overrides])
    return make_stage(replace(profile, model={"path": str(tmp_path / "mine")}), tmp_path)


@pytest.fixture(autouse=True)
def writer(monkeypatch):
    """Responses of some structure, as random weights never write any."""
    policy = random_policy(TOKENIZER)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model", [llama, gpt2])
def test_dropout_is_off_in_reinforcement_learning_and_said(model, tmp_path, capsys):
    stage = stage_of(model, tmp_path)
    seed.train(stage)
    first = log_of(dapo.train(stage))[0]
    assert first["sampling/sampling_logp_difference/max"] < 1e-4
    assert "dropout of" in capsys.readouterr().out


def test_every_kind_of_dropout_is_found():
    model = gpt2().train()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert not torch.equal(model(ids).logits, model(ids).logits)
    switch_dropout_off(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("train", [dapo.train, papo.train, sft.train])
def test_a_mixture_of_experts_trains_in_every_stage(train, tmp_path):
    stage = stage_of(moe, tmp_path)
    start = seed.train(stage)
    if train is sft.train:
        rows = [{"prompt_ids": TOKENIZER("A=1;")["input_ids"], "text": RESPONSE}] * 8
        pd.DataFrame(rows).to_parquet(tmp_path / "rejection.parquet")
    log = log_of(train(replace(stage, checkpoint=start) if train is papo.train else stage))
    assert np.isfinite([line["grad_norm"] for line in log if "grad_norm" in line]).all()
    if train is not sft.train:
        assert log[0]["sampling/sampling_logp_difference/max"] < 1e-4


def spoil(folder, **fields):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_temperature_without_sampling_is_mended_before_anything_is_trained(tmp_path, capsys):
    stage = stage_of(llama, tmp_path)
    spoil(tmp_path / "mine", temperature=0.6, top_p=0.9)
    seed.train(stage)
    assert "do_sample: true" in capsys.readouterr().out
    kept = json.loads((tmp_path / "seed" / "generation_config.json").read_text())
    assert kept["do_sample"] and kept["temperature"] == 0.6
    spoil(tmp_path / "seed", do_sample=False)  # a foreign checkpoint, from which a stage starts
    trained = dapo.train(stage)
    AutoModelForCausalLM.from_pretrained(trained).generation_config.validate(strict=True)


def test_another_fault_of_a_generation_config_is_named_at_the_start(tmp_path):
    stage = stage_of(llama, tmp_path)
    spoil(tmp_path / "mine", early_stopping=True)
    with pytest.raises(WorkbenchError, match=r"generation config can't be saved: .*early"):
        seed.train(stage)
    assert not (tmp_path / "seed" / "config.json").exists()
