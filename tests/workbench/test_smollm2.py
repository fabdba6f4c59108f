"""Real weights through the whole ladder, at the smallest sizes: SmolLM2-135M on word problems."""

import io
import json

import pandas as pd
import pytest
from test_engine_oracle import check_against_dense

from npr_lib.engine import SamplingParams, TorchEngine
from npr_lib.engine.checkpoint import load_checkpoint
from npr_lib.profiles.profile import load_profile
from npr_lib.tasks.problems import build_prompt, load_problems
from npr_lib.workbench import pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("smollm2")
    return pipeline.run("smollm2", smoke=True, root=root, stream=io.StringIO())


def test_every_stage_has_its_page_and_the_report_opens(run_dir):
    stages = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert {stage["status"] for stage in stages.values()} == {"done"}
    assert (run_dir / "index.html").exists()
    for name in stages:
        assert (run_dir / "html" / f"{name}.html").exists()


def test_stage_2_learns_from_what_stage_1_wrote_itself(run_dir):
    kept = pd.read_parquet(run_dir / "rejection.parquet")
    assert (kept["accuracy"] == 1).all() and (kept["format_reward"] == 0).all()
    assert set(kept["mode"]) == {"sequential"}


def test_the_engine_is_a_dense_forward_of_the_trained_weights(run_dir):
    model, tokenizer = load_checkpoint(run_dir / "npr")
    profile = load_profile(run_dir / "profile.yaml")
    problems = load_problems(profile.problems, "test", 0)[:4]
    prompts = [build_prompt(problem, profile.prompt, tokenizer) for problem in problems]
    engine = TorchEngine(model, tokenizer, profile.engine)
    for trajectory in engine.generate(prompts, SamplingParams(max_tokens=200, seed=1), n=2):
        check_against_dense(model, trajectory, tolerance=2e-3)
