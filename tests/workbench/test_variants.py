"""Variants of stages 2 and 3: what they share with their run, and what is repeated."""

import random
import shutil

import pandas as pd
import pytest
from oracles import random_model

from npr_lib import WorkbenchError
from npr_lib.engine.checkpoint import checkpoint_mode
from npr_lib.profiles.profile import load_profile, save_profile
from npr_lib.reasoning.trajectory import rollouts_path
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.workbench import variants
from npr_lib.workbench.variants import ABLATIONS, Variant, run_variant

RESPONSE = (
    "<guideline><plan>1:A</plan><plan>2:B</plan></guideline><step>1:x</step><step>2:y</step>"
    "<takeaway>z</takeaway>\\boxed{7}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What a finished run leaves to its variants, at the smallest size."""
    folder, tokenizer = tmp_path_factory.mktemp("run"), tiny_tokenizer()
    for name in ("seed", "npr_zero", "npr_beta", "sr_beta"):
        random_model(random.Random(name), tokenizer).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, mode in (("npr_beta", "parallel"), ("sr_beta", "sequential")):
        (folder / name / "npr.json").write_text(f'{{"mode": "{mode}"}}')
    rows = [{"prompt_ids": tokenizer.encode("A=1;"), "text": RESPONSE} for _ in range(8)]
    pd.DataFrame(rows).to_parquet(folder / "rejection.parquet")
    profile = load_profile("smoke", ["npr.grpo.max_steps=1", "sft.trl.max_steps=1"])
    save_profile(profile, folder / "profile.yaml")
    return folder


def test_a_variant_trains_what_it_changes_and_nothing_twice(base, tmp_path, monkeypatch):
    calls = []
    for name in ("sft", "papo"):
        inner = getattr(variants, name).train

        def train(stage, mode, name=name, inner=inner):
            calls.append((name, stage.run_dir, stage.seed, mode))
            return inner(stage, mode)

        monkeypatch.setattr(getattr(variants, name), "train", train)
    monkeypatch.setattr(variants.rejection, "collect", lambda stage: calls.append("rejection"))
    frames = run_variant(Variant("PAPO"), base, tmp_path, 3)
    folder = tmp_path / "PAPO" / "seed3"
    assert calls == [("papo", folder, 3, "parallel")]
    assert list(frames) == ["npr_beta", "npr"]
    assert set(frames["npr"]["problem_id"]) == set(frames["npr_beta"]["problem_id"])
    assert checkpoint_mode(folder / "npr") == "parallel"
    weights = (folder / "npr" / "model.safetensors").stat().st_mtime_ns
    again = run_variant(Variant("PAPO"), base, tmp_path, 3)
    assert (folder / "npr" / "model.safetensors").stat().st_mtime_ns == weights
    assert again["npr"]["text"].tolist() == frames["npr"]["text"].tolist()
    calls.clear()
    warm = Variant("warm-up: 100 steps", ("sft.trl.max_steps=2",), first="sft", baseline=True)
    assert list(run_variant(warm, base, tmp_path, 0)) == ["npr_beta", "npr", "sr_beta", "sr"]
    folder = tmp_path / "warm-up_100_steps" / "seed0"
    assert calls == [
        (name, folder, 0, mode) for mode in ("parallel", "sequential") for name in ("sft", "papo")
    ]
    assert (folder / "seed" / "model.safetensors").read_bytes() == (
        base / "seed" / "model.safetensors"
    ).read_bytes()
    assert not (folder / "rollouts" / "eval_npr.parquet").exists(), "the test split was looked at"


def test_a_variant_with_other_settings_is_not_the_same(base, tmp_path):
    one = run_variant(Variant("x"), base, tmp_path, 0)
    other = run_variant(Variant("x", ("evaluation.samples=3",)), base, tmp_path, 0)
    assert 3 * len(other["npr"]) == 4 * len(one["npr"])  # with the greedy one


def test_a_variant_starts_from_the_model_its_run_has_now(base, tmp_path):
    """After the run was made anew, and after a copy that was cut off."""
    run = shutil.copytree(base, tmp_path / "run")
    run_variant(Variant("x"), run, tmp_path, 0)
    beta = tmp_path / "x" / "seed0" / "npr_beta"
    model = random_model(random.Random("another"), tiny_tokenizer())
    model.save_pretrained(run / "npr_beta")
    run_variant(Variant("x"), run, tmp_path, 0)
    weights = (run / "npr_beta" / "model.safetensors").read_bytes()
    assert (beta / "model.safetensors").read_bytes() == weights
    (beta / "model.safetensors").write_bytes(weights[:1000])
    run_variant(Variant("x"), run, tmp_path, 0)
    assert (beta / "model.safetensors").read_bytes() == weights


def test_ablations_are_chosen_by_names_that_exist():
    assert variants.chosen(None) == list(ABLATIONS)
    assert [v.name for v in variants.chosen(["invalid: filter", "PAPO"])] == [
        "PAPO",
        "invalid: filter",
    ]
    with pytest.raises(WorkbenchError, match=r"no ablation is called Papo; there are: .*PAPO"):
        variants.chosen(["Papo"])


def test_a_run_without_stage_2_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "npr_beta")
    with pytest.raises(WorkbenchError, match="has no NPR-Beta; make one with"):
        run_variant(Variant("x"), tmp_path / "half", tmp_path, 0)


def test_every_ablation_changes_one_setting_that_exists():
    names = [variant.name for variant in ABLATIONS]
    assert len(set(names)) == len(names)
    assert ABLATIONS[0] == Variant(names[0])
    for variant in ABLATIONS[1:]:
        load_profile("tiny", variant.overrides)
        assert variant != Variant(variant.name)


def test_a_whole_run_counts_only_when_it_is_finished(tmp_path):
    for name in ("npr_beta", "npr", "sr_beta"):
        path = rollouts_path(tmp_path, name)
        path.parent.mkdir(exist_ok=True)
        pd.DataFrame({"accuracy": [1, 0, 1]}).to_parquet(path)
    with pytest.raises(WorkbenchError, match=r"no finished run; missing: .*eval_sr\.parquet"):
        variants.whole_run(tmp_path)
    pd.DataFrame({"accuracy": [1, 1, 0]}).to_parquet(rollouts_path(tmp_path, "sr"))
    assert variants.whole_run(tmp_path)["sr"]["accuracy"].tolist() == [1, 1, 0]
