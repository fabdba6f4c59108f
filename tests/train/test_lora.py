"""LoRA: adapters through the stages, in the engine, on disk."""

import json
import random
import shutil
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from oracles import random_model
from peft import AutoPeftModelForCausalLM, PeftModel
from policies import random_policy
from stages_for_tests import make_stage
from test_engine_oracle import check_against_dense
from test_tokens import bpe, small_model

from npr_lib import WorkbenchError
from npr_lib.analysis.evaluate import load_engine
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.adapter import merged
from npr_lib.engine.branch import Response
from npr_lib.engine.checkpoint import load_checkpoint
from npr_lib.files import base_of, model_digest
from npr_lib.profiles.profile import load_profile
from npr_lib.reasoning.tokens import TagIds, add_tag_tokens
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.train import dapo, papo, seed, sft
from npr_lib.train.lora import add_adapter, load_trainable, trainable_share
from npr_lib.workbench.variants import _bring

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
TOKENIZER = tiny_tokenizer()
PROMPT = "A=1;"
RESPONSE = (
    "<guideline><plan>1:A</plan><plan>2:B</plan></guideline><step>1:x</step><step>2:y</step>"
    "<takeaway>z</takeaway>\\boxed{7}"
)


def shaken(model):
    """An adapter that does something: a new one's B is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def uneven(rollout):
    """A reward that differs within groups."""
    return float(rollout.trajectory.completion_ids[0] % 2) - rollout.trajectory.work


@pytest.fixture
def run(request, tmp_path):
    """A run folder with a seed whose tokenizer lacks the tags, and its stage."""
    tokenizer = bpe()
    small_model(len(tokenizer), getattr(request, "param", True)).save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    steps = ["npr_zero.grpo.max_steps=2", "npr.grpo.max_steps=2", "sft.trl.max_steps=2"]
    profile = load_profile("smoke", [f"lora={json.dumps(LORA)}", *steps])
    profile = replace(profile, model={"path": str(tmp_path / "mine")})
    (tmp_path / "run").mkdir()
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False)
    rows = pd.DataFrame([{"prompt_ids": prompt, "text": RESPONSE}] * 8)
    rows.to_parquet(tmp_path / "run" / "rejection.parquet")
    return make_stage(profile, tmp_path / "run")


def small(folder):
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def test_the_engine_decodes_with_the_adapter_in_place(monkeypatch):
    """As a dense forward of the merged model does, and not as the base does."""
    policy = random_policy(TOKENIZER)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    base = random_model(random.Random(1), TOKENIZER)
    plain = merged(base)
    assert plain is base
    model = shaken(add_adapter(base, TOKENIZER, LORA, 0))
    engine = TorchEngine(model, TOKENIZER, EngineConfig(num_slots=4096))
    found = engine.generate([PROMPT, "B=2;"], SamplingParams(max_tokens=80), n=2)
    assert any(t.triggered for t in found)
    dense = merged(model)
    assert not isinstance(dense, PeftModel) and isinstance(model, PeftModel)
    names = [name for name, _ in random_model(random.Random(1), TOKENIZER).named_parameters()]
    assert [name for name, _ in dense.named_parameters()] == names  # what SGLang is sent
    for trajectory in found:
        check_against_dense(dense, trajectory, tolerance=1e-4)
    with model.disable_adapter(), pytest.raises(AssertionError):
        check_against_dense(model.get_base_model(), found[0], tolerance=1e-2)


@pytest.mark.parametrize("run", [True, False], ids=["tied", "untied"], indirect=True)
def test_the_tags_rows_train_and_nothing_else_of_the_embedding(run):
    seed.train(run)
    beta = sft.train(run)
    before = load_checkpoint(run.run_dir / "seed")
    tags = add_tag_tokens(*before)
    model, tokenizer = load_checkpoint(beta)
    assert TagIds.from_tokenizer(tokenizer) == tags
    rows, base = [m.get_input_embeddings().weight for m in (model, before[0])]
    heads, base_heads = [m.get_output_embeddings().weight for m in (model, before[0])]
    tag_rows = list(tags.ids)
    others = [i for i in range(len(rows)) if i not in tag_rows]
    for found, old in ((rows, base), (heads, base_heads)):
        assert torch.equal(found[others], old[others])
        assert not torch.allclose(found[tag_rows], old[tag_rows], atol=1e-6)
    assert (heads is rows) == (before[0].config.tie_word_embeddings)


def test_every_stage_trains_adapters_on_the_seed(run, monkeypatch):
    seed.train(run)
    zero = dapo.train(run, reward=uneven)
    beta = sft.train(run)
    policy = random_policy(load_checkpoint(beta)[1])
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    npr = papo.train(run, reward=uneven)
    for folder in (zero, beta, npr):
        said = json.loads((folder / "adapter_config.json").read_text())
        assert said["base_model_name_or_path"] == "../seed" and said["r"] == 4
        assert not (folder / "model.safetensors").exists()
        assert small(folder) < small(run.run_dir / "seed")
    log = json.loads((npr / "log.jsonl").read_text().splitlines()[0])
    assert log["sampling/sampling_logp_difference/max"] < 1e-4 and log["trigger_rate"] > 0
    engine = load_engine(run, "npr")
    assert not isinstance(engine.model, PeftModel) and engine.style.name == "compact"
    weights = [load_checkpoint(f)[0].state_dict() for f in (beta, npr)]
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_run_folder_can_move_and_peft_loads_its_adapters(run, tmp_path, monkeypatch):
    seed.train(run)
    beta = sft.train(run)
    expected, tokenizer = load_checkpoint(beta)
    digest = model_digest(beta)
    shutil.move(run.run_dir, tmp_path / "moved")
    moved = tmp_path / "moved" / beta.name
    assert model_digest(moved) == digest
    ids = torch.tensor([tokenizer.encode(PROMPT + RESPONSE, add_special_tokens=False)])
    again = load_checkpoint(moved)[0](ids).logits
    assert torch.allclose(again, expected(ids).logits, atol=1e-6)
    monkeypatch.chdir(moved)
    theirs = AutoPeftModelForCausalLM.from_pretrained(".")
    assert torch.allclose(theirs(ids).logits, again, atol=1e-5)


def test_a_copied_adapter_still_finds_its_base(run, tmp_path):
    """As a variant of a run takes it."""
    seed.train(run)
    beta = sft.train(run)
    target = tmp_path / "far" / "away" / "npr_beta"
    _bring(beta, target)
    assert base_of(target).resolve() == (run.run_dir / "seed").resolve()
    assert model_digest(target) == model_digest(beta)


def test_an_adapter_is_known_by_its_base_too(run):
    seed.train(run)
    beta = sft.train(run)
    before = model_digest(beta)
    path = run.run_dir / "seed" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 99}))
    assert model_digest(beta) != before
    shutil.rmtree(run.run_dir / "seed")
    with pytest.raises(WorkbenchError, match=r"npr_beta: its base model .* can't be loaded"):
        load_checkpoint(beta)


def test_an_adapter_is_a_model_of_ones_own(run, tmp_path):
    seed.train(run)
    beta = sft.train(run)
    profile = replace(run.profile, model={"path": str(beta)})
    adopted = seed.train(make_stage(profile, tmp_path / "second"))
    assert (adopted / "model.safetensors").exists()
    ids = torch.tensor([[5, 6, 7]])
    logits = [load_checkpoint(folder)[0](ids).logits for folder in (adopted, beta)]
    assert torch.allclose(*logits, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("train", [sft.train, partial(dapo.train, reward=uneven)])
def test_a_training_that_was_stopped_goes_on_to_the_same_adapter(run, tmp_path, train):
    extra = ["npr_zero.validation.every=1", "npr_zero.resamples=0"]
    profile = load_profile("smoke", [f"lora={json.dumps(LORA)}", *extra])
    trl = {**profile.sft.trl, "save_steps": 1, "max_steps": 2}
    profile = replace(profile, model=run.profile.model, sft=replace(profile.sft, trl=trl))
    folders = []
    for name, stop in (("whole", None), ("halved", 1)):
        shutil.copytree(run.run_dir, tmp_path / name)
        stage = make_stage(profile, tmp_path / name)
        seed.train(stage)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
                patch.setattr("npr_lib.train.checkpoints.train", stopped_after(stop))
                train(stage)
        folders.append(train(stage))
    weights = [load_checkpoint(folder)[0].state_dict() for folder in folders]
    for name, found in weights[0].items():
        assert torch.allclose(found, weights[1][name], atol=1e-6), name


def stopped_after(step):
    """`checkpoints.train` that is interrupted once a checkpoint is written."""
    from transformers import TrainerCallback

    from npr_lib.train.checkpoints import train

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **_):
            if state.global_step == step:
                raise KeyboardInterrupt

    def run(trainer, resume):
        trainer.add_callback(Stop())
        train(trainer, resume)

    return run


def test_a_stage_goes_on_with_an_adapter_as_it_was_made(run):
    seed.train(run)
    beta = sft.train(run)
    model, _ = load_trainable(beta, LORA)
    assert isinstance(model, PeftModel) and 0 < trainable_share(model) < 0.5
    load_trainable(beta, {**LORA, "target_modules": "all-linear"})  # which those are, peft finds
    with pytest.raises(WorkbenchError, match=r"lora\.r = 8, but the adapter .*npr_beta has 4"):
        load_trainable(beta, {**LORA, "r": 8})


def test_without_lora_an_adapter_is_merged_aloud_and_all_weights_train(run, capsys):
    seed.train(run)
    model, _ = load_trainable(sft.train(run), {})
    assert "all weights train" in capsys.readouterr().out
    assert not isinstance(model, PeftModel) and trainable_share(model) == 1


def test_what_peft_can_not_make_is_named(run):
    seed.train(run)
    stage = make_stage(replace(run.profile, lora={"target_modules": ["nothing"]}), run.run_dir)
    with pytest.raises(WorkbenchError, match=r"lora: .*nothing"):
        sft.train(stage)
