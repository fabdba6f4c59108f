"""A parallel model and its sequential twin, trained side by side.

They share nothing but what they read, and a small model hardly gains from a second thread: on two
cores two processes of one thread do nearly twice the work of one process of two.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch


def train_twins(
    train: Callable[..., Path],
    profile: dict[str, Any],
    run_dir: Path,
    starts: tuple[Path, Path],
    seed: int,
) -> tuple[Path, Path]:
    """The folders of both: `train(profile, run_dir, start, seed, mode)`, parallel and sequential.

    Each gets half of the threads; with a GPU, or one thread only, they take turns. What one of
    them raises ends the other, whose checkpoints stay, and is raised here.

    Args:
        train: `sft.train` or `papo.train`.
        starts: the model folders that the parallel one and the sequential one start from.
    """
    modes = ("parallel", "sequential")
    calls = [
        (profile, run_dir, start, seed, mode) for start, mode in zip(starts, modes, strict=True)
    ]
    threads = torch.get_num_threads() // 2
    if torch.cuda.is_available() or not threads:
        return train(*calls[0]), train(*calls[1])
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    with ProcessPoolExecutor(2, context, _begin, (threads,)) as pool:
        futures = [pool.submit(train, *call) for call in calls]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise
    return futures[0].result(), futures[1].result()


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A notebook that was killed leaves nobody who writes into its run."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
