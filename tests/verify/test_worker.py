"""Answers that are equal, answers that would never end, and verdicts that stay with their question.

Where a test needs many fresh workers, a quick function stands in for the comparison: it compares
numbers, and does to its process what the answer says.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_stack
from types import FrameType

import psutil
import pytest

from npr_lib.rewards import accuracy_reward
from npr_lib.verify import MAX_ANSWER_CHARS, exact, math_equal
from npr_lib.verify import worker as worker_module

STAND_IN = """
import os, random, runpy, signal, sys, time, types

def value(text):
    if text == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "memory":
        raise MemoryError
    return float(text)

def verdict(expected, found, policy):
    same = value(expected) == value(found)
    time.sleep(random.random() * 0.01)
    return same

sys.modules["npr_lib.verify.compare"] = types.SimpleNamespace(verdict=verdict)
runpy.run_path(WORKER, run_name="__main__")
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[worker_module._Worker]:
    """A worker of the stand-in, which `math_equal` uses too."""
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN.replace("WORKER", repr(worker_module.__file__)))
    monkeypatch.setattr(worker_module, "_FILE", str(program))
    monkeypatch.setattr(worker_module, "_worker", worker := worker_module._Worker())
    yield worker
    worker.close()


def start(program: str) -> subprocess.Popen[str]:
    """A Python process of its own session that runs the program."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(program: str) -> None:
    """The program ends well and says nothing."""
    process = start(program)
    try:
        assert (*process.communicate(timeout=120), process.returncode) == ("", "", 0)
    finally:
        process.kill()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def question(draw: random.Random) -> tuple[str, str, bool]:
    """(predicted, answer, whether they are equal); no two strings that are."""
    number, other = draw.randrange(1000), draw.randrange(1000)
    right = draw.random() < 0.5
    return f"{number}.50", f"{number if right else other}.5", right or number == other


def test_exact_texts() -> None:
    assert exact(" B\n", "B")
    assert not exact("b", "B")
    assert not exact("5.0", "5")


@pytest.mark.parametrize(
    ("found", "answer", "right"),
    [
        ("5", "5", True),
        ("5", "6", False),
        ("-12", "12", False),
        ("+007", "7", True),
        ("5.0", "5", True),
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
def test_math_equal(found: str, answer: str, right: bool) -> None:
    assert math_equal(found, answer) is right
    if found.count("{") == found.count("}"):
        assert accuracy_reward(f"so \\boxed{{{found}}}.", answer) == (1 if right else -1)


def test_blank_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="blank"):
        math_equal("5", " ")


def test_endless_answers_are_wrong_in_time(caplog: pytest.LogCaptureFixture) -> None:
    endless = r"\int_0^1((((((x+1)^2+1)^2+1)^2+1)^2+1)^2+1)^{50} dx"
    assert math_equal("1.0", "1")  # the worker runs; its start doesn't count
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert not math_equal(endless, "x^5", timeout=0.5)
    assert time.monotonic() - began < 10
    assert "no verdict" in caplog.text
    assert math_equal("\\frac12", "0.5")  # and the next comparison works


def test_any_thread_may_ask() -> None:
    verdicts = {}

    def ask(i: int) -> None:
        verdicts[i] = accuracy_reward(f"\\boxed{{\\frac{{{i}}}{{2}}}}", "1.5")

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {i: 1 if i == 3 else -1 for i in range(6)}


def test_a_forked_process_has_its_own_worker() -> None:
    run("""
        import os
        from npr_lib.verify import math_equal
        assert math_equal("1.5", "\\\\frac32")
        child = os.fork()
        verdicts = [math_equal(f"{i}.5", "\\\\frac{5}{2}") for i in range(4)]
        assert verdicts == [False, False, True, False], verdicts
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """)


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_module._Worker()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with status 1 before"):
        worker.compare("1", "2", None, 5)


class Interrupted(BaseException):
    pass


def test_an_interrupted_question_leaves_no_verdict_behind(quick: worker_module._Worker) -> None:
    """Exceptions from an alarm, anywhere in a comparison and in cleaning up after another one."""
    draw = random.Random(0)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        codes = [f.f_code for f, _ in walk_stack(frame)]
        # Python drops what a finalizer raises, and pytest's hook that then runs must be left alone.
        finalizing = any(code.co_name in ("__del__", "unraisable_hook") for code in codes)
        if not finalizing and any(code.co_filename == worker_module.__file__ for code in codes):
            raise draw.choice([Interrupted, KeyboardInterrupt, TimeoutError, ConnectionError])

    pytest_timer = signal.setitimer(signal.ITIMER_REAL, 0)
    handler = signal.signal(signal.SIGALRM, interrupt)
    interrupted, wrong = 0, []
    try:
        for _ in range(300):
            predicted, answer, right = question(draw)
            again = draw.choice([0, 0, 0.0005])  # 0: once
            if draw.random() < 0.3:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 0.015), again)
            try:
                verdict = math_equal(predicted, answer)
            except (Interrupted, KeyboardInterrupt, TimeoutError, ConnectionError):
                interrupted += 1
                verdict = right
            signal.setitimer(signal.ITIMER_REAL, 0)
            if verdict != right:
                wrong.append((predicted, answer))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *pytest_timer)
    assert interrupted > 20
    assert not wrong


def test_a_killed_worker_is_replaced(
    quick: worker_module._Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed before a question, or at any moment while it is asked."""
    draw, pids = random.Random(0), set()
    assert math_equal("1.50", "1.5")
    for _ in range(200):
        predicted, answer, right = question(draw)
        if (when := draw.choice(["before", "during", "never", "never"])) == "before":
            quick.process.kill()
        elif when == "during":
            threading.Timer(draw.uniform(0, 0.015), quick.process.kill).start()
        assert math_equal(predicted, answer) is right
        pids.add(quick.process.pid)
    assert len(pids) > 30
    assert not caplog.text


def test_a_stopped_worker_costs_one_verdict(
    quick: worker_module._Worker, caplog: pytest.LogCaptureFixture
) -> None:
    assert math_equal("1.50", "1.5")
    quick.process.send_signal(signal.SIGSTOP)
    assert not math_equal("2.50", "2.5", timeout=0.1)
    assert "no verdict (0.1 s at most)" in caplog.text
    assert math_equal("3.50", "3.5")


@pytest.mark.parametrize("answer", ["kill", "memory"])
def test_what_ends_every_worker_is_not_comparable(
    quick: worker_module._Worker, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert not math_equal("1.5", answer)
    assert caplog.text.count("no verdict") == 1
    assert math_equal("1.50", "1.5")


def test_one_thread_out_of_time_costs_the_others_nothing(quick: worker_module._Worker) -> None:
    wrong = []

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(20):
            predicted, answer, right = question(draw)
            timeout = 0.002 if seed == 0 else 60
            verdict = math_equal(predicted, answer, timeout)
            if verdict is not right and (verdict or seed):
                wrong.append((predicted, answer))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_longest_question_passes(quick: worker_module._Worker) -> None:
    longest = "0" * (MAX_ANSWER_CHARS - 1) + "5"
    assert math_equal(longest, "5.0")
    assert not math_equal("0" + longest, "5.0")
    assert not math_equal("😀" * MAX_ANSWER_CHARS, "😁" * MAX_ANSWER_CHARS)
    assert math_equal(longest, "5.0")


@pytest.mark.parametrize("meanwhile", ["idle", "comparing", "forked"])
def test_a_worker_ends_with_its_parent(meanwhile: str) -> None:
    """Also in the midst of one long operation, and if a fork of the parent lives on."""
    parent = start(f"""
        import os, time
        from npr_lib import verify
        from npr_lib.verify import worker
        verify.math_equal("1.0", "1")
        child = "{meanwhile}" == "forked" and os.fork() == 0
        if not child:
            print(worker._worker.process.pid, os.getpid(), flush=True)
            if "{meanwhile}" != "idle":
                endless = r"\\int_0^1((((((x+1)^2+1)^2+1)^2+1)^2+1)^2+1)^{{50}} dx"
                verify.math_equal(endless, "x^5", timeout=60)
        time.sleep(60)
    """)
    try:
        worker, pid = map(int, parent.stdout.readline().split())
        time.sleep(0.5)
        assert not gone(worker)
        children = psutil.Process(pid).children()
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 2
        while not gone(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert gone(worker)
        assert len([child for child in children if not gone(child.pid)]) == (meanwhile == "forked")
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def test_an_interrupt_of_the_process_group_is_not_for_the_worker() -> None:
    run("""
        import os, signal, time
        from npr_lib import verify
        from npr_lib.verify import worker
        assert verify.math_equal("1.0", "1")
        process = worker._worker.process
        try:
            os.killpg(0, signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            time.sleep(0.2)
        assert verify.math_equal("2.0", "2")
        assert worker._worker.process is process and process.poll() is None
    """)


def test_files_in_the_working_folder_are_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("sympy", "logging", "re", "math_verify", "gmpy2", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path)]))
    worker = worker_module._Worker()
    try:
        assert worker.compare("0.5", "\\frac12", None, 5)
    finally:
        worker.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS doesn't enforce RLIMIT_AS")
def test_a_lower_limit_of_memory_is_kept() -> None:
    run("""
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        from npr_lib import verify
        from npr_lib.verify import worker
        assert verify.math_equal("0.5", "\\\\frac12")
        limits = resource.prlimit(worker._worker.process.pid, resource.RLIMIT_AS)
        assert limits == (1 << 30, 1 << 30), limits
    """)
