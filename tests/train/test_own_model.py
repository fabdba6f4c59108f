"""A model that exists already, with a BPE tokenizer that lacks the tags, through every stage."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from own_models import write_random
from policies import random_policy
from stages_for_tests import make_stage
from test_tokens import bpe
from transformers import AutoTokenizer

from npr_lib import WorkbenchError
from npr_lib.analysis.evaluate import evaluate, load_engine
from npr_lib.engine.branch import Response
from npr_lib.engine.checkpoint import checkpoint_mode, load_checkpoint
from npr_lib.profiles.profile import load_profile
from npr_lib.reasoning.tokens import TagIds
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.train import dapo, papo, rejection, seed, sft
from npr_lib.train.lora import load_trainable

RESPONSE = (
    "<guideline><plan>1:A</plan><plan>2:B</plan></guideline><step>1:x</step><step>2:y</step>"
    "<takeaway>z</takeaway>\\boxed{7}"
)


@pytest.fixture
def profile(tmp_path):
    write_random(tmp_path / "mine")
    profile = load_profile("smoke", ["npr_zero.grpo.max_steps=1", "npr.grpo.max_steps=1"])
    return replace(profile, model={"path": str(tmp_path / "mine")})


def test_the_style_that_a_profile_names_is_trained_saved_and_read_back(profile, tmp_path):
    lines = replace(profile, engine=replace(profile.engine, style="lines"))
    seed.train(make_stage(lines, tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "seed")
    prompt = tokenizer.encode("A=1;", add_special_tokens=False)
    pd.DataFrame([{"prompt_ids": prompt, "text": RESPONSE}] * 8).to_parquet(
        tmp_path / "rejection.parquet"
    )
    beta = sft.train(make_stage(lines, tmp_path))
    assert json.loads((beta / "npr.json").read_text()) == {"mode": "parallel", "style": "lines"}
    assert load_engine(make_stage(profile, tmp_path), "npr_beta").style.name == "lines"


@pytest.mark.parametrize("style", [None, pytest.param("lines", marks=pytest.mark.slow)])
def test_every_stage_takes_it(profile, tmp_path, monkeypatch, style):
    profile = replace(profile, engine=replace(profile.engine, style=style))
    assert seed.train(make_stage(profile, tmp_path)) == tmp_path / "seed"
    dapo.train(make_stage(profile, tmp_path))
    zero = pd.read_parquet(tmp_path / "rollouts" / "npr_zero.parquet")
    assert set(zero["mode"]) == {"sequential"} and (zero["format_reward"] < 0).all()
    with pytest.raises(WorkbenchError, match="kept none of 48 problems after 6 samples each"):
        rejection.collect(make_stage(profile, tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "seed")
    prompt = tokenizer.encode("A=1;", add_special_tokens=False)
    rows = [{"prompt_ids": prompt, "text": RESPONSE} for _ in range(8)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rejection.parquet")
    beta = sft.train(make_stage(profile, tmp_path))
    assert (
        checkpoint_mode(beta) == "parallel" and checkpoint_mode(tmp_path / "seed") == "sequential"
    )
    said = json.loads((beta / "npr.json").read_text())
    assert said == {"mode": "parallel"} | ({"style": style} if style else {})
    # from here on the checkpoint says it
    profile = replace(profile, engine=replace(profile.engine, style=None))
    engine = load_engine(make_stage(profile, tmp_path), "npr_beta")
    assert engine.style.name == (style or "compact")
    tags = TagIds.from_tokenizer(engine.tokenizer)
    assert tags.step >= len(bpe())
    policy = random_policy(engine.tokenizer)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    npr = papo.train(make_stage(profile, tmp_path))
    log = json.loads((npr / "log.jsonl").read_text().splitlines()[0])
    assert log["sampling/sampling_logp_difference/max"] < 1e-4 and log["trigger_rate"] > 0
    assert np.isfinite(log["grad_norm"])
    assert json.loads((npr / "npr.json").read_text()) == said
    frame = evaluate(make_stage(profile, tmp_path), "npr")
    assert frame["triggered"].any() and set(frame["style"]) == {style or "compact"}


def test_a_missing_model_is_named(profile, tmp_path):
    profile = replace(profile, model={"path": str(tmp_path / "nothing")})
    with pytest.raises(WorkbenchError, match=r"model\.path = .*nothing can't be loaded"):
        seed.train(make_stage(profile, tmp_path))


def test_an_argument_that_loading_does_not_know_is_named(profile, tmp_path):
    profile = replace(profile, model={**profile.model, "gguf_fle": "a.gguf"})
    with pytest.raises(WorkbenchError, match=r"model\.path = .*can't be loaded: .*'gguf_fle'"):
        seed.train(make_stage(profile, tmp_path))


@pytest.mark.parametrize("given", ["bfloat16", "float16", "auto"])
def test_narrow_weights_are_refused_by_name(profile, tmp_path, given):
    """20 steps of AdamW at 1e-6 change 2 % of bfloat16 weights."""
    narrow_checkpoint(tmp_path)
    found = "bfloat16" if given == "auto" else given
    profile = replace(profile, model={**profile.model, "dtype": given})
    with pytest.raises(WorkbenchError, match=rf"mine has {found} weights .*grpo\.bf16: true"):
        seed.train(make_stage(profile, tmp_path))
    assert not (tmp_path / "seed" / "config.json").exists()


def test_a_model_stored_in_bfloat16_is_adopted_in_float32(profile, tmp_path):
    path = narrow_checkpoint(tmp_path)
    assert load_checkpoint(path)[0].dtype == torch.bfloat16  # to decode from, it may be
    assert load_trainable(seed.train(make_stage(profile, tmp_path)), {})[0].dtype == torch.float32


def test_no_stage_trains_narrow_weights(profile, tmp_path):
    path = narrow_checkpoint(tmp_path)
    rows = [{"prompt_ids": [1], "text": RESPONSE}]
    pd.DataFrame(rows).to_parquet(tmp_path / "rejection.parquet")
    (tmp_path / "seed").symlink_to(path)  # where SFT starts
    for train in (dapo.train, sft.train, papo.train):
        with pytest.raises(WorkbenchError, match="has bfloat16 weights to train"):
            train(make_stage(profile, tmp_path, path))


def test_a_model_with_tags_that_says_no_mode_is_parallel_aloud(profile, tmp_path, capsys):
    mine = tmp_path / "mine"
    assert checkpoint_mode(mine) == "sequential" and not capsys.readouterr().out
    tiny_tokenizer().save_pretrained(mine)
    assert checkpoint_mode(mine) == "parallel"
    said = capsys.readouterr().out
    assert str(mine) in said and "parallel" in said and said.count("\n") == 1
    assert "style compact" in said
    (mine / "npr.json").write_text('{"mode": "sequential"}')
    assert checkpoint_mode(mine) == "sequential" and not capsys.readouterr().out


@pytest.mark.parametrize("says", [None, "parallel"])
def test_a_seed_with_tags_is_sequential(profile, tmp_path, says):
    """As it is evaluated, so it is trained in stage 1."""
    mine = tmp_path / "mine"
    tiny_tokenizer().save_pretrained(mine)
    if says:
        (mine / "npr.json").write_text(json.dumps({"mode": says}))
    assert checkpoint_mode(mine) == "parallel"
    assert checkpoint_mode(seed.train(make_stage(profile, tmp_path))) == "sequential"


def narrow_checkpoint(folder):
    """The profile's model, stored in bfloat16."""
    load_checkpoint(folder / "mine")[0].to(torch.bfloat16).save_pretrained(folder / "mine")
    return folder / "mine"


def test_missing_checkpoint_and_data_are_named(profile, tmp_path):
    with pytest.raises(WorkbenchError, match=r"no config\.json"):
        dapo.train(make_stage(profile, tmp_path, tmp_path / "none"))
    with pytest.raises(WorkbenchError, match="run rejection sampling"):
        sft.train(make_stage(profile, tmp_path))
    assert list(seed.documents(profile, 0)) == []
