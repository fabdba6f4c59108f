"""A model of one's own through every notebook to the report, by the ten lines of docs/profiles.md.

The model is a small Llama with a BPE tokenizer and a chat template, its problems a file of
sentences: nothing of the tiny profile. They are so easy that every stage has something to learn.
"""

import io
import re

import pandas as pd
import pytest
import yaml
from own_models import write_model, write_problems
from pages import is_local, sources

from npr_lib.files import REPOSITORY, model_digest
from npr_lib.profiles.profile import Loader
from npr_lib.workbench import pipeline

pytestmark = pytest.mark.slow

PAGE = (REPOSITORY / "docs" / "profiles.md").read_text()
SIZES = [
    *("problems.train=200", "problems.validation=20", "problems.test=30", "engine.num_slots=8192"),
    *("rejection.k=4", "rejection.problems=48", "evaluation.speed_problems=2"),
    *(f"{name}.sampling.max_tokens=120" for name in ("npr_zero", "rejection", "npr", "evaluation")),
    *("sft.trl.max_steps=60", "sft.trl.learning_rate=5e-3", "evaluation.speed_rounds=1"),
    *(f"{name}.validation={{every: 2, problems: 8}}" for name in ("npr_zero", "npr")),
    *(f"{name}.grpo.max_steps=2" for name in ("npr_zero", "npr")),
    *(f"{name}.grpo.per_device_train_batch_size=16" for name in ("npr_zero", "npr")),
    *(f"{name}.grpo.learning_rate=1e-4" for name in ("npr_zero", "npr")),
    *("npr.min_kept=0.0", "npr.max_flat=9", "npr_zero.max_flat=9"),
]
CHECKPOINTS = ("seed", "npr_zero", "npr_beta", "npr")


def write_profile(root):
    """The page's profile with the paths of this one's own files."""
    (text,) = re.findall(r"```yaml\n(problems: \{kind: file.*?)```", PAGE, re.DOTALL)
    assert len(text.splitlines()) == 10
    given = yaml.load(text, Loader)
    given["problems"]["path"] = str(write_problems(root / "mine.jsonl"))
    given["model"]["path"] = str(write_model(root / "mine", given["prompt"]["system"]))
    (root / "mine.yaml").write_text(yaml.safe_dump(given))
    return root / "mine.yaml"


def test_the_report_opens_with_and_without_baselines(tmp_path):
    profile = write_profile(tmp_path)
    options = {"root": tmp_path, "notebooks": REPOSITORY / "notebooks", "overrides": SIZES}
    run_dir = pipeline.run(profile, stream=io.StringIO(), **options)
    for page in (run_dir / "index.html", *sorted((run_dir / "html").glob("*.html"))):
        assert all(map(is_local, sources(page.read_text()))), page
    index = (run_dir / "index.html").read_text()
    for name in ("seed", "NPR-Zero", "SR-Beta", "NPR-Beta", "SR", "NPR"):
        assert f"<td>{name}</td>" in index
    report = (run_dir / "html" / "90_report.html").read_text()
    assert report.count('"views":["graph","text"]') >= 3 and "Warning" not in report
    answers = pd.read_parquet(run_dir / "rollouts" / "eval_npr.parquet")
    assert answers["triggered"].mean() > 0.5 and answers["accuracy"].mean() > 0.2
    assert answers["problem"].str.contains("How many?").all()

    before = {name: model_digest(run_dir / name) for name in CHECKPOINTS}
    # as a run that never had them: what is left of them is nowhere read
    for path in run_dir.rglob("*sr*"):
        if path.exists() and path.parent in (run_dir, run_dir / "rollouts"):
            path.rename(tmp_path / f"gone-{path.name}")
    stream = io.StringIO()
    pipeline.run(profile, stream=stream, skip=["sr"], **options)
    assert {name: model_digest(run_dir / name) for name in CHECKPOINTS} == before
    index = (run_dir / "index.html").read_text()
    assert "<td>NPR-Beta</td>" in index and "<td>SR-Beta</td>" not in index
    assert not list(run_dir.glob("sr*")) and not list(run_dir.glob("rollouts/*sr*"))
    pipeline.run(profile, stream=stream, skip=["sr"], **options)
    assert stream.getvalue().count("up to date") >= 8
