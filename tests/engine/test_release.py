"""The embedded engine over a model folder as the paper's authors release theirs."""

import pytest
from releases import (
    PLANS,
    STEPS,
    TOKENIZERS,
    check_isolation,
    check_release,
    check_training,
    force,
    release,
)
from test_engine_oracle import check_against_dense
from test_tokens import bpe
from transformers import AutoTokenizer

from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine, edit
from npr_lib.engine.checkpoint import checkpoint_mode, load_checkpoint, save_model, style_of
from npr_lib.reasoning.layout import sampled_tokens
from npr_lib.reasoning.schema import TAGS, parse
from npr_lib.reasoning.style import COMPACT, LINES
from npr_lib.reasoning.tokens import encode
from npr_lib.train.sft import example


@pytest.fixture(scope="module", params=["bpe", pytest.param("qwen3", marks=pytest.mark.slow)])
def folder(request, tmp_path_factory):
    return release(tmp_path_factory.mktemp("release"), TOKENIZERS[request.param]())


def test_a_release_without_npr_json_is_decoded_in_its_style_and_it_is_said(
    folder, capsys, tmp_path, monkeypatch
):
    assert checkpoint_mode(folder) == "parallel"
    said = capsys.readouterr().out
    assert "parallel" in said and "style lines" in said and "special tokens" in said
    model, tokenizer = load_checkpoint(folder)
    assert TorchEngine(model, tokenizer).style == LINES
    assert TorchEngine(model, tokenizer, EngineConfig(style="compact")).style == COMPACT
    monkeypatch.chdir(tmp_path)
    (tmp_path / "npr.json").write_text('{"mode": "parallel", "style": "lines"}')
    assert style_of(bpe())[0] == COMPACT, "a tokenizer from no folder has no npr.json"
    shorter = TorchEngine(model, tokenizer, EngineConfig(min_chars=(1, 1, 1))).style
    assert (shorter.name, shorter.min_chars) == ("lines", (1, 1, 1))


def test_the_style_is_saved_with_a_checkpoint_and_read_back(folder, tmp_path):
    """Whatever the tokenizer looks like; without a word of it, a checkpoint is compact."""
    model, tokenizer = load_checkpoint(folder)
    for style in (COMPACT, LINES):
        path = tmp_path / style.name
        path.mkdir()
        save_model(model, tokenizer, path, "parallel", style)
        own = AutoTokenizer.from_pretrained(path)
        assert style_of(own)[0] == style == TorchEngine(model, own).style
        assert checkpoint_mode(path) == "parallel"


def test_forced_in_the_releases_style(folder, monkeypatch):
    model, tokenizer = load_checkpoint(folder)
    force(monkeypatch, tokenizer)
    for slots in (4096, 160):  # ample, and so few that one of two is preempted
        engine = TorchEngine(model, tokenizer, EngineConfig(num_slots=slots))
        for t in engine.generate(["plan x"], SamplingParams(max_tokens=150), n=3):
            check_release(tokenizer, t)
            assert check_against_dense(model, t) > 0.1
        assert bool(engine.stats.preemptions) == (slots < 4096)
        assert engine.kv.num_used == 0
    check_isolation(model, t)
    check_training(model, tokenizer, [t])
    assert all(tag in t.text for tag in TAGS) and t.text.count("\n</step>\n") == len(STEPS)


def test_sft_learns_what_the_engine_samples_of_the_same_ids(folder, monkeypatch):
    """From a text in whatever white space: the ids that decoding gives, the loss on its choices."""
    model, tokenizer = load_checkpoint(folder)
    force(monkeypatch, tokenizer)
    (t,) = TorchEngine(model, tokenizer).generate(["plan x"], SamplingParams(max_tokens=150))
    bare = t.text.replace("\n<step>\n", "<step>").replace("</step>\n", "</step>")
    for text in (t.text, bare):
        row = example(t.prompt_ids, text, tokenizer, "parallel", LINES)
        assert row["input_ids"] == t.prompt_ids + t.completion_ids
        learned = [label != -100 for label in row["labels"][len(t.prompt_ids) :]]
        assert learned == t.sampled
    alone = sampled_tokens(t.prompt_ids + t.completion_ids, t.layout, tokenizer, LINES)
    assert alone == t.sampled


def test_edits_write_the_style(folder, monkeypatch):
    model, tokenizer = load_checkpoint(folder)
    engine = TorchEngine(model, tokenizer)
    with monkeypatch.context() as patch:
        force(patch, tokenizer)
        (t,) = engine.generate(["plan x"], SamplingParams(max_tokens=150))
    texts = lambda draft: {path: tokenizer.decode(ids) for path, ids in draft.items()}  # noqa: E731
    kept = texts(edit.whole(t, tokenizer))
    assert kept[((0, 1),)] == f" {STEPS[1]}\n</step>"
    assert kept[()].startswith("<guideline>\n<plan>1: add the plan</plan>\n<plan>2:")
    assert texts(edit.rewrite_branch(t, tokenizer, ((0, 1),), " x"))[((0, 1),)] == " x\n</step>"
    changed = texts(edit.change_plan(t, tokenizer, ((0, 2),), " other"))[()]
    assert changed == kept[()].partition("</guideline>")[0].replace(PLANS[2], "other") + (
        "</guideline>"
    )
    dropped = texts(edit.drop_branch(t, tokenizer, ((0, 0),)))[()]
    assert dropped == (
        f"<guideline>\n<plan>1: {PLANS[1]}</plan>\n<plan>2: {PLANS[2]}</plan>\n</guideline>"
    )
    again = edit.rewrite_takeaway(t, tokenizer, 0, "other")
    (new,) = engine.generate([t.prompt_ids], SamplingParams(max_tokens=150), prefix=again)
    assert "</step>\n<takeaway>\nother</takeaway>" in new.text
    check_against_dense(model, new)


@pytest.mark.parametrize("style", ["compact", "lines"])
@pytest.mark.parametrize(
    "label", ["1:", " 1 : ", "\n1:", "1.", "**1:**", "1\uff1a", "(1):", "01:", "2:", "\u0661:", ":"]
)
def test_engine_and_parser_agree_on_what_an_index_is(folder, label, style):
    """The engine forks where the parser finds no fault with the plan, and nowhere else."""
    model, tokenizer = load_checkpoint(folder)
    engine = TorchEngine(model, tokenizer, EngineConfig(style=style, min_chars=(1, 1, 1)))
    guideline = f"<guideline><plan>{label} plan x</plan></guideline>"
    prefix = {(): encode(guideline, tokenizer)}
    kinds = {str(v.kind) for v in parse(guideline, style=engine.style).violations}
    params = SamplingParams(max_tokens=len(prefix[()]) + 12)
    if "plan_index" in kinds:
        with pytest.raises(ValueError, match=r"it already ends \(plan_index"):
            engine.generate(["x"], params, prefix=prefix)
        return
    (t,) = engine.generate(["x"], params, prefix=prefix)
    assert t.num_branches == [1]
