"""Two processes train the model that one trains: nothing is lost, doubled or of one part only."""

import os
import subprocess
import sys
import textwrap

import pandas as pd
import pytest
from test_resume import assert_same

from npr_lib.workbench.stages import REPOSITORY

SCRIPT = """
    import random, sys
    from pathlib import Path

    from accelerate import PartialState
    from oracles import random_model
    from policies import random_policy
    from stages_for_tests import make_stage

    from npr_lib.engine.branch import Response
    from npr_lib.profiles.profile import load_profile
    from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
    from npr_lib.train import papo

    out, rows = Path(sys.argv[1]), sys.argv[2]
    policy = random_policy(tokenizer := tiny_tokenizer(), broken=0.0)
    Response.forced_token = lambda self, branch: policy(self, branch)
    options = ["max_steps=4", "learning_rate=0.01", "use_cpu=true", "per_device_train_batch_size="]
    profile = load_profile("smoke", [f"npr.grpo.{x}" for x in (*options[:3], options[3] + rows)])
    with PartialState(cpu=True).main_process_first():
        if PartialState().is_main_process:
            random_model(random.Random(3), tokenizer).save_pretrained(out / "start")
            tokenizer.save_pretrained(out / "start")
    stage = make_stage(profile, out, out / "start")
    papo.train(stage, reward=lambda r: r.trajectory.span / r.trajectory.work)
"""


def test_two_processes_do_what_one_does(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    for processes, rows in ((1, 8), (2, 4)):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [
            *launch,
            f"--nproc-per-node={processes}",
            script,
            tmp_path / str(processes),
            rows,
        ]
        result = subprocess.run(
            [str(part) for part in command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-3000:]
    one, two = (tmp_path / str(processes) for processes in (1, 2))
    assert_same(
        one / "npr", two / "npr", tolerance=2e-4, but={"sampling/sampling_logp_difference/max"}
    )
    tables = [pd.read_parquet(run / "rollouts" / "npr.parquet") for run in (one, two)]
    for name in ("step", "problem_id", "sample"):
        assert tables[0][name].tolist() == tables[1][name].tolist(), name
    assert tables[0]["completion_ids"].map(str).equals(tables[1]["completion_ids"].map(str))
    assert tables[1]["advantage"].tolist() == pytest.approx(
        tables[0]["advantage"].tolist(), abs=1e-5
    )
