"""How far a stage is: what it reports, and how that is shown."""

import io
import json
import re
import time

from npr_lib.progress import VARIABLE, duration, report_progress
from npr_lib.workbench import progress


def test_report_progress_is_silent_without_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    report_progress(1, 2, reward=1.0)
    assert list(tmp_path.iterdir()) == []


def test_lines_are_rare_and_tell_the_time_left():
    stream = io.StringIO()
    lines = progress.View("stage", stream, seconds=3600)
    for step in range(900):
        lines.show({"time": float(step), "step": step, "total": 1000, "reward": 0.5, "lr": None})
    assert stream.getvalue() == "stage  step 0/1000  reward 0.5  ? left\n"
    lines.seconds = 0.0
    lines.show({"time": 940.0, "step": 940, "total": 1000, "reward": 0.5})
    assert stream.getvalue().splitlines()[-1] == "stage  step 940/1000  reward 0.5  01:00 left"
    # another part starts its own clock, and so does one that begins anew
    lines.show({"time": 950.0, "step": 0, "total": 10, "part": "sft"})
    assert stream.getvalue().splitlines()[-1] == "stage  sft  step 0/10  ? left"
    for when, step in enumerate((4, 2), 960):
        lines.show({"time": when, "step": step, "total": 10, "part": "sft", "rule": "x"})
    assert stream.getvalue().splitlines()[-1] == "stage  sft  step 2/10  rule x  ? left"


def test_the_last_line_is_printed_though_it_comes_early():
    stream = io.StringIO()
    lines = progress.View("stage", stream, seconds=3600)
    for step in range(4):
        lines.show({"time": float(step), "step": step, "total": 3})
    lines.close()
    assert stream.getvalue() == "stage  step 0/3  ? left\nstage  step 3/3  00:00 left\n"


def test_parts_side_by_side_keep_their_clocks():
    stream, terminal = io.StringIO(), Terminal()
    views = progress.View("stage", stream, seconds=0.0), progress.View("stage", terminal)
    for step, part in ((0, "npr"), (0, "sr"), (1, "npr"), (2, "npr"), (1, "sr")):
        for view in views:
            view.show({"time": 100.0 + 30 * step, "step": step, "total": 3, "part": part})
    lines = stream.getvalue().splitlines()
    assert lines[2:] == [
        "stage  npr  step 1/3  01:00 left",
        "stage  npr  step 2/3  00:30 left",
        "stage  sr  step 1/3  01:00 left",
    ]
    assert re.search(r"stage  sr \|.*step 1/3  00:30 < 01:00 left", terminal.getvalue())


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
    assert "[2/8] 01_npr_zero  tail |" in shown and "step 2/4" in shown and "left" in shown
    # it is drawn in one line, which is wiped at the end
    assert "\n" not in shown and shown.endswith("\r") and not shown.split("\r")[-2].strip()


def test_durations():
    assert [duration(seconds) for seconds in (3, 74.6, 3700)] == ["0:03", "1:15", "1:01:40"]


def test_half_written_lines_wait(tmp_path):
    events, seen = tmp_path / "events", []
    whole = json.dumps({"step": 1, "total": 2, "time": 0})
    events.write_text(whole + "\n" + whole[:7])
    ended = type("Ended", (), {"wait": lambda self, seconds: True})()
    progress._follow(events, seen.append, ended)
    assert seen == [json.loads(whole)]
