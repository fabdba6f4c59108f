"""Stage 0: where everything starts, a model that exists or the tiny one, trained from nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npr_lib.engine.checkpoint import style_for
from npr_lib.files import model_digest
from npr_lib.identity import closure
from npr_lib.profiles.sections import Profile
from npr_lib.profiles.stage import Stage
from npr_lib.tasks import problems
from npr_lib.tasks.parts import seed as tiny
from npr_lib.tasks.parts.corpus import Document, corpus
from npr_lib.train import cold_start
from npr_lib.train.adopt import adopt, located
from npr_lib.train.checkpoints import begin_training, finish_training


def train(stage: Stage) -> Path:
    """run_dir / "seed", a Hugging Face folder with `log.jsonl`: the model that `model.path` names,
    or the tiny one, pretrained on the corpus. What was made before, of the same, is kept."""
    profile, folder = stage.profile, stage.run_dir / "seed"
    training = begin_training(folder, None, _identity(profile, stage.seed))
    if training.done:
        return folder
    if "path" in profile.model:
        model, tokenizer = adopt(profile.model)
        (training.work / "log.jsonl").touch()
        if profile.cold_start.source != "none":
            cold_start.train(stage, model, tokenizer, training)
    else:
        read = documents(profile, stage.seed)
        model, tokenizer = tiny.train(profile.seed, profile.model, read, training.work, stage.seed)
    # stage 1 rolls out sequentially, so that is how its starting point is measured
    style = style_for(tokenizer, profile.engine)
    return finish_training(training, model, tokenizer, "sequential", style)


def documents(profile: Profile, seed: int, folder: Path | None = None) -> Iterator[Document]:
    """What the seed reads. folder: the seed's, which knows what a model that existed already has
    read in its cold start."""
    if "path" in profile.model:
        return iter(cold_start.documents(folder) if folder else ())
    return corpus(profile.seed.corpus, profile.problems, profile.prompt, seed)


def _identity(profile: Profile, seed: int) -> dict[str, Any]:
    # the style is written down with the model
    found: dict[str, Any] = {"model": profile.model, "style": profile.engine.style}
    modules, settings = ["npr_lib.tasks.parts.seed"], asdict(profile.seed)
    if "path" in profile.model:
        found["content"] = model_digest(Path(located(profile.model["path"])))
        if profile.cold_start.source == "none":
            return found | {"code": closure("npr_lib.train.adopt")}
        found["files"] = cold_start.files(profile)
        modules = ["npr_lib.train.adopt", "npr_lib.train.cold_start"]
        settings = asdict(profile.cold_start)
        if profile.cold_start.source == "few_shot":
            found["engine"] = asdict(profile.engine)
    return found | {
        "settings": settings,
        "task": {"problems": profile.problems, "prompt": profile.prompt},
        "kind": problems.identity(profile.problems),
        "seed": seed,
        "code": closure(*modules, "npr_lib.tasks.parts.corpus"),
    }
