"""What a run would take, and what would stop it, said before anything is loaded."""

import dataclasses
import json
import re
import shutil

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from npr_lib import WorkbenchError, __main__
from npr_lib.profiles.profile import load_profile, make_profile, names
from npr_lib.workbench import plan, preflight, shapes

EVERY = {"problems", "npr_zero", "rejection", "sft", "npr", "evaluation"}
SMALL = dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=50, intermediate_size=24)


@pytest.mark.parametrize("name", names())
def test_no_profile_that_comes_along_is_stopped(name):
    """The hub's problems aside, which are not here."""
    assert preflight.faults(load_profile(name), EVERY, here=True) == []


def test_the_size_of_a_model_is_that_of_its_weights(tmp_path):
    config = LlamaConfig(hidden_size=16, num_hidden_layers=3, tie_word_embeddings=True, **SMALL)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    profile = make_profile({"problems": {"kind": "parts"}, "model": {"path": str(tmp_path)}})
    found = shapes.config(profile)
    total = sum(weight.numel() for weight in {w.data_ptr(): w for w in model.parameters()}.values())
    assert shapes.parameters(found) == total
    numbers = 2 * 3 * 2 * 4  # keys and values, layers, heads, size
    assert shapes.kv_bytes(found, 4) == 4 * numbers
    # six models, and of two trainings at a time three checkpoints with Adam's moments
    assert shapes.disk(profile) == 4 * total * (6 + 3 * 3 * 2)
    assert shapes.disk(dataclasses.replace(profile, lora={"r": 4})) == 4 * total


def test_qwen3_4b_is_what_its_name_says():
    shape = shapes.config(load_profile("qwen3-4b"))
    assert round(shapes.parameters(shape) / 1e9, 1) == 4.0
    per_layer = 2560 * 128 * (32 + 8 + 8) + 32 * 128 * 2560 + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128
    assert shapes.parameters(shape) == 36 * per_layer + 151_936 * 2560 + 2560


def test_memory_is_the_documented_arithmetic():
    profile = load_profile("qwen3-4b")
    shape = shapes.config(profile)
    count = shapes.parameters(shape)
    whole, shared = plan.memory(profile, shape), plan.memory(profile, shape, 8, 2)
    for part, size, among in (("weights", 4, 1), ("gradients", 4, 8), ("Adam", 8, 8)):
        assert whole[part] == size * count and shared[part] == size * count / among
    one = plan.memory(profile, shape, 8, 1)
    assert one["gradients"] == 4 * count and one["Adam"] == count
    assert whole["KV pool"] == 200_000 * 36 * 2 * 8 * 128 * 2
    assert whole["activations"] == 30_000 * 2 * (2560 * 36 + 8 * 2560 + 4 * 9728)
    assert sum(shared.values()) < 80e9 < sum(whole.values()), "one of 80 GB is not enough"


def test_tokens_are_counted_by_hand():
    """tiny: 96 steps of a batch, twice with SR; 48 steps, two a batch."""
    profile = load_profile("tiny")
    found = plan.responses_of(profile, EVERY, 1)
    assert found["npr"] == (2 * 96 * 256, 260, 2 * 96 * 256 * 260)
    assert found["npr_zero"][0] == 24 * 256
    assert found["rejection"][0] == 8 * 1000
    assert found["sft"][2] == 2 * 300 * 32 * 260
    assert found["evaluation"][0] == 6 * 500 * 3
    alone = plan.responses_of(load_profile("tiny", ["baselines=false"]), EVERY, 1)
    assert alone["npr"][0] == 96 * 256 and alone["evaluation"][0] == 4 * 500 * 3
    assert set(plan.responses_of(profile, {"npr", "problems"}, 1)) == {"npr"}


def test_the_paper_is_printed_without_network_weights_or_gpu(capsys, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    assert __main__.main(["run", "--profile", "qwen3-4b", "--dry-run"]) == 0
    said = capsys.readouterr().err
    for word in ("4,022.5 M parameters", "x 16 =", "GB a device", "stage       rejection: 64,000"):
        assert word in said, word
    for word in ("accelerate launch --num_processes 8 --config_file", "32 problems x 16 = 512"):
        assert word in said, word
    assert "npr: 16 problems x 16 = 256 responses (32 a process, 1 at a time)" in said
    assert re.search("stage       rejection: .* on 1\n", said) and " h on 8\n" in said
    assert "stops" not in said and said.count("unverified") >= 3


def test_a_late_fault_is_in_the_plan(tmp_path, capsys):
    arguments = ["run", "--profile", "smoke", "--run", "planned", "--dry-run"]
    assert __main__.main([*arguments, "-p", "npr.grpo.per_device_train_batch_size=3"]) == 0
    assert "stops       npr.grpo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["problems.validation=4"],
            r"npr: validation\.problems = 8, but the validation split has 4",
        ),
        (["problems.test=0"], "the test split has no problems"),
        (["problems.train=40"], r"rejection\.problems = 48, but the train split has 40"),
        (["prompt=Solve it."], r"no \{problem\}"),
        (["problems.verifier=sum"], "'sum' names no function"),
        (["npr.grpo.num_generations=3"], "npr.grpo: .*num_generations"),
        (["npr.grpo.beta=0.1"], "PAPO has beta = 0.0"),
        (["sft.trl.save_strategy=often"], r"sft\.trl: .*SaveStrategy"),
        (["npr.sampling.max_tokens=9000"], r"npr\.sampling\.max_tokens = 9000: .*num_slots = 8192"),
        (["npr.grpo.bf16=true"], r"npr\.grpo\.bf16 = true: no GPU is found"),
        (["problems={kind: file, path: none.jsonl}"], "No such file.*none.jsonl"),
    ],
)
def test_what_would_stop_a_late_stage_is_said_before_the_first(tmp_path, overrides, message):
    profile = load_profile("smoke", overrides)
    with pytest.raises(WorkbenchError) as caught:
        preflight.check(profile, EVERY, tmp_path)
    assert re.search(message, str(caught.value)), caught.value
    # only of what is to run
    preflight.check(profile, {"problems", "seed"}, tmp_path)


def test_missing_columns_are_among_it(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "1+1", "answer": "2"}) + "\n")
    problems = f"problems={{kind: file, path: {tmp_path / 'mine.jsonl'}}}"
    told = preflight.faults(load_profile("smoke", [problems]), EVERY)
    assert any("lacks column 'problem'" in one for one in told)


def test_a_disk_that_can_not_hold_the_run_is_said(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WorkbenchError, match=r"0\.0 GB left, and the run's models .* take about"):
        preflight.check(load_profile("smoke"), EVERY, tmp_path / "not" / "yet")


def test_a_model_of_no_known_kind_is_said(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    profile = load_profile("smoke", [f"model={{path: {tmp_path}}}"])
    with pytest.raises(WorkbenchError, match=r"config\.json: .*unheard-of"):
        preflight.check(profile, EVERY, tmp_path)


def test_a_disk_that_is_full_or_read_only_is_an_error_in_words(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "reports/x")

    monkeypatch.setattr("npr_lib.workbench.pipeline.run", full)
    assert __main__.main(["run", "--profile", "smoke"]) == 1
    assert capsys.readouterr().err == "error: No space left on device: reports/x\n"


def test_random_qwen3_models_have_as_many_parameters_as_planned():
    config = Qwen3Config(hidden_size=16, num_hidden_layers=2, head_dim=8, **SMALL)
    own = sum(p.numel() for p in Qwen3ForCausalLM(config).parameters())
    assert shapes.parameters(config) == own
