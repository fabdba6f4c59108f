"""The index of a run: what failed, the headline, the stages, the manifest, the files."""

from __future__ import annotations

import json
from pathlib import Path

from npr_lib.workbench.pages.notebook import EXPLORE
from npr_lib.workbench.pages.state import ENDED_BADLY, out_of_date, touch
from npr_lib.workbench.pages.template import page, render

HEADLINE = "metrics/headline.json"


def write_index(run_dir: Path) -> Path:
    """Write `index.html` of a run; what a stage left that is out of date is marked as that."""
    run = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    stages, late = run["stages"], out_of_date(run["stages"])

    def existing(*paths: str) -> str | None:
        return next((path for path in paths if (run_dir / path).exists()), None)

    def why(path: str) -> str | None:
        """Why a file is out of date: for the reason its maker is."""
        makers = [name for name, stage in stages.items() if touch([path], stage.get("outputs", ()))]
        return next((late[name] for name in makers if name in late), None)

    metrics = [f"metrics/{path.name}" for path in sorted((run_dir / "metrics").glob("*.json"))]
    pages = [f"html/{path.name}" for path in sorted((run_dir / "html").glob("*.html"))]
    body = render(
        "index.html",
        run=run,
        late=late,
        ended_badly=ENDED_BADLY,
        existing=existing,
        why=why,
        headline=_headline(run_dir),
        headline_is_late=why(HEADLINE),
        explore=existing(EXPLORE),
        others=[path for path in pages if Path(path).stem not in stages],
        aside=[path.relative_to(run_dir).as_posix() for path in _aside(run_dir)],
        metrics=[path for path in (*metrics, "speed.json") if existing(path)],
    )
    target = run_dir / "index.html"
    target.write_text(page(f"NPR Workbench: {run['run']}", body), encoding="utf-8")
    return target


def _aside(run_dir: Path) -> list[Path]:
    """What reruns replaced (`files.set_aside`), in the run's folder and in those in it."""
    return sorted([*run_dir.glob("aside/*"), *run_dir.glob("*/aside/*")])


def _headline(run_dir: Path) -> dict[str, tuple[list, list[list]]]:
    """The tables in `metrics/headline.json`, title -> columns, rows; there as orient="split"."""
    path = run_dir / HEADLINE
    tables = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {
        title: (
            ["", *split["columns"]],
            [[name, *row] for name, row in zip(split["index"], split["data"], strict=True)],
        )
        for title, split in tables.items()
    }
