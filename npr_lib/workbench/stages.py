"""The stages of a run: the table, what makes a stage out of date, and how a notebook begins.

A stage is a notebook with declared inputs, profile sections and outputs. It is done when
`stages/<name>.json` in the run's folder holds the same fingerprint as now, and its outputs are
the ones it left.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npr_lib import WorkbenchError
from npr_lib.analysis.ladder import LADDER
from npr_lib.files import REPOSITORY, digest, notebook_digest, source_digest, write_json
from npr_lib.profiles.profile import load_profile
from npr_lib.tasks.problems import local_files


@dataclass(frozen=True, slots=True)
class Stage:
    """One notebook of the pipeline; paths are relative to the run's folder."""

    name: str
    inputs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    checkpoint: str | None = None
    """The notebook's `input_checkpoint` when none is given; one of the inputs."""

    @property
    def notebook(self) -> str:
        return f"{self.name}.ipynb"


NOT_DONE = "not done yet"
TASK = ("prompt", "problems")
EVALUATIONS = tuple(f"rollouts/eval_{name}.parquet" for name in LADDER)

STAGES = (
    Stage("00_seed", sections=(*TASK, "model", "seed"), outputs=("seed",)),
    Stage(
        "01_npr_zero",
        inputs=("seed",),
        sections=(*TASK, "engine", "npr_zero"),
        outputs=("npr_zero", "rollouts/npr_zero.parquet"),
        checkpoint="seed",
    ),
    Stage(
        "02_npr_beta",
        inputs=("seed", "npr_zero"),
        sections=(*TASK, "engine", "rejection", "sft"),
        outputs=("rejection.parquet", "npr_beta", "sr_beta"),
        checkpoint="npr_zero",
    ),
    Stage(
        "03_npr",
        inputs=("npr_beta", "sr_beta"),
        sections=(*TASK, "engine", "npr"),
        outputs=("npr", "sr", "rollouts/npr.parquet", "rollouts/sr.parquet"),
        checkpoint="npr_beta",
    ),
    Stage(
        "10_accuracy",
        inputs=LADDER,
        sections=(*TASK, "engine", "evaluation"),
        outputs=(*EVALUATIONS, "metrics/accuracy.json"),
    ),
    Stage(
        "11_parallelism",
        inputs=("npr", "sr", *EVALUATIONS),
        sections=(*TASK, "engine", "evaluation"),
        outputs=("speed.json", "metrics/parallelism.json"),
    ),
    Stage(
        "20_explore",
        inputs=("npr", *EVALUATIONS),
        sections=("engine", "evaluation"),
        outputs=("explore.html",),
    ),
    Stage(
        "90_report",
        inputs=(*LADDER, *EVALUATIONS, "speed.json"),
        outputs=("metrics/headline.json",),
    ),
)


# Notebooks that no run executes by itself.
ON_REQUEST = (Stage("12_ablations", inputs=("seed", "npr_zero", "npr_beta", "rejection.parquet")),)


class MissingInputError(WorkbenchError):
    """What a stage starts from is not there; the message names the command that makes it."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage's notebook works with."""

    profile: dict
    run_dir: Path
    checkpoint: Path | None
    seed: int


def begin(
    name: str,
    profile: str | Path,
    run_dir: str | Path | None = None,
    input_checkpoint: str | Path | None = None,
    seed: int | None = None,
    stages: Sequence[Stage] = STAGES,
) -> Context:
    """The first call of every stage notebook: read the profile, check that the inputs exist.

    Args:
        name: the stage, such as `01_npr_zero`.
        profile: name or path of a profile.
        run_dir: the run's folder; None means `reports/<profile>`.
        input_checkpoint: model folder to start from; None means the one in `run_dir`.
        seed: None means the profile's `random_seed`.

    Raises:
        MissingInputError: an input does not exist.
        ProfileError: the profile can't be read.
    """
    stage = next(stage for stage in (*stages, *ON_REQUEST) if stage.name == name)
    settings = load_profile(profile)
    folder = REPOSITORY / "reports" / Path(profile).stem if run_dir is None else Path(run_dir)
    for sub in ("rollouts", "metrics", "notebooks"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for path in stage.inputs:
        given = path == stage.checkpoint and input_checkpoint is not None
        if not given and not (folder / path).exists():
            raise MissingInputError(_how_to_make(path, folder, profile, stages))
    checkpoint = None
    if input_checkpoint is not None:
        checkpoint = Path(input_checkpoint)
        if not checkpoint.is_dir():
            raise MissingInputError(f"input_checkpoint {checkpoint} is not a model folder")
    elif stage.checkpoint is not None:
        checkpoint = folder / stage.checkpoint
    return Context(settings, folder, checkpoint, settings["random_seed"] if seed is None else seed)


def _how_to_make(path: str, folder: Path, profile: str | Path, stages: Sequence[Stage]) -> str:
    maker = next((stage for stage in stages if path in stage.outputs), None)
    missing = f"{folder / path} does not exist"
    if maker is None:
        return missing
    output = folder / "notebooks" / maker.notebook
    return (
        f"{missing}; make it with: papermill notebooks/{maker.notebook} {output} "
        f"-p profile {profile} -p run_dir {folder}"
    )


def fingerprint(
    stage: Stage, profile: dict, parameters: dict, run_dir: Path, notebook: Path
) -> dict[str, Any]:
    """What a stage's result depends on, part by part.

    Returns:
        parameters and sections as they are; content digests of the inputs, of the problems' local
        files, of the notebook's cells and of the source of `npr_lib`. Two equal fingerprints mean:
        don't run again.
    """
    files = local_files(profile["problems"]) if "problems" in stage.sections else []
    return {
        "parameters": parameters,
        "sections": {name: profile.get(name) for name in stage.sections},
        "inputs": {path: digest(run_dir / path) for path in stage.inputs}
        | {str(path): digest(path) for path in files},
        "notebook": notebook_digest(notebook),
        "source": source_digest(),
    }


def record_path(run_dir: Path, stage: Stage) -> Path:
    return run_dir / "stages" / f"{stage.name}.json"


def why_run(stage: Stage, run_dir: Path, now: dict[str, Any]) -> str | None:
    """Why a stage has to run, in words; None when it is done and nothing has changed."""
    path = record_path(run_dir, stage)
    if not path.exists():
        return NOT_DONE
    record = json.loads(path.read_text(encoding="utf-8"))
    then = record["fingerprint"]
    for part in ("parameters", "sections", "inputs"):
        changed = sorted(
            key
            for key in now[part].keys() | then[part].keys()
            if now[part].get(key) != then[part].get(key)
        )
        if changed:
            return f"changed {part}: {', '.join(changed)}"
    for part in ("notebook", "source"):
        if now[part] != then[part]:
            return f"changed {part}"
    for output, content in record["outputs"].items():
        if digest(run_dir / output) != content:
            return f"{output} is not what the stage left"
    return None


def mark_done(stage: Stage, run_dir: Path, now: dict[str, Any]) -> None:
    """Record a stage as done, atomically.

    Raises:
        WorkbenchError: an output that the stage declares does not exist.
    """
    outputs = {output: digest(run_dir / output) for output in stage.outputs}
    missing = [output for output, content in outputs.items() if content is None]
    if missing:
        raise WorkbenchError(f"stage {stage.name} ended without making {', '.join(missing)}")
    path = record_path(run_dir, stage)
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"stage": stage.name, "fingerprint": now, "outputs": outputs})
