"""What ends a response of a model that exists: the tokenizer, the configuration and the chat
template may each say something else."""

import json

import pytest
from test_tokens import bpe
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from npr_lib import WorkbenchError
from npr_lib.engine import SamplingParams, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.engine.checkpoint import load_checkpoint
from npr_lib.train.adopt import adopt, located, settle_eos, turn_end

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }} {{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant {% endif %}"
)


def test_a_package_is_a_place_of_weights():
    assert located("package://yaml").endswith("yaml") and located("some/path") == "some/path"
    for name in ("nothing_of_this_name", "json.tool"):
        with pytest.raises(WorkbenchError, match=f"no Python package {name} is installed"):
            located(f"package://{name}")


def save(folder, eos, configured, template=None):
    """A model folder: the tokenizer's EOS, those of its generation config, its chat template."""
    tokenizer = bpe()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    tokenizer.eos_token, tokenizer.chat_template = eos, template
    ids = tokenizer.convert_tokens_to_ids(configured)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=ids[0] if ids else None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=ids or None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def names(model, tokenizer):
    ids = model.generation_config.eos_token_id
    return set(tokenizer.convert_ids_to_tokens(ids if isinstance(ids, list) else [ids]))


CASES = {  # the tokenizer's EOS, the configured ones, the template -> the EOS, what is said
    "all agree": ("<|end|>", ["<|end|>"], TEMPLATE, "<|end|>", None),
    "one of a list": ("<eos>", ["<eos>", "<|end|>"], TEMPLATE, "<eos>", None),
    "the tokenizer errs": ("<|start|>", ["<|end|>"], TEMPLATE, "<|end|>", "EOS is <|end|>"),
    "the configuration errs": ("<|end|>", ["<eos>"], TEMPLATE, "<|end|>", None),
    "no template, no word": ("<|end|>", ["<eos>"], None, "<|end|>", None),
    "a turn ends otherwise": ("<eos>", ["<eos>"], TEMPLATE, "<eos>", "ends a turn with <|end|>"),
    "nothing configured": ("<eos>", [], TEMPLATE, "<eos>", "ends a turn with <|end|>"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_end_of_a_response_is_found_and_what_is_odd_is_said(case, tmp_path, capsys):
    eos, configured, template, expected, said = CASES[case]
    save(tmp_path, eos, configured, template)
    model, tokenizer = adopt({"path": tmp_path})
    assert tokenizer.eos_token == expected
    assert names(model, tokenizer) == {expected, *configured}
    assert model.config.eos_token_id == tokenizer.eos_token_id or expected in configured
    printed = capsys.readouterr().out
    assert (said in printed and printed.count("\n") == 1) if said else not printed


def test_of_a_gguf_without_a_template_the_configuration_is_believed(tmp_path, capsys):
    model, tokenizer = save(tmp_path, "<|start|>", ["<|end|>"])
    settle_eos(model, tokenizer, None, gguf=True)
    assert tokenizer.eos_token == "<|end|>" and "EOS is <|end|>" in capsys.readouterr().out


def test_a_named_eos_is_the_only_one_and_is_saved(tmp_path):
    save(tmp_path, "<|start|>", ["<|end|>", "<eos>"], TEMPLATE)
    model, tokenizer = adopt({"path": tmp_path, "eos_token": "<eos>"})
    assert tokenizer.eos_token == "<eos>" and names(model, tokenizer) == {"<eos>"}
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").eos_token == "<eos>"
    kept = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert kept["eos_token_id"] == [tokenizer.eos_token_id]


def test_an_eos_that_is_no_token_is_named(tmp_path):
    save(tmp_path, "<eos>", ["<eos>"])
    with pytest.raises(WorkbenchError, match=r"model\.eos_token = '<over>' is no token"):
        adopt({"path": tmp_path, "eos_token": "<over>"})


def test_a_turn_that_ends_with_plain_text_ends_with_no_token(tmp_path):
    _, tokenizer = save(tmp_path, "<eos>", ["<eos>"], TEMPLATE.replace("<|end|>", " over"))
    assert turn_end(tokenizer) is None


@pytest.mark.parametrize("end", ["<eos>", "<|end|>"])
def test_the_engine_stops_at_each_of_the_configured_ends(end, tmp_path, monkeypatch):
    """Of a foreign checkpoint too, which nobody adopted."""
    save(tmp_path, "<|end|>", ["<|end|>", "<eos>"], TEMPLATE)
    model, tokenizer = load_checkpoint(tmp_path)
    chosen = [5, 6, tokenizer.convert_tokens_to_ids(end)]
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: chosen[len(branch.sampled)])
    engine = TorchEngine(model, tokenizer)
    (found,) = engine.generate(["A"], SamplingParams(max_tokens=9), mode="sequential")
    assert found.completion_ids == chosen and found.finish_reason == "stop"
    assert end not in found.text
