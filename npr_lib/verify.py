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

**A verdict belongs to its question.** Questions are numbered and answers repeat the number. A
worker that owes an answer, because an exception interrupted the caller (Ctrl-C, an alarm) or time
was up, is never asked again. One that was killed (the OOM killer) is replaced, and the question
asked once more. Ctrl-C doesn't reach the worker, nor do files in the working folder. It ends when
its parent does, on Linux in the midst of a comparison too.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 5.0
MEMORY_BYTES = 4 << 30  # or the limit this process has itself, where that is lower
MAX_ANSWER_CHARS = 2_000  # longer answers are right only when they are equal strings

_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")
_FILE = str(Path(__file__).resolve())
_log = logging.getLogger(__name__)


def exact(predicted: str, answer: str) -> bool:
    """Whether the two are the same text, but for white space around them."""
    return predicted.strip() == answer.strip()


def math_equal(predicted: str, answer: Any, timeout: float = TIMEOUT_SECONDS) -> bool:
    """Whether two answers in LaTeX or plain text are mathematically the same, by math-verify.

    From any thread; False after `timeout` seconds (a killed worker gets them once more; the wait
    for other threads and for the worker to start comes on top). ValueError for a blank answer:
    nothing would match it. RuntimeError when no worker can be started.
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


class _Died(Exception):  # noqa: N818 - never leaves this module
    """The worker ended before it answered."""


class _Worker:
    """The process that asks math-verify: (number, answer, predicted) in, (number, verdict) out.

    A plain subprocess, since multiprocessing would import the main program again (a training
    script, a notebook) and can't be started from daemonic processes.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Connection
        self.asked = self.answered = 0  # numbers; they differ while the worker owes an answer

    def compare(self, answer: str, predicted: str, timeout: float) -> bool:
        verdict = None
        with self.lock:
            try:
                for _ in range(2):  # what kills two workers can't be compared
                    with suppress(_Died):
                        verdict = self.ask(answer, predicted, timeout)
                        break
            finally:
                if self.asked != self.answered:
                    self.close()
        if verdict is None:
            _log.warning("no verdict (%g s at most), so wrong: %.80r", timeout, predicted)
        return bool(verdict)

    def ask(self, answer: str, predicted: str, timeout: float) -> bool | None:
        """The verdict, None when there is none in time or math-verify failed."""
        # `compare` closes a worker that owes an answer, unless a second exception kept it from that
        owes = self.asked != self.answered
        if owes or self.process is None or self.process.poll() is not None:
            self.close()
            self.start()
        self.asked += 1
        with suppress(BrokenPipeError):  # then there is no answer either
            # Never waits: a question is shorter than the channel's buffer (MAX_ANSWER_CHARS).
            self.channel.send((self.asked, answer, predicted))
        return self.receive(timeout)

    def receive(self, timeout: float | None) -> bool | None:
        """The verdict on the question just asked, None when there is none in time."""
        if not self.channel.poll(timeout):
            return None
        try:
            number, verdict = self.channel.recv()
        except (EOFError, ConnectionResetError):
            raise _Died from None
        if number != self.asked:
            raise _Died
        self.answered = number
        return verdict

    def start(self) -> None:
        """A new process, ready for questions. RuntimeError when there can't be one."""
        # Isolated (-I), with our search path behind its own and without the working folder, so no
        # file there stands in for a library. Its own session, so Ctrl-C is not for it.
        paths = [path for path in sys.path if _is_elsewhere(Path(path))]
        for _ in range(3):  # it may be killed while it starts
            self.channel, theirs = Pipe()
            self.asked, self.answered = 1, 0  # "is it ready?" is the first question
            self.process = subprocess.Popen(
                [sys.executable, "-I", _FILE, str(theirs.fileno()), *paths],
                bufsize=0,
                stdin=subprocess.PIPE,  # nothing is written: see _end_with_parent
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            theirs.close()
            with suppress(_Died):
                self.receive(None)
                return
            status = self.process.wait()
            if status >= 0:
                break
        raise RuntimeError(
            f"the math-verify worker ended with status {status} before its first comparison; "
            "its own message is on stderr"
        )

    def close(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            self.disconnect(process)

    def disconnect(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None, "`start` gives the worker a pipe"
        process.stdin.close()
        self.channel.close()


def _is_elsewhere(path: Path) -> bool:
    """Whether it exists and is neither the working folder nor relative to it."""
    try:
        return path.is_absolute() and not path.samefile(".")
    except OSError:
        return False


def _serve(channel: Connection) -> None:
    """The worker's loop, until the other end of its channel is closed."""
    _end_with_parent()
    _limit_memory()
    from math_verify import parse as parse_math
    from math_verify import verify

    logging.disable(logging.CRITICAL)  # math-verify warns that its timeouts are off
    channel.send((1, True))
    while True:
        number, *texts = channel.recv()
        try:
            gold, found = (parse_math(f"\\boxed{{{text}}}", parsing_timeout=None) for text in texts)
            verdict = bool(verify(gold, found, timeout_seconds=None))
        except Exception:  # a MemoryError, say
            verdict = None
        channel.send((number, verdict))


def _end_with_parent() -> None:
    """Have the kernel kill this process when the other end of stdin is closed (Linux).

    A thread that waited for that would need the interpreter's lock, which one operation on big
    integers holds for minutes. PR_SET_PDEATHSIG is about the parent's thread, not the parent.
    """
    if sys.platform == "linux":
        import fcntl
        import signal

        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        given = resource.getrlimit(resource.RLIMIT_AS)
        limit = min([MEMORY_BYTES, *(n for n in given if n != resource.RLIM_INFINITY)])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _new_worker() -> None:
    """A forked child has its own worker: not its parent's, which would live as long as a copy of
    its channel, nor a lock held while forking."""
    global _worker
    if _worker.process is not None:
        _worker.disconnect(_worker.process)
    _worker = _Worker()


_worker = _Worker()
atexit.register(lambda: _worker.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_worker)

if __name__ == "__main__":
    sys.path += [path for path in sys.argv[2:] if path not in sys.path]
    with suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])))
