"""Two trainings side by side: both are done, what one raises is heard, and nobody is left over."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from npr_lib import WorkbenchError
from npr_lib.layout import LayoutError
from npr_lib.stages import REPOSITORY
from npr_lib.train.twins import train_twins

STARTS = (Path("beta"), Path("sr_beta"))


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def meet(profile, run_dir, start, seed, mode):
    """A training that ends only if the other one runs at the same time."""
    folder = run_dir / f"{mode} from {start}, {profile['name']}, {seed}, {torch.get_num_threads()}"
    (run_dir / mode).write_text(str(os.getpid()))
    wait_for(run_dir / ("sequential" if mode == "parallel" else "parallel"))
    return folder


def fail(profile, run_dir, start, seed, mode):
    """One fails as soon as the other has written something; that one has a lot to do yet."""
    if mode == profile["fails"]:
        wait_for(run_dir / "checkpoint")
        raise profile["error"]
    (run_dir / "checkpoint").write_text(str(os.getpid()))
    time.sleep(600)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("two_threads", "no_gpu")
def test_both_are_trained_at_the_same_time_on_a_half_of_the_threads(tmp_path):
    folders = train_twins(meet, {"name": "tiny"}, tmp_path, STARTS, 7)
    assert [folder.name for folder in folders] == [
        "parallel from beta, tiny, 7, 1",
        "sequential from sr_beta, tiny, 7, 1",
    ]
    pids = {(tmp_path / mode).read_text() for mode in ("parallel", "sequential")}
    assert len(pids | {str(os.getpid())}) == 3 and not multiprocessing.active_children()


@pytest.mark.usefixtures("two_threads", "no_gpu")
@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("error", [WorkbenchError("all invalid"), LayoutError(3, "no such step")])
def test_an_error_of_one_is_raised_and_ends_the_other(tmp_path, mode, error):
    with pytest.raises(type(error), match=f"^{error}$"):
        train_twins(fail, {"fails": mode, "error": error}, tmp_path, STARTS, 0)
    assert not psutil.pid_exists(int((tmp_path / "checkpoint").read_text()))
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("why", ["one thread", "a GPU"])
def test_they_take_turns_on_one_thread_or_a_gpu(tmp_path, monkeypatch, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: why == "a GPU")
    torch.set_num_threads(1 if why == "one thread" else 2)
    order = []

    def train(profile, run_dir, start, seed, mode):
        order.append((mode, start, os.getpid()))
        return run_dir / mode

    folders = train_twins(train, {}, tmp_path, STARTS, 0)
    assert folders == (tmp_path / "parallel", tmp_path / "sequential")
    modes = ("parallel", "sequential")
    assert order == [(m, s, os.getpid()) for m, s in zip(modes, STARTS, strict=True)]


KILLED = """
import sys
from pathlib import Path
import torch
from test_twins import STARTS, fail
from npr_lib.train.twins import train_twins
if __name__ == "__main__":
    torch.set_num_threads(2)
    train_twins(fail, {"fails": None}, Path(sys.argv[1]), STARTS, 0)
"""


def test_both_end_when_their_parent_is_killed(tmp_path):
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    (tmp_path / "run.py").write_text(KILLED)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
    )
    wait_for(tmp_path / "checkpoint", 120)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
