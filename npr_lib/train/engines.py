"""The engine that an RL stage rolls out on, as the profile's section `engine` names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npr_lib import WorkbenchError
from npr_lib.engine import Engine, EngineConfig, SGLangEngine, TorchEngine


@contextmanager
def rollout_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: EngineConfig,
    checkpoint: Path,
) -> Iterator[Engine]:
    """An engine on the weights of this model, gone when the stage is over.

    checkpoint: the model's folder, from which SGLang starts; it gets the weights from the trainer.
    """
    if config.backend == "torch":
        yield TorchEngine(model, tokenizer, config)
        return
    if PartialState().num_processes > 1:
        raise WorkbenchError(
            f"engine.backend = {config.backend!r}: one training process only, since each would "
            "hand over its own weights; use engine.backend = 'torch'"
        )
    own: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    if config.backend == "sglang":
        own |= {"model_path": checkpoint, "dtype": str(model.dtype).removeprefix("torch.")}
    else:
        own["url"] = config.backend
    engine = SGLangEngine(config=config, **own)
    try:
        yield engine
    finally:
        engine.shutdown()
