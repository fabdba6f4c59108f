"""Model folders, and training runs that go on where they stopped.

A training folder holds the finished model, or, until it is finished, `checkpoint-N` folders of the
trainer (weights, optimizer, scheduler, random states) and `training.json`, which says what is
trained there: only a run with the same settings, input and source goes on from a checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME

from npr_lib.engine.checkpoint import (
    check_model,
    check_precision,
    load_checkpoint,
    save_model,
)
from npr_lib.files import TRAINING, digest, source_digest, write_json
from npr_lib.reasoning.trajectory import Mode


def load_trainable(path: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`load_checkpoint` for a training; WorkbenchError also for weights that hardly would learn."""
    model, tokenizer = load_checkpoint(path)
    check_precision(model, str(path))
    return model, tokenizer


def begin_training(folder: Path, source: Path, settings: Mapping[str, Any]) -> str | None:
    """The trainer's last checkpoint in `folder` if it belongs to this very run; else an emptied
    folder (which is said, where something was in it) and None.

    What a run is: `settings` (as JSON), the content of the model folder `source` and the source of
    `npr_lib`. WorkbenchError if `source` is no model folder.
    """
    check_model(source)  # before anything is removed
    identity = {
        "settings": json.loads(json.dumps(settings, default=str)),
        "source": digest(source),
        "npr_lib": source_digest(),
    }
    with PartialState().main_process_first():  # the others find what it leaves
        return _begin(folder, identity)


def finished(folder: Path) -> bool:
    """Whether the run that `begin_training` was asked for ended before; says so."""
    done = (folder / "npr.json").exists()
    if done:
        print(f"{folder} was trained before, with the same settings: nothing to do")
    return done


def _begin(folder: Path, identity: Mapping[str, Any]) -> str | None:
    record = folder / TRAINING
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) == identity:
        return _last_checkpoint(folder)
    if folder.exists():
        print(f"{folder} begins anew: what is there is of other settings, input or source")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(record, identity)
    return None


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint. One whose writing was cut off is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in reversed(found):
        try:  # the trainer's state is written last
            TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(path)
        else:
            return str(path)
    return None


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


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, mode: Mode
) -> None:
    """The finished model as a Hugging Face folder, and `npr.json` that says in which mode it was
    trained. The trainer's own checkpoints are removed. The main process does it, the others wait.
    """
    if PartialState().is_main_process:
        save_model(model, tokenizer, folder, mode)
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path)
    PartialState().wait_for_everyone()
