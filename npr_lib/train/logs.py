"""What a training run writes down as it goes: `log.jsonl`, one line a logged step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback

from npr_lib.progress import report_progress

SHOWN = ("reward", "accuracy", "format", "eval_reward", "loss")


def log_to(trainer: Trainer, folder: Path, name: str) -> None:
    """Let a trainer log to `folder`/log.jsonl and as progress of `name`, instead of printing."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogWriter(folder, name))


class LogWriter(TrainerCallback):
    """Every logged step as a line of `log.jsonl`, and as progress.

    A run that goes on from a checkpoint drops the lines after it: their steps come again. So does
    a last line that was cut off.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / "log.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= state.global_step]
        self.path.write_text("".join(kept) if state.global_step else "")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "train_runtime" in logs or not state.is_world_process_zero:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        shown = {name: logs[name] for name in SHOWN if name in logs}
        report_progress(state.global_step, state.max_steps, part=self.name, **shown)
