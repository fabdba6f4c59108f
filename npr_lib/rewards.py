r"""The format reward, the accuracy reward and what stages 1 and 3 make of them.

**Format.** `PENALTIES` gives every kind of violation its penalty. The reward is their sum over
the kinds present, each once however often it occurs; only the kinds in `PER_ITEM` count once for
every plan, step or takeaway concerned ("-0.4 for each ..."). An item that holds tags is not
measured, so no item is counted twice. The sum is clipped at -2.

**Accuracy of mathematics.** What was found about math-verify 0.9:

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
import math
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, TextIO

from npr_lib.reasoning.schema import ReasoningGraph, ViolationKind, last_boxed, parse

Invalid = Literal["filter", "penalize"]
Verifier = Callable[[str, Any], bool]  # (predicted, answer) -> right or wrong

PENALTIES: Mapping[ViolationKind, float] = MappingProxyType(
    {
        ViolationKind.EMPTY: -2.0,
        ViolationKind.NO_BLOCK: -1.5,
        ViolationKind.TAGS_OUTSIDE_BLOCKS: -1.5,
        ViolationKind.NO_PLAN: -1.0,
        ViolationKind.COUNT_MISMATCH: -1.0,
        ViolationKind.TAGS_AFTER_BLOCKS: -1.0,
        ViolationKind.MISSING_BOX: -1.0,
        ViolationKind.MISPLACED_TAG: -1.0,
        ViolationKind.PLAN_INDEX: -1.0,
        ViolationKind.STEP_INDEX: -1.0,
        ViolationKind.UNCLOSED: -1.0,
        ViolationKind.TRUNCATED: -1.0,
        ViolationKind.TOO_MANY_BRANCHES: -1.0,
        ViolationKind.TOO_DEEP: -1.0,
        ViolationKind.SPELLED_TAG: -1.0,
        ViolationKind.SHORT_PLAN: -0.4,
        ViolationKind.SHORT_STEP: -0.4,
        ViolationKind.SHORT_TAKEAWAY: -0.4,
        ViolationKind.TAGS_IN_PLAN: -0.4,
        ViolationKind.TAGS_IN_STEP: -0.4,
        ViolationKind.TAGS_IN_TAKEAWAY: -0.4,
        ViolationKind.STRAY_TEXT_IN_GUIDELINE: -0.2,
        ViolationKind.STRAY_TEXT_BETWEEN_STEPS: -0.2,
        ViolationKind.STRAY_TEXT_OUTSIDE_BLOCKS: -0.2,
    }
)
PER_ITEM = frozenset(kind for kind, penalty in PENALTIES.items() if penalty == -0.4)
LOWEST_FORMAT_REWARD = -2.0
TIMEOUT_SECONDS = 5.0
MEMORY_BYTES = 4 << 30
MAX_ANSWER_CHARS = 2_000  # longer answers are right only when they are equal strings

_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")
_log = logging.getLogger(__name__)


def format_reward(text_or_graph: str | ReasoningGraph, **parse_options: Any) -> float:
    """r_f in [-2, 0], 0 exactly when the response is valid (section 7).

    parse_options: those of `schema.parse`, for a text; TypeError together with a graph, which was
    already parsed under its own.
    """
    if isinstance(text_or_graph, ReasoningGraph):
        if parse_options:
            raise TypeError("format_reward takes parse options for a text, not for a graph")
        graph = text_or_graph
    else:
        graph = parse(text_or_graph, **parse_options)
    counts = Counter(violation.kind for violation in graph.violations)
    total = sum(PENALTIES[kind] * (n if kind in PER_ITEM else 1) for kind, n in counts.items())
    return max(LOWEST_FORMAT_REWARD, round(total, 1) + 0.0)


def accuracy_reward(text: str, answer: Any, verifier: Verifier | None = None) -> float:
    r"""r_a: 1 when the content of the last `\boxed{}` of the text is right, else -1.

    verifier: the problem set's own (predicted, answer) -> bool; `math_equal` without one. A text
    without a box is wrong and no verifier is asked.
    """
    predicted = last_boxed(text)
    if predicted is None:
        return -1.0
    return 1.0 if (verifier or math_equal)(predicted, answer) else -1.0


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


def stage1_reward(r_f: float, r_a: float) -> float:
    """NPR-Zero: the format first, then accuracy."""
    return r_f if r_f < 0 else r_a


def stage3_reward(
    r_f: float,
    r_a: float,
    span_share: float = 1.0,
    invalid: Invalid = "filter",
    span_bonus: float = 0.0,
) -> float:
    """NPR: accuracy. A response with violations (r_f < 0) is left out of loss and statistics,
    which nan says ("filter", the paper's way), or kept at -1 ("penalize").

    A right answer earns 1 + span_bonus * (1 - span_share), span_share = span / work in (0, 1]: more
    the shorter its critical path, against collapse into sequential reasoning (ThreadWeaver).
    """
    if invalid not in ("filter", "penalize"):
        raise ValueError(f"invalid must be 'filter' or 'penalize', not {invalid!r}")
    if r_f < 0:
        return math.nan if invalid == "filter" else -1.0
    return r_a * (1 + span_bonus * (1 - span_share)) if r_a > 0 else r_a


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
