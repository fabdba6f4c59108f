r"""The process that compares answers: killed when time is up, and never answering out of turn.

A comparison runs sympy on what a model wrote, and some of what a model writes never ends: signals
wait for the bytecode to end, and one long operation on big integers is one. So comparisons run in a
worker process that is killed after `TIMEOUT_SECONDS` (and limited to `MEMORY_BYTES` on Linux): any
thread can ask, one comparison at a time. It starts at the first comparison that needs it (about a
second) and then answers some 1,500 a second.

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
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not at run time: the worker begins with this file alone
    from npr_lib.verify.policy import Policy

TIMEOUT_SECONDS = 5.0
MEMORY_BYTES = 4 << 30  # or the limit this process has itself, where that is lower
MAX_ANSWER_CHARS = 2_000  # longer answers are right only when they are equal strings

_FILE = str(Path(__file__).resolve())
_log = logging.getLogger(__name__)


def ask(
    expected: str, found: str, policy: Policy | None = None, timeout: float = TIMEOUT_SECONDS
) -> bool | None:
    """`compare.verdict` in the worker; None also after `timeout` seconds. RuntimeError when no
    worker can be started."""
    return _worker.compare(expected, found, policy, timeout)


class _Died(Exception):  # noqa: N818 - never leaves this module
    """The worker ended before it answered."""


class _Worker:
    """The process: (number, expected, found, policy) in, (number, verdict) out.

    A plain subprocess, since multiprocessing would import the main program again (a training
    script, a notebook) and can't be started from daemonic processes.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Connection
        self.asked = self.answered = 0  # numbers; they differ while the worker owes an answer

    def compare(
        self, expected: str, found: str, policy: Policy | None, timeout: float
    ) -> bool | None:
        verdict = None
        with self.lock:
            try:
                for _ in range(2):  # what kills two workers can't be compared
                    with suppress(_Died):
                        verdict = self.ask(expected, found, policy, timeout)
                        break
            finally:
                if self.asked != self.answered:
                    self.close()
        if verdict is None:
            _log.warning("no verdict (%g s at most): %.80r for %.80r", timeout, found, expected)
        return verdict

    def ask(self, expected: str, found: str, policy: Policy | None, timeout: float) -> bool | None:
        """The verdict, None when there is none, or none in time."""
        # `compare` closes a worker that owes an answer, unless a second exception kept it from that
        owes = self.asked != self.answered
        if owes or self.process is None or self.process.poll() is not None:
            self.close()
            self.start()
        self.asked += 1
        with suppress(BrokenPipeError):  # then there is no answer either
            # Never waits: a question is shorter than the channel's buffer (MAX_ANSWER_CHARS).
            self.channel.send((self.asked, expected, found, policy))
        return self.receive(timeout)

    def receive(self, timeout: float | None) -> bool | None:
        """The verdict on the question just asked, None when there is none."""
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
            f"the worker that compares answers ended with status {status} before its first "
            "comparison; its own message is on stderr"
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
    from npr_lib.verify.compare import verdict

    channel.send((1, True))
    while True:
        number, *question = channel.recv()
        result: bool | None
        try:
            result = verdict(*question)
        except Exception:  # a MemoryError, say
            result = None
        channel.send((number, result))


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
    # this package's own folder last, lest a file beside it stand in for a library
    sys.path += [p for p in (*sys.argv[2:], str(Path(_FILE).parents[2])) if p not in sys.path]
    with suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])))
