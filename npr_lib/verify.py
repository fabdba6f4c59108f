r"""Is this answer right? Equality of texts, and of mathematics.

What was found about math-verify 0.9:

- Its timeouts are `signal.alarm`: a ValueError outside the main thread, and no use in it while one
  long operation on big integers runs, since signals wait for the bytecode to end.
  `parsing_timeout=None` and `timeout_seconds=None` turn them off and then nothing ends a
  comparison: with `\boxed{9^{9^{9^9}}}` the simplification runs until memory is gone, and twenty
  nested parentheses take minutes to parse.
- It reads a word as a product of letters, so anagrams are equal ("pairs" and "spira") and case is
  ignored. Problem sets whose answers are words need their own verifier.

So comparisons run in a worker process that ends itself after `TIMEOUT_SECONDS` (and is limited to
`MEMORY_BYTES` on Linux): any thread can ask, one comparison at a time, and what can't be compared
in that time counts as wrong, with a warning in the log. The worker starts at the first comparison
that needs it (about a second). Equal strings and pairs of integers never do.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from typing import TextIO

TIMEOUT_SECONDS = 5.0
MEMORY_BYTES = 4 << 30
MAX_ANSWER_CHARS = 2_000  # longer answers are right only when they are equal strings

_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")
_log = logging.getLogger(__name__)


def exact(predicted: str, answer: str) -> bool:
    """The same text but for white space around it."""
    return predicted.strip() == answer.strip()


def math_equal(predicted: str, answer: object, timeout: float = TIMEOUT_SECONDS) -> bool:
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
    """The process that asks math-verify. A line of JSON in, [number, answer, predicted, timeout],
    and one out, [number, verdict]; null: it can't be compared.

    A plain subprocess, since multiprocessing would import the main program again (a training
    script, a notebook) and can't be started from daemonic processes. In a session of its own, since
    Ctrl-C and Jupyter's interrupt are meant for whoever asks. It ends with whoever started it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.asked = 0

    def compare(self, answer: str, predicted: str, timeout: float) -> bool:
        with self.lock:
            for _ in range(2):  # a worker may have been killed by others: it is asked once more
                verdict, ended = self._ask(answer, predicted, timeout)
                if ended is None or ended == -signal.SIGALRM:
                    break
            if verdict is None:
                _log.warning("no verdict (%g s at most), so wrong: %.80r", timeout, predicted)
            return bool(verdict)

    def _ask(self, answer: str, predicted: str, timeout: float) -> tuple[bool | None, int | None]:
        """The verdict, and with what status the worker ended, None if it goes on.

        An answer carries its question's number, and whatever keeps a question from its answer
        costs the worker: no verdict is ever another question's.
        """
        self.asked += 1
        try:
            process = self.process = self.process or self.start()
            try:
                process.stdin.write(json.dumps([self.asked, answer, predicted, timeout]) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            number, verdict = json.loads(line) if line.endswith("\n") else (None, None)
        except BaseException:
            self.close()
            raise
        return (verdict, None) if number == self.asked else (None, self.close())

    def start(self) -> subprocess.Popen[str]:
        # What lies in the working folder (a sympy.py, a logging.py) is none of its business.
        here = os.path.realpath(".")
        path = [entry for entry in sys.path if entry and os.path.realpath(entry) != here]
        run = f"runpy.run_path({__file__!r}, {{}}, 'worker')"
        code = f"import runpy, sys; sys.path[:] = {path!r}; {run}"
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
            start_new_session=True,
        )
        if not process.stdout.readline():
            raise RuntimeError(
                f"the math-verify worker ended with status {process.wait()} before its first "
                "comparison; its own message is on stderr"
            )
        return process

    def close(self) -> int | None:
        """End the worker; returns its status (-SIGKILL if it had to be killed)."""
        process, self.process = self.process, None
        if process is None:
            return None
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)  # one that ended by itself says how
            process.kill()
        process.communicate()
        return process.returncode


def _serve(questions: TextIO, verdicts: TextIO) -> None:
    """The worker's loop, until its input is closed."""
    from math_verify import parse, verify

    if sys.platform == "linux":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)  # math-verify warns that its timeouts are off
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions, waiting), daemon=True).start()
    print("ready", file=verdicts, flush=True)
    while True:
        number, *texts, timeout = json.loads(waiting.get())
        # Not a handler of Python's, which would wait for the end of a long operation on integers.
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            gold, found = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in texts)
            verdict = bool(verify(gold, found, timeout_seconds=None))
        except Exception:  # math-verify, sympy or antlr gave up on what a model wrote
            verdict = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps([number, verdict]), file=verdicts, flush=True)


def _listen(questions: TextIO, waiting: queue.SimpleQueue[str]) -> None:
    """Hand on every question; the end of the input is the end of the process, whatever it does."""
    for line in questions:
        waiting.put(line)
    os._exit(0)


def _new_worker() -> None:
    """A forked child must not share its parent's worker, nor a lock held while forking, nor keep
    the worker alive when its parent has gone."""
    global _worker
    if (process := _worker.process) is not None:
        process.stdin.close()
        process.stdout.close()
    _worker = _Worker()


_worker = _Worker()
atexit.register(lambda: _worker.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_worker)

if __name__ == "worker":
    verdict_stream, sys.stdout = sys.stdout, sys.stderr  # nothing printed by a library is a verdict
    _serve(sys.stdin, verdict_stream)
