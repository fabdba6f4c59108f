"""The report's first table, cell by cell, from the parquet files alone."""

import json
import random
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from scripted import block, trajectory

from npr_lib.analysis import metrics, reading, tables
from npr_lib.analysis.ladder import LADDER, NAMES
from npr_lib.files import REPOSITORY, write_json
from npr_lib.reasoning.trajectory import rollouts_path, write_rollouts
from npr_lib.workbench import stages

PROBLEMS = 14


def response(rng, mode, temperature):
    """A text of up to two blocks, some of them broken; sequential ones fork on paper only."""
    steps = [["A=" + "1+" * rng.randint(0, 9) for _ in range(rng.randint(1, 4))] for _ in "12"]
    text = "".join(block(*s) for s in steps[: rng.randint(0, 2)])
    text += "" if rng.random() < 0.3 else "\\boxed{1}"
    return trajectory(text or "1", "A=1;\n", temperature, mode)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("run"), random.Random(0)
    for place, name in enumerate(LADDER):
        mode = "sequential" if name in ("seed", "sr_beta", "sr") else "parallel"
        rows = [
            (f"p{i}", sample, temperature)
            for temperature, samples in ((1.0, 3), (0.0, 1))
            for i in range(PROBLEMS)
            for sample in range(samples)
        ]
        rng.shuffle(rows)
        answers = [response(rng, mode, temperature) for *_, temperature in rows]
        write_rollouts(
            rollouts_path(folder, name),
            answers,
            problem_id=[problem for problem, *_ in rows],
            sample=[sample for _, sample, _ in rows],
            # a box of 1 must have one verdict a problem
            accuracy=[
                float(answer.graph.boxed == "1" and (int(problem[1:]) + place) % 3 > 0)
                for answer, (problem, *_) in zip(answers, rows, strict=True)
            ],
            checkpoint=name,
        )
    return folder


def cell(frame, top, bottom, scale, digits):
    """`value [low, high]` of a ratio of sums, by drawing problems 2000 times."""
    sums = frame.assign(top=top(frame), bottom=bottom(frame)).groupby("problem_id")
    sums = sums[["top", "bottom"]].sum().to_numpy(float)
    if not sums[:, 1].any():
        return "–"
    rng, ratios = np.random.default_rng(0), []
    for _ in range(2000):
        drawn = sums[rng.integers(len(sums), size=len(sums))].sum(axis=0)
        if drawn[1]:
            ratios.append(drawn[0] / drawn[1])
    numbers = [sums[:, 0].sum() / sums[:, 1].sum(), *np.percentile(ratios, [2.5, 97.5])]
    return "{} [{}, {}]".format(*(f"{scale * x:.{digits}f}" for x in numbers))


def test_the_headline_is_what_the_files_say(run_dir):
    table = tables.headline(metrics.ladder(reading.read_evaluations(run_dir)))

    def one(frame):
        return np.ones(len(frame))

    def work(frame):
        return frame["completion_ids"].map(len)

    def span(frame):
        return [
            max(p) + 1 - len(q) for p, q in zip(frame.position_ids, frame.prompt_ids, strict=True)
        ]

    columns = {
        "accuracy, T = 1 (%)": (1, lambda f: f.accuracy, one, 100, 1),
        "accuracy, greedy (%)": (0, lambda f: f.accuracy, one, 100, 1),
        "format pass (%)": (1, lambda f: f.violations.map(len) == 0, one, 100, 1),
        "parallel trigger rate (%)": (
            *(1, lambda f: (f["mode"] == "parallel") & f.text.str.contains("<step>")),
            *(one, 100, 1),
        ),
        "branches a block": (
            *(1, lambda f: f.text.str.count("<step>") * (f["mode"] == "parallel")),
            *(lambda f: f.text.str.count("<takeaway>") * (f["mode"] == "parallel"), 1, 2),
        ),
        "work": (1, work, one, 1, 1),
        "span": (1, span, one, 1, 1),
        "work/span": (1, work, span, 1, 2),
    }
    assert list(table.columns) == list(columns)
    assert list(table.index) == [NAMES[name] for name in LADDER]
    for name in LADDER:
        frame = pd.read_parquet(rollouts_path(run_dir, name))
        for title, (temperature, *how) in columns.items():
            expected = cell(frame[frame["temperature"] == temperature], *how)
            assert table.loc[NAMES[name], title] == expected, (name, title)
    assert table.loc["SR", "branches a block"] == "–"
    assert len(set(table["work"])) == len(LADDER) and (table["work"] != table["span"]).sum() == 3


def boxes(frame):
    """A metric of one's own: responses with a box."""
    return frame["text"].str.contains("boxed").mean()


def test_the_report_shows_ones_own_metrics_too(run_dir, monkeypatch):
    rates = {"seconds_per_response": 1.0, "tokens_per_second": 1.0}
    ways = ("npr", "sr", "replay_parallel", "replay_sequential")
    ratios = dict.fromkeys(("npr_over_sr_tokens", "npr_over_sr_time", "replay"), 1.0)
    kinds = ("latency", "throughput")
    speed = {kind: dict.fromkeys(ways, rates) for kind in kinds} | {"ideal": 1.0, "problems": 1}
    write_json(run_dir / "speed.json", speed | {f"{kind}_ratios": ratios for kind in kinds})
    (run_dir / "metrics").mkdir()
    profile = SimpleNamespace(evaluation=SimpleNamespace(metrics={"boxes": boxes}), baselines=True)
    stage = SimpleNamespace(run_dir=run_dir, profile=profile)
    monkeypatch.setattr(stages, "begin", lambda *_: stage)
    document = nbformat.read(REPOSITORY / "notebooks" / "90_report.ipynb", as_version=4)
    code = [cell.source for cell in document.cells if cell.cell_type == "code"]
    names = {}
    for cell in code[:3]:  # as far as the headline
        exec(cell, names)
    assert "boxes" in names["headline"]
    written = json.loads((run_dir / "metrics" / "headline.json").read_text())["Ladder"]
    seed = pd.read_parquet(rollouts_path(run_dir, "seed"))
    shown = written["data"][0][written["columns"].index("boxes")]
    assert shown.startswith(f"{boxes(seed[seed['temperature'] == 1]):.2f} [")
