"""How far a stage is: what it reports, and how that is shown."""

import io
import json
import re
import time

from npr_lib.progress import VARIABLE, report_progress
from npr_lib.workbench import progress


def test_report_progress_is_silent_without_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    report_progress(1, 2, reward=1.0)
    assert list(tmp_path.iterdir()) == []


def test_lines_are_rare_and_tell_the_time_left():
    stream = io.StringIO()
    lines = progress.Lines("stage", stream, seconds=3600)
    for step in range(900):
        lines.show({"time": float(step), "step": step, "total": 1000, "reward": 0.5})
    assert stream.getvalue() == "stage  step 0/1000  reward 0.5\n"
    lines.seconds = 0.0
    lines.show({"time": 940.0, "step": 940, "total": 1000, "reward": 0.5})
    assert stream.getvalue().splitlines()[-1] == "stage  step 940/1000  reward 0.5  1:00 left"
    # another part starts its own clock
    lines.show({"time": 950.0, "step": 0, "total": 10, "part": "sft"})
    assert stream.getvalue().splitlines()[-1] == "stage  sft  step 0/10"


def test_parts_side_by_side_keep_their_clocks():
    stream, terminal = io.StringIO(), Terminal()
    views = progress.Lines("stage", stream, seconds=0.0), progress.Bar("stage", terminal)
    began = time.time() - 60
    for step, part in ((0, "npr"), (0, "sr"), (1, "npr"), (2, "npr"), (1, "sr")):
        for view in views:
            view.show({"time": began + 30 * step, "step": step, "total": 3, "part": part})
    lines = stream.getvalue().splitlines()
    assert lines[2:] == [
        "stage  npr  step 1/3  1:00 left",
        "stage  npr  step 2/3  0:30 left",
        "stage  sr  step 1/3  1:00 left",
    ]
    # the sixty seconds since the part began, not since its line was drawn again
    assert re.search(r"stage sr \|.*step 1/3  01:0\d < 02:0\d left", terminal.getvalue())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_shows_stage_step_metrics_and_time_left(tmp_path, monkeypatch):
    events, terminal = tmp_path / "events", Terminal()
    monkeypatch.setenv(VARIABLE, str(events))
    with progress.watch(events, "[2/8] 01_npr_zero", terminal):
        report_progress(1, 4, reward=-0.25)
        time.sleep(0.5)
        report_progress(2, 4, reward=0.5, part="tail")
    shown = terminal.getvalue()
    assert "[2/8] 01_npr_zero |" in shown and "step 1/4" in shown and "reward -0.25" in shown
    # what is written last is shown too, under its own part
    assert "[2/8] 01_npr_zero tail |" in shown and "step 2/4" in shown and "left" in shown


def test_half_written_lines_wait(tmp_path):
    events, seen = tmp_path / "events", []
    whole = json.dumps({"step": 1, "total": 2, "time": 0})
    events.write_text(whole + "\n" + whole[:7])
    ended = type("Ended", (), {"wait": lambda self, seconds: True})()
    progress._follow(events, seen.append, ended)
    assert seen == [json.loads(whole)]
