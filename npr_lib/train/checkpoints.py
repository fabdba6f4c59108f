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

import torch
from accelerate import PartialState
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME

from npr_lib import WorkbenchError
from npr_lib.digests import TRAINING, digest, source_digest
from npr_lib.manifest import write_json
from npr_lib.tokenizer import TagIds
from npr_lib.trajectory import Mode


def load_checkpoint(path: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Hugging Face folder as (model, tokenizer); WorkbenchError if it is none."""
    _check_model(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    # before an engine is made over it: the KV pool lies where the model is
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, AutoTokenizer.from_pretrained(path)


def load_trainable(path: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`load_checkpoint` for a training; WorkbenchError also for weights that hardly would learn."""
    model, tokenizer = load_checkpoint(path)
    check_precision(model, str(path))
    return model, tokenizer


def check_precision(model: PreTrainedModel, name: str) -> None:
    """WorkbenchError if weights that train are of a type narrower than float32.

    AdamW moves a weight by about the learning rate. bfloat16 has 8 bits: its next value is at least
    0.4 % away, so the step is rounded to nothing and the loss is as if nothing were amiss.
    """
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    narrow = sorted(str(t).removeprefix("torch.") for t in trained if t.itemsize < 4)
    if narrow:
        raise WorkbenchError(
            f"{name} has {' and '.join(narrow)} weights to train, which round small updates away: "
            "of bfloat16 weights 20 steps of AdamW change 2 % at learning rate 1e-6 and 0.2 % at "
            "1e-7, of float32 ones 100 %. Train float32 weights (model.path without a dtype, or "
            "with dtype: float32) and compute in bfloat16 by autocast: grpo.bf16: true and "
            "sft.trl.bf16: true"
        )


def _check_model(path: Path | str) -> None:
    if not (Path(path) / "config.json").is_file():
        raise WorkbenchError(f"{path} is not a model folder: it has no config.json")


def begin_training(folder: Path, source: Path, settings: Mapping[str, Any]) -> str | None:
    """The trainer's last checkpoint in `folder` if it belongs to this very run; else an emptied
    folder (which is said, where something was in it) and None.

    What a run is: `settings` (as JSON), the content of the model folder `source` and the source of
    `npr_lib`. WorkbenchError if `source` is no model folder.
    """
    _check_model(source)  # before anything is removed
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
        _save(model, tokenizer, folder, mode)
    PartialState().wait_for_everyone()


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, mode: Mode
) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "npr.json").write_text(json.dumps({"mode": mode}) + "\n")
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def checkpoint_mode(folder: Path | str) -> Mode:
    """The mode a checkpoint was trained for, as its `npr.json` says.

    Without one, a model with the eight tags as tokens is taken for a parallel one, which is said,
    and any other for a sequential one.
    """
    path = Path(folder) / "npr.json"
    if path.exists():
        return json.loads(path.read_text())["mode"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    try:
        TagIds.from_tokenizer(tokenizer)
    except ValueError:
        return "sequential"
    print(f"{folder} has no npr.json but the tags as tokens: decoded in mode parallel")
    return "parallel"
