"""Two processes at a time: all is done, what one raises is heard, and nobody is left over."""

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
from npr_lib import side_by_side as module
from npr_lib.reasoning.layout import LayoutError
from npr_lib.side_by_side import side_by_side
from npr_lib.workbench.stages import REPOSITORY


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def meet(folder, mine, other):
    """Ends only if the other call runs at the same time."""
    (folder / mine).write_text("")
    wait_for(folder / other)
    return mine, torch.get_num_threads(), os.getpid()


def fail(folder, error):
    """The call with an error fails as soon as the other has begun; that one has a lot to do."""
    if error is not None:
        wait_for(folder / "checkpoint")
        raise error
    (folder / f"pid {os.getpid()}").touch()  # its name tells all: it may be killed while it writes
    (folder / "checkpoint").touch()
    time.sleep(600)


@pytest.fixture
def machine(monkeypatch):
    """Cores, torch's threads and a GPU or none, as one likes."""
    before = torch.get_num_threads()

    def make(cores, threads, gpu=False):
        monkeypatch.setattr(module, "_cores", lambda: cores)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        torch.set_num_threads(threads)

    yield make
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "threads", "each"), [(8, 1, 1), (4, 4, 2)])
def test_two_at_a_time_on_a_half_of_the_cores_each(tmp_path, machine, cores, threads, each):
    machine(cores, threads)
    names = [("a", "b"), ("b", "a"), ("c", "a")]  # a and b wait for each other, c comes later
    found = side_by_side(meet, [(tmp_path, *pair) for pair in names])
    assert [(name, number) for name, number, _ in found] == [("a", each), ("b", each), ("c", each)]
    pids = {pid for _, _, pid in found}
    assert len(pids) == 2 and os.getpid() not in pids and not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("first", "error"),
    [(True, WorkbenchError("all invalid")), (False, LayoutError(3, "no such step"))],
)
def test_an_error_of_one_is_raised_and_ends_the_others(tmp_path, machine, first, error):
    machine(cores=2, threads=1)
    errors = [error, None] if first else [None, error]
    with pytest.raises(type(error), match=f"^{error}$"):
        side_by_side(fail, [(tmp_path, e) for e in [*errors, None]])
    pids = [int(path.name.split()[1]) for path in tmp_path.glob("pid *")]
    assert pids and not any(map(psutil.pid_exists, pids))
    assert not multiprocessing.active_children()


def die(folder):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_is_told_of(tmp_path, machine):
    machine(cores=2, threads=1)
    with pytest.raises(WorkbenchError, match=r"test_side_by_side\.die died"):
        side_by_side(die, [(tmp_path,), (tmp_path,)])
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("cores", "gpu"), [(1, False), (8, True)])
def test_they_take_turns_on_one_core_or_a_gpu(machine, cores, gpu):
    machine(cores, 1, gpu)
    order = []
    assert side_by_side(lambda x: order.append(x) or 2 * x, [(3,), (1,), (2,)]) == [6, 2, 4]
    assert order == [3, 1, 2]


def test_inside_of_a_call_they_take_turns(machine):
    machine(cores=2, threads=1)
    assert module.at_once() == 2
    assert side_by_side(module.at_once, [(), ()]) == [1, 1]


KILLED = """
import sys
from pathlib import Path
from test_side_by_side import fail, module
if __name__ == "__main__":
    module._cores = lambda: 2
    module.side_by_side(fail, [(Path(sys.argv[1]), None)] * 2)
"""


def test_both_end_when_their_parent_is_killed(tmp_path):
    path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
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


NOTEBOOK = """
import os
from functools import partial

from npr_lib.side_by_side import at_once, side_by_side

SCALE = 3

def scaled(value, more=0):
    return os.getpid(), SCALE * value + more

assert at_once() == 2
results = side_by_side(partial(scaled, more=1), [(1,), (2,)])
assert [value for _, value in results] == [4, 7]
assert os.getpid() not in {pid for pid, _ in results}
"""


@pytest.mark.skipif(module.at_once() < 2, reason="one at a time here")
def test_functions_of_a_notebook_run_side_by_side():
    """What a cell defines lies in no module; what it uses travels with it."""
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
