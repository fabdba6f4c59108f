"""Variants of stages 2 and 3: what they share with their run, what is repeated, their tables."""

import random
import shutil

import pandas as pd
import pytest
from oracles import random_model

from npr_lib import WorkbenchError
from npr_lib.analysis import ablations
from npr_lib.analysis.ablations import ABLATIONS, Variant, run_variant
from npr_lib.engine.checkpoint import checkpoint_mode
from npr_lib.profiles.profile import load_profile, save_profile
from npr_lib.reasoning.trajectory import rollouts_path
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

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
    for name in ("sft", "papo", "rejection"):
        module = getattr(ablations, name)
        inner = module.collect if name == "rejection" else module.train
        attribute = "collect" if name == "rejection" else "train"
        monkeypatch.setattr(
            module,
            attribute,
            lambda *args, name=name, inner=inner: calls.append((name, *args[2:])) or inner(*args),
        )
    frames = run_variant(Variant("PAPO"), base, tmp_path, 3)
    folder = tmp_path / "PAPO" / "seed3"
    assert calls == [("papo", folder / "npr_beta", 3, "parallel")]
    assert list(frames) == ["npr_beta", "npr"]
    assert set(frames["npr"]["problem_id"]) == set(frames["npr_beta"]["problem_id"])
    assert checkpoint_mode(folder / "npr") == "parallel"
    again = run_variant(Variant("PAPO"), base, tmp_path, 3)
    assert len(calls) == 1 and again["npr"]["text"].tolist() == frames["npr"]["text"].tolist()
    warm = Variant("warm-up: 100 steps", ("sft.trl.max_steps=2",), first="sft", baseline=True)
    assert list(run_variant(warm, base, tmp_path, 0)) == ["npr_beta", "npr", "sr_beta", "sr"]
    folder = tmp_path / "warm-up_100_steps" / "seed0"
    assert calls[1:] == [
        ("sft", base / "seed", 0, "parallel"),
        ("papo", folder / "npr_beta", 0, "parallel"),
        ("sft", base / "seed", 0, "sequential"),
        ("papo", folder / "sr_beta", 0, "sequential"),
    ]
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
    (tmp_path / "x" / "seed0" / "variant.json").unlink()
    (beta / "model.safetensors").write_bytes(weights[:1000])
    run_variant(Variant("x"), run, tmp_path, 0)
    assert (beta / "model.safetensors").read_bytes() == weights


def test_ablations_are_chosen_by_names_that_exist():
    assert ablations.chosen(None) == list(ABLATIONS)
    assert [v.name for v in ablations.chosen(["invalid: filter", "PAPO"])] == [
        "PAPO",
        "invalid: filter",
    ]
    with pytest.raises(WorkbenchError, match=r"no ablation is called Papo; there are: .*PAPO"):
        ablations.chosen(["Papo"])


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


def frame(right, greedy):
    rows = [
        dict(problem_id=f"p{i}", sample=s, temperature=t, accuracy=float(x))
        for t, column in ((1.0, right), (0.0, greedy))
        for i, xs in enumerate(column)
        for s, x in enumerate([xs] if t == 0 else xs)
    ]
    return pd.DataFrame(rows).assign(valid=True, num_blocks=1, work=10, span=6)


def test_tables_of_seeds_and_differences():
    low, high = frame([[0, 1], [0, 0]], [0, 0]), frame([[1, 1], [1, 0]], [1, 0])
    run = {"npr_beta": low, "npr": high, "sr_beta": low, "sr": low}
    table = ablations.replicates_table({"seed 0": run, "seed 4": run})
    assert table.loc["seed 4"].to_dict() == {
        "NPR-Beta": "25.0 (0.0)",
        "NPR": "75.0 (50.0)",
        "SR-Beta": "25.0 (0.0)",
        "SR": "25.0 (0.0)",
    }
    found = ablations.pooled_differences([run, run])
    assert found["NPR − NPR-Beta, T = 1"].value == 0.5
    assert found["NPR − NPR-Beta, greedy"].value == 0.5
    assert found["SR − SR-Beta, T = 1"].value == 0
    table = ablations.ablation_table({"PAPO": [{"npr": low}], "other": [{"npr": high}]})
    assert table.loc["other", "accuracy T = 1 (%)"] == "75.0"
    assert table.loc["other", "Δ T = 1"].startswith("50.0 [")
    assert table.loc["PAPO", "Δ greedy"] == "0.0 [0.0, 0.0]"


def answers(plans_of_blocks, span):
    """Two sampled answers to a problem of three independent parts, one with these plans, one
    without tags, and a greedy one that must not count."""
    block = "<guideline>{}</guideline>{}<takeaway>t</takeaway>"
    whole = "".join(
        block.format(
            "".join(f"<plan>{i}:{p}</plan>" for i, p in enumerate(plans, 1)),
            "".join(f"<step>{i}:{p}=1</step>" for i, p in enumerate(plans, 1)),
        )
        for plans in plans_of_blocks
    )
    rows = [
        dict(sample=0, temperature=1.0, text=whole + "\\boxed{1}", valid=True, triggered=True),
        dict(sample=1, temperature=1.0, text="1", valid=False, triggered=False),
        dict(sample=0, temperature=0.0, text="", valid=False, triggered=False),
    ]
    problem = dict(problem_id="p", problem="A=7-2+3+1;B=4+1-2-3;C=A+1-2-3;D=2+2+2+2;values?")
    common = problem | dict(max_branches=5, max_depth=1, span=span, accuracy=1.0)
    frame = pd.DataFrame(rows).assign(**common)
    return frame.assign(spelled=[[] for _ in rows], accuracy=frame["valid"].astype(float))


def test_behaviour_of_a_run_by_hand():
    run = {
        "npr_beta": answers([["A", "C", "B", "D"]], 60),  # C is blind
        "npr": answers([["A", "B", "D"], ["C"]], 80),
        "sr": answers([["A", "B", "C", "D"]], 100),
    }
    row = ablations.behaviour_table(ablations.divided({"seed 0": run})).loc["seed 0"]
    assert row["format, NPR-Beta (%)"].startswith("50.0 [")
    assert row["trigger, NPR-Beta (%)"].startswith("50.0 [")
    assert row["wrong parts, NPR-Beta (%)"].startswith("0.0 [")
    assert row["blind divisions (%)"] == "50.0 → 0.0"
    assert row["span / SR's length, ≥ 3 independent parts"].startswith("0.80 [")
    crossed = {"npr_beta": answers([["A", "B"]], 1), "npr": answers([["A"]], 1), "sr": run["sr"]}
    crossed["npr_beta"].loc[0, "text"] = crossed["npr_beta"].loc[0, "text"].replace("B=1", "A=1")
    row = ablations.behaviour_table(ablations.divided({"seed 0": crossed})).loc["seed 0"]
    assert row["wrong parts, NPR-Beta (%)"].startswith("50.0 [")


def test_a_whole_run_counts_only_when_it_is_finished(tmp_path):
    for name in ("npr_beta", "npr", "sr_beta"):
        path = rollouts_path(tmp_path, name)
        path.parent.mkdir(exist_ok=True)
        frame([[1, 0]], [1]).to_parquet(path)
    with pytest.raises(WorkbenchError, match=r"no finished run; missing: .*eval_sr\.parquet"):
        ablations.whole_run(tmp_path)
    frame([[1, 1]], [0]).to_parquet(rollouts_path(tmp_path, "sr"))
    assert ablations.whole_run(tmp_path)["sr"]["accuracy"].tolist() == [1, 1, 0]
