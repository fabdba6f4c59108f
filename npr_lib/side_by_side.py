"""Two at a time: work that shares nothing but what it reads, in a process each.

A small model gains little from a second thread: on two cores two processes of one thread do more
than one process of two.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

import cloudpickle
import torch

from npr_lib import WorkbenchError

T = TypeVar("T")


def side_by_side(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
    """`[function(*call) for call in calls]`, two at a time; `function` may be a notebook's own.

    Each process gets half of the cores, at most as many threads as this one has. With a GPU, with
    one core only, for one call or inside of such a call, they take turns in this process. What one
    raises ends the others and is raised here; WorkbenchError if a process died.
    """
    if at_once() == 1 or len(calls) < 2:
        return [function(*call) for call in calls]
    threads = min(_cores() // 2, torch.get_num_threads())
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    with ProcessPoolExecutor(2, context, _begin, (threads,)) as pool:
        futures = [pool.submit(_call, cloudpickle.dumps((function, call))) for call in calls]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException as error:
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise WorkbenchError(
                    f"a process of {name_of(function)} died (out of memory, "
                    "or killed); run it again, it goes on from what was saved"
                ) from error
            raise
    return [cloudpickle.loads(future.result()) for future in futures]


def _call(packed: bytes) -> bytes:
    """In the other process. Packed by cloudpickle, which also takes functions of a notebook."""
    function, arguments = cloudpickle.loads(packed)
    return cloudpickle.dumps(function(*arguments))


def at_once() -> int:
    """How many calls `side_by_side` makes at a time."""
    nested = multiprocessing.parent_process() is not None
    return 1 if nested or torch.cuda.is_available() or _cores() < 2 else 2


def _cores() -> int:
    """The cores that this process may use, as far as the system tells."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A notebook that was killed leaves nobody who writes into its run."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a process of the pool"
    wait([parent.sentinel])
    os._exit(1)


def name_of(function: Callable[..., Any]) -> str:
    """`module.name` of a function, for people."""
    function = getattr(function, "func", function)  # of a partial
    return f"{function.__module__}.{function.__qualname__}"
