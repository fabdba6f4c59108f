"""Training runs that go on where they stopped, and never cost a model that is there.

A model is trained in a folder beside its own, `npr.training`: `checkpoint-N` folders of the trainer
(weights, optimizer, scheduler, random states) and `training.json`, which says what is trained
there; only a run with the same identity goes on from a checkpoint. When it has ended, the folder
takes the model's name. A model that was there before is set aside, not deleted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from npr_lib.engine.checkpoint import check_model, save_model
from npr_lib.files import TRAINING, model_digest, set_aside, write_json
from npr_lib.reasoning.style import Style
from npr_lib.reasoning.trajectory import Mode
from npr_lib.train.card import write_card


@dataclass(frozen=True, slots=True)
class Training:
    """folder: the model's; work: where it is trained; resume: the trainer's last checkpoint there;
    done: a run of the same identity has ended before."""

    folder: Path
    work: Path
    resume: str | None = None
    done: bool = False


def begin_training(folder: Path, source: Path | None, identity: Mapping[str, Any]) -> Training:
    """Where a training of this identity stands: done, begun, or to begin.

    source: the model folder that it starts from, if any, a part of the identity. WorkbenchError if
    that is no model folder.
    """
    every = json.loads(json.dumps(identity))
    if source is not None:
        check_model(source)
        every["start"] = model_digest(source)
    with PartialState().main_process_first():  # the others find what it leaves
        return _begin(folder, every)


def _begin(folder: Path, identity: Mapping[str, Any]) -> Training:
    if (folder / "npr.json").exists() and _read(folder) == identity:
        print(f"{folder} was trained before, with the same settings: nothing to do")
        return Training(folder, folder, done=True)
    work = folder.with_name(f"{folder.name}.training")
    if work.exists():
        if _read(work) == identity:
            return Training(folder, work, _last_checkpoint(work))
        print(f"begun with other settings, input or source: set aside as {set_aside(work)}")
    work.mkdir(parents=True)
    write_json(work / TRAINING, identity)
    return Training(folder, work)


def _read(folder: Path) -> Any:
    record = folder / TRAINING
    return json.loads(record.read_text(encoding="utf-8")) if record.exists() else None


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint. One whose writing was cut off is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in reversed(found):
        if _is_whole(path):
            return str(path)
        shutil.rmtree(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """The trainer's state is written last by the main process; each process writes its own random
    state (a zip, whose directory is at its end), without waiting for the others."""
    states = list(checkpoint.glob("rng_state*.pth"))
    try:
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return len(states) == PartialState().num_processes and all(map(is_zipfile, states))


def train(trainer: Trainer, resume: str | None) -> None:
    """Train to the end, from the checkpoint that `begin_training` gave."""
    # Tied weights are written once; the trainer would call the others missing when it loads.
    trainer.model._keys_to_ignore_on_save = set(trainer.model.all_tied_weights_keys)
    if resume is not None:
        state = TrainerState.load_from_json(str(Path(resume) / TRAINER_STATE_NAME))
        if state.global_step >= state.max_steps:  # the trainer would make one step too many
            best = state.best_global_step if trainer.args.load_best_model_at_end else None
            number = best or state.global_step
            trainer._load_from_checkpoint(str(Path(resume).with_name(f"checkpoint-{number}")))
            return
    trainer.train(resume_from_checkpoint=resume)


def finish_training(
    training: Training,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mode: Mode,
    style: Style,
) -> Path:
    """Save the model under its own name; the trainer's checkpoints are removed. The main process
    does it, the others wait. Returns the model's folder."""
    if PartialState().is_main_process:
        save_model(model, tokenizer, training.work, mode, style)
        write_card(training.work, training.folder.name, mode, style)
        for path in training.work.glob("checkpoint-*"):
            shutil.rmtree(path)
        if training.folder.exists():
            print(f"the {training.folder.name} of before: {set_aside(training.folder)}")
        training.work.rename(training.folder)
    PartialState().wait_for_everyone()
    return training.folder
