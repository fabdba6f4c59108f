"""Answers that are equal, answers that never end, and verdicts that belong to their question."""

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from npr_lib import verify
from npr_lib.verify import math_equal


@pytest.mark.parametrize(
    ("found", "answer", "right"),
    [
        ("5", "5", True),
        ("5", "6", False),
        ("-12", "12", False),
        ("+007", "7", True),
        ("5.0", 5, True),
        ("\\frac12", "0.5", True),
        ("\\sqrt8", "2\\sqrt2", True),
        ("x=5", "5", True),
        ("1{,}000", "1000", True),
        ("(1, 2)", "(1,2)", True),
        ("2, 1", "\\{1,2\\}", True),
        ("\\frac{", "1", False),
        ("", "5", False),
        ("\\text{B}", "B", True),
        ("0.3", "\\frac13", False),
        ("x^2-1", "(x-1)(x+1)", True),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 5000, "9" * 4999, False),
        ("é ≤ 3", "5", False),
        ("\ud800", "5", False),
        ("a\nb\0", "5", False),
    ],
)
def test_math_equal(found: str, answer: object, right: bool) -> None:
    assert math_equal(found, answer) is right


def test_blank_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="blank"):
        math_equal("5", " ")


@pytest.mark.parametrize("endless", ["9^{9^{9^9}}", f"{'(' * 20}1{')' * 20}"])
def test_endless_answers_are_wrong_in_time(endless: str, caplog: pytest.LogCaptureFixture) -> None:
    assert math_equal("1.0", "1")  # the worker runs; its start doesn't count
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert not math_equal(endless, "x^5", timeout=0.5)
    assert time.monotonic() - start < 10
    assert "no verdict" in caplog.text
    assert math_equal("\\frac12", "0.5")  # and the next comparison works


def test_any_thread_may_ask() -> None:
    verdicts = {}

    def ask(i: int) -> None:
        verdicts[i] = math_equal(f"\\frac{{{i}}}{{2}}", "1.5")

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {i: i == 3 for i in range(6)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_its_own_worker() -> None:
    program = """
import os
from npr_lib.verify import math_equal
assert math_equal("1.5", "\\\\frac32")
child = os.fork()
verdicts = [math_equal(f"{i}.5", "\\\\frac{5}{2}") for i in range(4)]
assert verdicts == [False, False, True, False], verdicts
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=paths, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from npr_lib import verify

    worker = verify._Worker()
    monkeypatch.setattr(verify.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="worker ended with status 1"):
        worker.compare("1", "2", 5)


class StruckError(Exception):
    """What a handler raises in the middle of a comparison."""


QUESTIONS = [(f"\\frac{{{i}}}{{7}}", f"{i + (i % 2)}/7") for i in range(1, 40)]


def truth(question: tuple[str, str]) -> bool:
    return QUESTIONS.index(question) % 2 == 1  # i is even: nothing was added to it


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_a_verdict_belongs_to_its_question_whatever_interrupts() -> None:
    """Exceptions out of signal handlers, and workers killed before and during a comparison."""

    def strike(*_: object) -> None:
        raise StruckError

    draw = random.Random(0)
    before = signal.signal(signal.SIGALRM, strike)
    interrupted = 0
    try:
        assert math_equal("1.0", "1")
        for number in range(240):
            question = draw.choice(QUESTIONS)
            way = number % 8
            if way == 0 and (process := verify._worker.process) is not None:
                process.kill()  # between two comparisons, as the system does when memory is gone
            if way == 1 and (process := verify._worker.process) is not None:
                threading.Timer(draw.uniform(0, 0.004), process.kill).start()
            if way in (2, 3):
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 0.006))
            try:
                assert math_equal(*question) is truth(question)
            except StruckError:
                interrupted += 1
            finally:
                with contextlib.suppress(StruckError):
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 10


def test_a_late_answer_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker answers a question before last: that is no verdict, and is asked once more."""
    worker = verify._Worker()

    class Late:
        """The real worker with one answer too many in its pipe."""

        def __init__(self, process: subprocess.Popen[str]) -> None:
            self.process, self.lines = process, ["[0, true]\n"]
            self.stdin, self.stdout = process.stdin, self

        def readline(self) -> str:
            return self.lines.pop() if self.lines else self.process.stdout.readline()

        def __getattr__(self, name: str) -> object:
            return getattr(self.process, name)

    first = Late(worker.start())
    worker.process = first
    try:
        assert not worker.compare("1/7", "2/7", 5) and worker.process is not first
        assert worker.compare("1/7", "\\frac17", 5)
    finally:
        worker.close()


CHILD = """
import os, sys, threading
from npr_lib import verify
assert verify.math_equal("\\\\frac12", "0.5")
print(verify._worker.process.pid, flush=True)
if sys.argv[1] == "busy":
    threading.Timer(0.3, os.kill, (os.getpid(), 9)).start()
    verify.math_equal("9^{9^{9^9}}", "x^5", timeout=2)
os.kill(os.getpid(), 9)
"""


def run_child(
    code: str, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=paths, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_worker_ends_with_its_parent(state: str) -> None:
    pid = int(run_child(CHILD, state).stdout)
    deadline = time.monotonic() + 4  # busy: its own two seconds
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_files_in_the_working_folder_are_none_of_its_business(tmp_path: Path) -> None:
    for name in ("sympy.py", "logging.py", "math_verify.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('taken for a library')")
    code = f"""
import os
from npr_lib.verify import math_equal
os.chdir({str(tmp_path)!r})
print(math_equal("3/2", "1.5"))
"""
    done = run_child(code)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_hard_limit_below_its_own_is_kept() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from npr_lib.verify import math_equal\nprint(math_equal('\\\\frac12', '0.5'))"
    )
    done = run_child(code)
    assert (done.stdout, done.stderr) == ("True\n", "")
