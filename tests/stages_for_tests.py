"""A stage without a notebook, for tests that train."""

from pathlib import Path

from npr_lib.profiles.stage import Stage


def make_stage(profile, run_dir, checkpoint=None, seed=0):
    return Stage("test", profile, Path(run_dir), seed, checkpoint)
