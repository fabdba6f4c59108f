"""The tables of the report: every number lands in its cell, undefined ones are dashes."""

import json
import math

import pandas as pd
import pytest

from npr_lib.analysis import reading, tables
from npr_lib.analysis.ladder import COMPARISONS, NAMES
from npr_lib.analysis.metrics import Estimate


def ladder_rows(checkpoint, temperature, **metrics):
    return [
        {
            "checkpoint": checkpoint,
            "temperature": temperature,
            "metric": name.replace("_at_", "@"),
            "value": value,
            "low": value - 0.01,
            "high": value + 0.01,
        }
        for name, value in metrics.items()
    ]


@pytest.fixture
def ladder():
    shape = {"format_pass": 0.5, "trigger_rate": 0.0, "branches_per_block": math.nan}
    shape |= {"work": 60.0, "span": 60.0, "ideal_speedup": 1.0}
    wide = {"format_pass": 0.98, "trigger_rate": 1.0, "branches_per_block": 2.5}
    wide |= {"work": 90.0, "span": 50.0, "ideal_speedup": 1.8}
    rows = ladder_rows("seed", 1.0, avg_at_2=0.31, best_at_2=0.4, **shape)
    rows += ladder_rows("seed", 0.0, avg_at_1=0.62, **(shape | {"format_pass": 1.0}))
    rows += ladder_rows("NPR", 1.0, avg_at_2=0.7, best_at_2=0.8, **wide)
    rows += ladder_rows("NPR", 0.0, avg_at_1=0.75, **wide)
    return pd.DataFrame(rows)


def test_headline(ladder):
    table = tables.headline(ladder)
    assert list(table.index) == ["seed", "NPR"]
    assert table.loc["seed", "accuracy, T = 1 (%)"] == "31.0 [30.0, 32.0]"
    assert table.loc["seed", "accuracy, greedy (%)"] == "62.0 [61.0, 63.0]"
    assert table.loc["seed", "format pass (%)"] == "50.0 [49.0, 51.0]"
    assert table.loc["seed", "branches a block"] == "–"
    assert table.loc["NPR", "parallel trigger rate (%)"].startswith("100.0 [")
    assert table.loc["NPR", "work/span"] == "1.80 [1.79, 1.81]"


SPEED = {
    "ideal": 2.0,
    "problems": 64,
    "latency": {
        name: {"seconds_per_response": seconds, "tokens_per_second": 60 / seconds}
        for name, seconds in (
            ("npr", 0.5),
            ("sr", 0.8),
            ("replay_parallel", 0.5),
            ("replay_sequential", 0.75),
        )
    },
    "latency_ratios": {"npr_over_sr_tokens": 1.7, "npr_over_sr_time": 1.6, "replay": 1.5},
    "throughput_ratios": {"npr_over_sr_tokens": 1.1, "npr_over_sr_time": 1.2, "replay": 0.9},
}
SPEED["throughput"] = SPEED["latency"]


def test_speed_tables():
    speedup = tables.speedup_table(SPEED)
    same = speedup.loc["the same tokens: sequential time / parallel time"]
    assert list(same) == ["1.50×", "0.90×", "2.00×", "75%"]
    tokens = speedup.loc["against SR: tokens/s (the paper's measure)"]
    assert list(tokens) == ["1.70×", "1.10×", "–", "–"]
    table = tables.speed_table(SPEED)
    assert table.loc["SR, sequential", "seconds/response, batch 1"] == "0.8000"
    assert table.loc["NPR, parallel", "tokens/second, batch 64"] == "120"
    assert tables.measured(SPEED) == {"batch 1": 1.5, "batch 64": 0.9}


def test_differences_pair_the_same_decoding():
    def frame(hits, greedy):
        rows = [{"problem_id": f"p{i}", "sample": 0, "accuracy": hit} for i, hit in enumerate(hits)]
        sampled = pd.DataFrame(rows).assign(temperature=1.0)
        return pd.concat([sampled, sampled.assign(temperature=0.0, accuracy=greedy)])

    frames = {name: frame([0.0, 0.0], 0.0) for name in NAMES.values()}
    frames["NPR"] = frame([1.0, 0.0], 1.0)
    found = tables.differences(frames)
    assert found["NPR − SR, T = 1"].value == 0.5 and found["NPR − SR, greedy"].value == 1.0
    assert found["SR − SR-Beta, T = 1"].value == 0.0
    assert len(found) == 2 * len(COMPARISONS)
    warmer = {n: f.assign(temperature=0.7 * f["temperature"]) for n, f in frames.items()}
    assert tables.differences(warmer)["NPR − SR, T = 0.7"].value == 0.5


def test_examples_are_right_valid_and_of_different_shapes(monkeypatch):
    monkeypatch.setattr(reading, "from_row", lambda row: row["id"])
    rows = [
        ("narrow", [1], True, 1.0, True),
        ("wide", [4], True, 1.0, True),
        ("wide again", [4], True, 1.0, True),
        ("wrong", [5], True, 0.0, True),
        ("sequential", [], True, 1.0, False),
        ("invalid", [3], False, 1.0, True),
        ("middle", [2], True, 1.0, True),
    ]
    columns = ["id", "num_branches", "valid", "accuracy", "triggered"]
    frame = pd.DataFrame(rows, columns=columns)
    assert [name for name, _ in reading.examples(frame, 3)] == ["wide", "middle", "narrow"]
    assert [name for name, _ in reading.examples(frame, 4)][3] == "wide again"
    assert len(reading.examples(frame.head(2), 3)) == 2


def test_saved_metrics_are_strict_json(tmp_path):
    frame = pd.DataFrame({"value": [1.0, math.nan]})
    differences = {"a − b": Estimate(0.5, math.nan, 1.0)}
    path = tmp_path / "metrics.json"
    tables.save_metrics(path, ladder=frame, differences=differences, deep={"x": {"y": math.nan}})
    assert json.loads(path.read_text()) == {
        "ladder": [{"value": 1.0}, {"value": None}],
        "differences": {"a − b": {"value": 0.5, "low": None, "high": 1.0}},
        "deep": {"x": {"y": None}},
    }


def test_the_papers_numbers_are_those_of_its_tables():
    # arXiv 2512.07461: means over eight benchmarks, computed here from the single scores
    scores = {
        "NPR": (50.4, 63.3, 30.8, 63.7, 43.0, 81.7, 93.1, 93.6),
        "SR": (49.2, 57.1, 26.3, 62.2, 38.2, 78.9, 90.9, 92.8),
        "NPR-Beta": (42.9, 50.8, 23.3, 60.1, 41.2, 76.1, 85.9, 91.6),
        "SR-Beta": (37.1, 52.1, 22.5, 56.3, 41.5, 72.8, 91.6, 92.0),
        "Qwen3-4B-Instruct": (47.4, 60.0, 31.0, 64.0, 41.2, 80.2, 92.2, 93.4),
    }
    column = tables.PAPER["accuracy, mean of 8 benchmarks (%)"]
    for name, values in scores.items():
        assert column[name] == pytest.approx(sum(values) / 8, abs=0.06)
