"""How a stage tells how far it is: a line in a file that whoever runs it watches; and durations."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

VARIABLE = "NPR_PROGRESS"


def report_progress(step: int, total: int, **metrics: Any) -> None:
    """Say that `step` of `total` steps are done; shown as a bar when the pipeline runs this.

    Args:
        step: steps finished, 0..total. A smaller step than the part's last starts it anew.
        total: steps altogether.
        metrics: what to show beside it: numbers (`reward=0.4`) and short strings
            (`part="NPR-Beta"` names the part of the stage; parts may run side by side).

    Does nothing when the environment variable NPR_PROGRESS is not set.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    event = {"time": time.time(), "step": int(step), "total": int(total)}
    event |= {name: _plain(value) for name, value in metrics.items()}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def duration(seconds: float) -> str:
    """`75` -> `1:15`, `3700` -> `1:01:40`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _plain(value: Any) -> Any:
    """A JSON value: numbers of numpy and torch become floats."""
    return value if isinstance(value, str | int | float | None) else float(value)
