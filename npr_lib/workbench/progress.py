"""How the progress of a stage is shown: a bar on a terminal, a plain line now and then elsewhere.

A stage runs in its own process and appends lines to a file (`npr_lib.progress`), which is tailed;
tqdm reckons the time left and writes the text.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

POLL_SECONDS = 0.2
LINE_SECONDS = 5.0
BAR = "{desc} |{bar:20}| step {n_fmt}/{total_fmt}  {elapsed} < {remaining} left{shown}"
LINE = "{desc}  step {n_fmt}/{total_fmt}{shown}  {remaining} left"


@contextmanager
def watch(path: Path, title: str, stream: TextIO | None = None) -> Iterator[None]:
    """Show the progress lines that appear in `path` until the block ends."""
    view = View(title, stream or sys.stderr)
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
    position = 0
    while True:
        last_look = ended.wait(POLL_SECONDS)
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                for line in file:
                    if line.endswith(b"\n"):  # or it is still being written
                        position += len(line)
                        show(json.loads(line))
        if last_look:
            return


class View:
    """On a terminal the part that was heard of last, drawn over and over in one line; elsewhere
    the first line, one every few seconds, and the last."""

    def __init__(self, title: str, stream: TextIO, seconds: float = LINE_SECONDS) -> None:
        self.title, self.stream, self.seconds = title, stream, seconds
        # part -> when it began, its first step, its last
        self.parts: dict[tuple, tuple[float, int, int]] = {}
        self.draw = tqdm.status_printer(stream) if stream.isatty() else None
        self.printed, self.held_back = float("-inf"), ""
        if self.draw:
            self.draw(title)

    def show(self, event: dict) -> None:
        text = self.text(**event)
        if self.draw:
            self.draw(text)
        elif time.monotonic() - self.printed < self.seconds:
            self.held_back = text
        else:
            print(text, file=self.stream, flush=True)
            self.printed, self.held_back = time.monotonic(), ""

    def text(self, *, time: float, step: int, total: int, part: str = "", **shown: Any) -> str:
        """One event, with the time left from the pace since its part's first; parts come one
        after another, or side by side, and begin anew with a smaller step."""
        began, first, last = self.parts.get((part, total), (time, step, step))
        if step < last:
            began, first = time, step
        self.parts[part, total] = began, first, step
        plain = not str(self.stream.encoding).lower().startswith("utf")
        terminal = {"bar_format": BAR, "ncols": shutil.get_terminal_size().columns, "ascii": plain}
        return tqdm.format_meter(
            step,
            total,
            time - began,
            initial=first,
            prefix="  ".join(filter(None, (self.title, part))),
            shown="".join(_shown(name, value) for name, value in shown.items()),
            **(terminal if self.draw else {"bar_format": LINE}),
        )

    def close(self) -> None:
        if self.draw:
            self.draw("")
            self.stream.write("\r")
        elif self.held_back:
            print(self.held_back, file=self.stream, flush=True)


def _shown(name: str, value: str | float | None) -> str:
    text = value if isinstance(value, str | None) else f"{value:.3g}"
    return "" if text is None else f"  {name} {text}"
