r"""Whether a predicted answer is right: equal strings, or mathematically equal by math-verify.

What was found about math-verify 0.9:

- Its timeouts are `signal.alarm`: a ValueError outside the main thread, and no use in it while one
  long operation on big integers runs, since signals wait for the bytecode to end.
  `parsing_timeout=None` and `timeout_seconds=None` turn them off and then nothing ends a
  comparison: with `\boxed{9^{9^{9^9}}}` the simplification runs until memory is gone, and twenty
  nested parentheses take minutes to parse.
- It reads a word as a product of letters, so anagrams are equal ("pairs" and "spira") and case is
  ignored. Problem sets whose answers are words need their own verifier.

So comparisons run in a worker process that is killed after `TIMEOUT_SECONDS` (and limited to
`MEMORY_BYTES` on Linux): any thread can ask, one comparison at a time, and what can't be compared
in that time counts as wrong, with a warning in the log. The worker starts at the first comparison
that needs it (about a second). Equal strings and pairs of integers never do.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

Verifier = Callable[[str, str], bool]  # (predicted, answer) -> right or wrong

TIMEOUT_SECONDS = 5.0
MEMORY_BYTES = 4 << 30
MAX_ANSWER_CHARS = 2_000  # longer answers are right only when they are equal strings

_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")
_log = logging.getLogger(__name__)


def exact(predicted: str, answer: str) -> bool:
    """Whether the two are the same text, but for white space around them."""
    return predicted.strip() == answer.strip()


def math_equal(predicted: str, answer: Any, timeout: float = TIMEOUT_SECONDS) -> bool:
    """Whether two answers in LaTeX or plain text are mathematically the same, by math-verify.

    From any thread; never longer than `timeout` seconds (plus the wait for other threads and for
    the worker to start), and then False. ValueError for a blank answer: nothing would match it.
    """
    expected, found = str(answer).strip(), predicted.strip()
    if not expected:
        raise ValueError("math_equal needs an answer to compare with, not a blank one")
    if expected == found:
        return True
    if _INTEGER.fullmatch(expected) and _INTEGER.fullmatch(found):
        return int(expected) == int(found)
    if not found or max(len(expected), len(found)) > MAX_ANSWER_CHARS:
        return False
    return _worker.compare(expected, found, timeout)


class _Worker:
    """The process that asks math-verify: a line of JSON [answer, predicted] in, true or false out.

    A plain subprocess, since multiprocessing would import the main program again (a training
    script, a notebook) and can't be started from daemonic processes.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def compare(self, answer: str, predicted: str, timeout: float) -> bool:
        with self.lock:
            if self.process is None:
                self.process = self.start()
            process, expired = self.process, threading.Event()

            def expire() -> None:
                expired.set()
                process.kill()

            timer = threading.Timer(timeout, expire)
            timer.start()
            try:
                verdict = _ask(process, json.dumps([answer, predicted]))
            finally:
                timer.cancel()
                timer.join()  # now it has expired or never will
            if expired.is_set() or not verdict:
                self.close()
            if not verdict:
                _log.warning("no verdict (%g s at most), so wrong: %.80r", timeout, predicted)
                return False
            return json.loads(verdict)

    def start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(entry or "." for entry in sys.path)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
            env={**os.environ, "PYTHONPATH": path},
        )
        if not process.stdout.readline():
            raise RuntimeError(
                f"the math-verify worker ended with status {process.wait()} before its first "
                "comparison; its own message is on stderr"
            )
        return process

    def close(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()


def _ask(process: subprocess.Popen[str], question: str) -> str:
    """The worker's answer line, "" when it died before it gave one."""
    try:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def _serve(questions: TextIO, verdicts: TextIO) -> None:
    """The worker's loop, until its input is closed."""
    from math_verify import parse as parse_math
    from math_verify import verify

    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)  # math-verify warns that its timeouts are off
    print("ready", file=verdicts, flush=True)
    for line in questions:
        gold, found = (
            parse_math(f"\\boxed{{{text}}}", parsing_timeout=None) for text in json.loads(line)
        )
        equal = bool(verify(gold, found, timeout_seconds=None))
        print(json.dumps(equal), file=verdicts, flush=True)


def _new_worker() -> None:
    """A forked child must not share its parent's worker, nor a lock held while forking."""
    global _worker
    _worker = _Worker()


_worker = _Worker()
atexit.register(lambda: _worker.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_worker)

if __name__ == "__main__":
    verdict_stream, sys.stdout = sys.stdout, sys.stderr  # nothing printed by a library is a verdict
    _serve(sys.stdin, verdict_stream)
