"""Checkpoints that travel: what a folder holds is enough for whoever has never heard of us."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from stages_for_tests import make_stage
from test_adopt import TEMPLATE, save
from test_lora import LORA, RESPONSE, uneven
from transformers import AutoModelForCausalLM, AutoTokenizer

from npr_lib import WorkbenchError, __main__
from npr_lib.engine.checkpoint import load_checkpoint, merge_folder
from npr_lib.files import model_digest
from npr_lib.profiles.profile import load_profile
from npr_lib.train import dapo, seed, sft


@pytest.fixture
def stage(tmp_path):
    """A run whose seed has a chat template and two ends of a response."""
    save(tmp_path / "mine", "<|end|>", ["<|end|>", "<eos>"], TEMPLATE)
    small = ["npr_zero.grpo.max_steps=2", "sft.trl.max_steps=2", "npr_zero.start_check=0"]
    profile = load_profile("smoke", small)
    stage = make_stage(replace(profile, model={"path": str(tmp_path / "mine")}), tmp_path)
    seed.train(stage)
    ids = AutoTokenizer.from_pretrained(tmp_path / "seed")("A=1;", add_special_tokens=False)
    rows = [{"prompt_ids": ids["input_ids"], "text": RESPONSE}] * 8
    pd.DataFrame(rows).to_parquet(tmp_path / "rejection.parquet")
    return stage


def test_plain_transformers_loads_a_checkpoint_and_generates(stage):
    beta = sft.train(stage)
    model, tokenizer = (cls.from_pretrained(beta) for cls in (AutoModelForCausalLM, AutoTokenizer))
    ends = tokenizer.convert_tokens_to_ids(["<|end|>", "<eos>"])
    assert set(model.generation_config.eos_token_id) == set(ends)
    assert tokenizer.chat_template == TEMPLATE and tokenizer.eos_token == "<|end|>"
    assert len(tokenizer.encode("<plan>", add_special_tokens=False)) == 1
    turns = [{"role": "user", "content": "A=1;"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert out.shape[1] > ids["input_ids"].shape[1]
    assert json.loads((beta / "npr.json").read_text())["mode"] == "parallel"


def test_the_card_tells_stage_data_figures_and_limits(stage):
    zero = dapo.train(stage, reward=uneven)
    card = (zero / "README.md").read_text()
    log = [json.loads(line) for line in (zero / "log.jsonl").read_text().splitlines()]
    last = [line for line in log if "eval_reward" in line][-1]
    assert f"| eval_reward | {last['eval_reward']:.4g} |" in card
    for told in ("NPR-Zero", '"kind": "parts"', "token by token", "held-out", "Limits"):
        assert told.lower() in card.lower(), told
    assert str(stage.run_dir) not in card
    assert "None: it was not trained here" in (stage.run_dir / "seed" / "README.md").read_text()


def test_the_card_is_no_part_of_what_a_model_is(stage):
    folder = stage.run_dir / "seed"
    before = model_digest(folder)
    (folder / "README.md").write_text("in other words")
    assert model_digest(folder) == before


def test_an_adapter_is_merged_on_request(stage, tmp_path):
    beta = sft.train(replace(stage, profile=replace(stage.profile, lora=LORA)))
    card = (beta / "README.md").read_text()
    assert "library_name: peft" in card and "NPR-Beta" in card
    arguments = ["merge", str(beta), str(tmp_path / "whole")]
    assert __main__.main(arguments) == 0 and __main__.main(arguments) == 1  # it is there now
    ids = torch.tensor([[5, 6, 7]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.allclose(plain(ids).logits, load_checkpoint(beta)[0](ids).logits, atol=1e-6)
    assert json.loads((tmp_path / "whole" / "npr.json").read_text()) == {"mode": "parallel"}
    with pytest.raises(WorkbenchError, match="is no adapter"):
        merge_folder(tmp_path / "whole", tmp_path / "twice")
