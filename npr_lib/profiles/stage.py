"""A stage: what a stage's notebook works with, and every function that it calls is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from npr_lib.profiles.sections import Profile


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of one run. checkpoint: the model folder it starts from, if it starts from one."""

    name: str
    profile: Profile
    run_dir: Path
    seed: int = 0
    checkpoint: Path | None = None
