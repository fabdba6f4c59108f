"""The trajectory's figures, and that parquet gives back what was written."""

import random

import numpy as np
import pandas as pd
import pytest
from oracles import random_model
from policies import random_policy

from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.reasoning.style import COMPACT
from npr_lib.reasoning.trajectory import from_row, read_rollouts, to_rows, write_rollouts
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(params=["compact", "lines"])
def style(request):
    return request.param


@pytest.fixture
def trajectories(monkeypatch, style):
    policy = random_policy(TOKENIZER, broken=0.2)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    config = EngineConfig(max_depth=2, style=style, min_chars=(2, 1, 1))
    engine = TorchEngine(random_model(random.Random(0), TOKENIZER), TOKENIZER, config)
    params = SamplingParams(max_tokens=150)
    return engine.generate(["A"], params, n=20) + engine.generate(["A"], params, 3, "sequential")


def test_parquet_round_trip(tmp_path, trajectories):
    path = tmp_path / "deep" / "rollouts.parquet"
    write_rollouts(path, trajectories, problem_id="p", sample=list(range(23)))
    frame = read_rollouts(path)
    assert frame["sample"].tolist() == list(range(23)) and set(frame["problem_id"]) == {"p"}
    for (_, row), t in zip(frame.iterrows(), trajectories, strict=True):
        back = from_row(row)
        floats = ("logprobs", "behaviour_logprobs", "entropies")
        for name in vars(t).keys() - {"layout", "graph", *floats}:
            assert getattr(back, name) == getattr(t, name), name
        assert back.layout == t.layout and back.graph == t.graph
        for name in floats:
            assert np.array_equal(getattr(back, name), getattr(t, name), equal_nan=True), name
        assert (row["work"], row["span"], row["valid"]) == (t.work, t.span, t.graph.valid)


def test_rows_of_older_files_have_no_entropies_and_no_style(tmp_path, trajectories):
    new = write_rollouts(tmp_path / "new.parquet", trajectories)
    new.drop(columns=["entropies", "style", "min_chars"]).to_parquet(tmp_path / "old.parquet")
    frames = [read_rollouts(tmp_path / f"{name}.parquet") for name in ("old", "new")]
    both = pd.concat(frames, ignore_index=True)
    both.to_parquet(tmp_path / "both.parquet")
    for rows in (frames[0], both, read_rollouts(tmp_path / "both.parquet")):
        for (_, row), t in zip(rows.iterrows(), trajectories, strict=False):
            back = from_row(row)
            assert len(back.entropies) == t.work and np.isnan(back.entropies).all()
            assert back.style == COMPACT
    assert from_row(both.iloc[-1]).style == trajectories[-1].style
    known = from_row(both.iloc[-1]).entropies
    assert np.array_equal(known, trajectories[-1].entropies, equal_nan=True)
    assert not np.isnan(known).all()


def test_figures_follow_from_the_segments(trajectories):
    for t in trajectories:
        assert "".join(t.segment_texts) == t.text
        assert t.segments[-1].end == len(t.prompt_ids) + t.work
        inside = sum(s.end - s.start for s in t.segments if len(s.path) >= 1)
        top = {block for s in t.segments for block, _ in s.path[:1]}
        own = [lengths for i, lengths in enumerate(t.branch_lengths) if i in top]
        assert sum(map(sum, own)) == inside
        assert t.num_branches == [len(lengths) for lengths in t.branch_lengths]
        assert t.triggered == any(s.path for s in t.segments)
        assert t.span <= t.work
        for s in t.segments[1:]:
            assert t.segment_text(s) in t.text
    assert not any(t.triggered for t in trajectories if t.mode == "sequential")
    assert any(t.triggered for t in trajectories)


def test_columns_must_fit(trajectories):
    with pytest.raises(ValueError, match="column reward: 2 values for 23 rows"):
        to_rows(trajectories, reward=[1, 2])


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no rollouts at .*none\.parquet"):
        read_rollouts(tmp_path / "none.parquet")
