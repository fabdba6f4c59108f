"""Tables of several runs, by hand."""

import pandas as pd

from npr_lib.analysis import ablations


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
    assert table.loc["other", "accuracy, T = 1 (%)"] == "75.0"
    assert table.loc["other", "Δ accuracy, T = 1 (points)"].startswith("50.0 [")
    assert table.loc["PAPO", "Δ accuracy, greedy (points)"] == "0.0 [0.0, 0.0]"


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
    assert row["format pass, NPR-Beta (%)"].startswith("50.0 [")
    assert row["parallel trigger rate, NPR-Beta (%)"].startswith("50.0 [")
    assert row["branches on a wrong part, NPR-Beta (%)"].startswith("0.0 [")
    assert row["blind divisions (%)"] == "50.0 → 0.0"
    assert row["span / SR's length, ≥ 3 independent parts"].startswith("0.80 [")
    crossed = {"npr_beta": answers([["A", "B"]], 1), "npr": answers([["A"]], 1), "sr": run["sr"]}
    crossed["npr_beta"].loc[0, "text"] = crossed["npr_beta"].loc[0, "text"].replace("B=1", "A=1")
    row = ablations.behaviour_table(ablations.divided({"seed 0": crossed})).loc["seed 0"]
    assert row["branches on a wrong part, NPR-Beta (%)"].startswith("50.0 [")
