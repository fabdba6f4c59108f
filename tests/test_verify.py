"""Answers that are equal, and answers that would never end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from npr_lib import verify
from npr_lib.rewards import accuracy_reward
from npr_lib.verify import exact, math_equal


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


@pytest.mark.parametrize("endless", ["9^{9^{9^9}}", f"{'(' * 20}1{')' * 20}"])
def test_endless_answers_are_wrong_in_time(endless: str, caplog: pytest.LogCaptureFixture) -> None:
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
    worker = verify._Worker()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="worker ended with status 1"):
        worker.compare("1", "2", 5)
