"""How the progress of a stage is shown: a bar on a terminal, a plain line now and then elsewhere.

A stage runs in its own process and appends lines to a file (`npr_lib.progress`), which is tailed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from npr_lib.progress import duration as duration

POLL_SECONDS = 0.2
LINE_SECONDS = 5.0


@contextmanager
def watch(path: Path, title: str, stream: TextIO | None = None) -> Iterator[None]:
    """Show the progress lines that appear in `path` until the block ends."""
    stream = stream or sys.stderr
    view = Bar(title, stream) if stream.isatty() else Lines(title, stream)
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(path, view.show, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        view.close()


def _follow(path: Path, show: Callable[[dict], None], ended: threading.Event) -> None:
    """Hand every complete line of a growing file to `show`, also those written last."""
    position, rest = 0, b""
    while True:
        last_look = ended.wait(POLL_SECONDS)
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                chunk = file.read()
            position += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                show(json.loads(line))
        if last_look:
            return


def describe(event: dict) -> str:
    """The metrics of a progress event as text, such as `reward 0.43  kept 1`."""
    shown = []
    for name, value in event.items():
        if name in ("time", "step", "total", "part") or value is None:
            continue
        text = value if isinstance(value, str) else f"{value:.3g}"
        shown.append(f"{name} {text}")
    return "  ".join(shown)


class Parts:
    """Where the parts of a stage began; they come one after another, or side by side."""

    def __init__(self) -> None:
        self.seen: dict[tuple, tuple[dict, int]] = {}  # part -> its first event, its last step

    def first(self, event: dict) -> dict:
        """The first event of this event's part, which is itself where steps begin anew."""
        part = (event.get("part"), event["total"])
        start, last = self.seen.get(part, (event, event["step"]))
        start = event if event["step"] < last else start
        self.seen[part] = (start, event["step"])
        return start


class Bar:
    """A tqdm bar for a terminal, of the part that was heard of last; tqdm reckons the time left."""

    FORMAT = "{desc} |{bar:20}| step {n_fmt}/{total_fmt}{postfix}  {elapsed} < {remaining} left"

    def __init__(self, title: str, stream: TextIO) -> None:
        self.title, self.stream, self.parts = title, stream, Parts()
        self.start: dict | None = None
        self.bar = tqdm(desc=title, file=stream, bar_format="{desc} {elapsed}", leave=False)

    def show(self, event: dict) -> None:
        start = self.parts.first(event)
        if start is not self.start:
            self.start = start
            self.bar.close()
            title = " ".join(filter(None, (self.title, event.get("part"))))
            self.bar = tqdm(
                desc=title,
                total=event["total"],
                initial=start["step"],
                file=self.stream,
                bar_format=self.FORMAT,
                leave=False,
                dynamic_ncols=True,
            )
            self.bar.start_t = start["time"]
        self.bar.set_postfix_str(describe(event), refresh=False)
        self.bar.n = event["step"]
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()


class Lines:
    """Plain lines for a log: the first, and one every few seconds."""

    def __init__(self, title: str, stream: TextIO, seconds: float = LINE_SECONDS) -> None:
        self.title, self.stream, self.seconds, self.parts = title, stream, seconds, Parts()
        self.printed = float("-inf")

    def show(self, event: dict) -> None:
        start = self.parts.first(event)
        now = time.monotonic()
        if now - self.printed < self.seconds:
            return
        self.printed = now
        words = [self.title, event.get("part"), f"step {event['step']}/{event['total']}"]
        words += [describe(event), _left(start, event)]
        print("  ".join(filter(None, words)), file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing to put back in order."""


def _left(start: dict, event: dict) -> str:
    """The time left, from the pace since the part's first event."""
    done = event["step"] - start["step"]
    if done <= 0:
        return ""
    left = (event["time"] - start["time"]) / done * (event["total"] - event["step"])
    return f"{duration(left)} left"
