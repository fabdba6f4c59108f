"""docs/recipes.md, run: what it says can be changed is changed by what it says."""

import io
import json
import random
import re
import types
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from oracles import random_model
from policies import random_policy
from stages_for_tests import make_stage

from npr_lib.analysis import metrics
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.files import REPOSITORY
from npr_lib.profiles.profile import load_profile, make_profile
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.tasks.problems import load_problems
from npr_lib.train import papo
from npr_lib.train.rollout import score, to_table
from npr_lib.workbench import pipeline

DOCUMENT = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
TOKENIZER = tiny_tokenizer()


def blocks(title, language="python"):
    """The pieces of code under a heading."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S)
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


def module(title, name, tmp_path, monkeypatch):
    """The code under a heading as the module that the page says to make of it."""
    (source,) = blocks(title)
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return source


@pytest.fixture
def start(tmp_path, monkeypatch):
    policy = random_policy(TOKENIZER, broken=0.2)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    random_model(random.Random(3), TOKENIZER).save_pretrained(tmp_path / "start")
    TOKENIZER.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


SETTINGS = ["npr.min_kept=0", "npr.grpo.max_steps=2"]


def test_a_reward_and_an_advantage_by_name(tmp_path, monkeypatch, start):
    reward, advantages = blocks("A reward")[0], blocks("An advantage")[0]
    (tmp_path / "my_rewards.py").write_text(reward + advantages)
    monkeypatch.syspath_prepend(tmp_path)
    named = ["npr.reward=my_rewards:reward", "npr.advantages=my_rewards:advantages"]
    papo.train(make_stage(load_profile("smoke", [*SETTINGS, *named]), tmp_path, start))
    rows = pd.read_parquet(tmp_path / "rollouts" / "npr.parquet")
    assert np.allclose(rows["reward"], rows["accuracy"] - rows["span"] / 100)
    groups = rows["reward"].to_numpy(np.float32).reshape(-1, 2)
    assert np.allclose(rows["advantage"], (groups - groups[:, ::-1]).reshape(-1))


def test_problems_of_a_kind_of_ones_own(tmp_path, monkeypatch, start):
    module("Problems, and how they are verified", "my_problems", tmp_path, monkeypatch)
    (text,) = blocks("Problems, and how they are verified", "yaml")
    given = yaml.safe_load(text)
    profile = load_profile("smoke", SETTINGS)
    profile = replace(profile, problems=make_profile(given | {"model": {}}).problems)
    found = load_problems(profile.problems, "train", 0)
    assert len(found) == 64 and max(int(p.answer) for p in found) <= 10
    assert found.verify("007", replace(found[0], answer="7")) and not found.verify("x", found[0])
    papo.train(
        make_stage(profile, tmp_path, start), reward=lambda rollout: float(rollout.trajectory.span)
    )
    rows = pd.read_parquet(tmp_path / "rollouts" / "npr.parquet")
    assert set(rows["problem"]) <= {p.problem for p in found}


def rollouts(count=6):
    """Evaluated responses of a random writer."""
    engine = TorchEngine(random_model(random.Random(3), TOKENIZER), TOKENIZER, EngineConfig())
    problems = load_problems(load_profile("smoke").problems, "test", 0)[:count]
    texts = [f"{problem.problem}\n" for problem in problems]
    found = engine.generate(texts, SamplingParams(max_tokens=60))
    columns = {"sample": 0, "checkpoint": "npr", "stage": "npr"}
    return to_table(score(found, problems, problems), **columns)


def test_a_metric_of_ones_own_stands_in_the_ladder(start):
    names = {}
    exec(blocks("A metric")[0], names)
    frame = rollouts()
    ladder = metrics.ladder({"NPR": frame}, metrics={"wordiness": names["wordiness"]})
    (row,) = ladder[ladder["metric"] == "wordiness"].itertuples()
    assert row.value == pytest.approx(frame["text"].str.len().sum() / frame["work"].sum())
    assert row.low <= row.value <= row.high


def test_an_analysis_notebook_of_ones_own(tmp_path, start):
    """In a folder of its own, on a run that has what it starts from."""
    cells = [nbformat.v4.new_code_cell(text) for text in blocks("An analysis notebook")]
    cells[0].metadata["tags"] = ["parameters"]
    folder = tmp_path / "notebooks"
    begin = cells[1].source
    cells[1].source = begin.replace("overrides)", f"overrides, folder=Path({str(folder)!r}))")
    cells[1].source = "from pathlib import Path\n" + cells[1].source
    (said,) = blocks("An analysis notebook", "json")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    document = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    document.metadata |= json.loads(said)
    folder.mkdir()
    nbformat.write(document, folder / "30_longest.ipynb")
    run_dir = tmp_path / "reports" / "smoke"
    (run_dir / "rollouts").mkdir(parents=True)
    frame = rollouts()
    frame.to_parquet(run_dir / "rollouts" / "eval_npr.parquet")
    stream = io.StringIO()
    pipeline.run("smoke", root=tmp_path, stream=stream)
    longest = json.loads((run_dir / "metrics" / "longest.json").read_text())
    assert [row["span"] for row in longest] == sorted(frame["span"], reverse=True)[:3]
    assert 'html/30_longest.html"' in (run_dir / "index.html").read_text()
    pipeline.run("smoke", root=tmp_path, stream=stream)
    assert "30_longest: up to date" in stream.getvalue()


def test_every_code_of_the_page_can_be_read():
    for text in re.findall(r"```python\n(.*?)```", DOCUMENT, re.S):
        assert isinstance(compile(text, "recipes.md", "exec"), types.CodeType)


def test_responses_made_elsewhere(tmp_path, monkeypatch):
    (source,) = blocks("Responses made elsewhere")
    monkeypatch.chdir(tmp_path)
    text = "<guideline><plan>1:a</plan></guideline><step>1:b</step><takeaway>c</takeaway>"
    (tmp_path / "results.json").write_text(json.dumps([{"output": text, "answer": "1"}]))
    TOKENIZER.save_pretrained(tmp_path / "path/to/tokenizer")
    names = {}
    exec(source, names)
    (row,) = names["rollouts"].to_dict("records")
    assert row["num_branches"] == [1] and row["accuracy"] == 0
    assert row["completion_ids"] == TOKENIZER.encode(text)
