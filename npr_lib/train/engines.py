"""The engine that a stage decodes on, as the profile's section `engine` names it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from npr_lib.engine import Engine, EngineConfig, SamplingParams, SGLangEngine, TorchEngine
from npr_lib.engine.attention import use_npr_attention
from npr_lib.engine.checkpoint import check_model, load_checkpoint
from npr_lib.files import base_of
from npr_lib.reasoning.trajectory import Mode, Trajectory


@contextmanager
def rollout_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: EngineConfig,
    checkpoint: Path,
) -> Iterator[Any]:
    """An `Engine` on the weights of this model, gone when the stage is over.

    checkpoint: the model's folder, from which SGLang starts; it gets the weights from the trainer.
    Of several processes the main one has SGLang, and the others ask it.
    """
    if config.backend == "torch":
        yield TorchEngine(model, tokenizer, config)
        return
    engine = None
    if PartialState().is_main_process:
        engine = _sglang(config, checkpoint, model, tokenizer)
    use_npr_attention(model)
    try:
        yield engine if PartialState().num_processes == 1 else Shared(engine, tokenizer)
    finally:
        if engine is not None:
            engine.shutdown()


@contextmanager
def checkpoint_engine(folder: Path, config: EngineConfig) -> Iterator[Engine]:
    """An engine on a model folder, gone when the block ends. WorkbenchError if it is none."""
    check_model(folder)
    if config.backend == "torch":
        yield TorchEngine(*load_checkpoint(folder), config)
        return
    served = () if config.backend == "sglang" else load_checkpoint(folder)
    engine = _sglang(config, folder, *served)
    try:
        engine.weights_changed()  # a server elsewhere may have others
        yield engine
    finally:
        engine.shutdown()


def _sglang(
    config: EngineConfig,
    folder: Path,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> SGLangEngine:
    own: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    if config.backend != "sglang":
        return SGLangEngine(url=config.backend, config=config, **own)
    if "dtype" not in (config.sglang or {}):  # SGLang would take float16 for float32
        stored = AutoConfig.from_pretrained(base_of(folder) or folder).dtype
        dtype = model.dtype if model is not None else stored
        own["dtype"] = str(dtype or "float32").removeprefix("torch.")
    with _apart():
        return SGLangEngine(folder, config, **own)


@contextmanager
def _apart() -> Iterator[None]:
    """Processes that begin here are no ranks of this launch: torch would have them wait for its
    store."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    ours = [name for name in os.environ if name in names or name.startswith("TORCHELASTIC_")]
    taken = {name: os.environ.pop(name) for name in ours}
    try:
        yield
    finally:
        os.environ.update(taken)


class Shared:
    """An engine that the main process has and all processes ask together: each calls every time,
    with as many prompts as it has, and with the same parameters."""

    def __init__(self, engine: Engine | None, tokenizer: PreTrainedTokenizerBase) -> None:
        self.engine, self.tokenizer = engine, tokenizer

    def generate(
        self, prompts: Sequence[str], params: SamplingParams, n: int = 1, mode: Mode = "parallel"
    ) -> list[Trajectory]:
        """n trajectories for each of this process's prompts."""
        asked = gather_object([list(prompts)])
        answers: list[Any] = [None]
        if self.engine is not None:
            every = [prompt for own in asked for prompt in own]
            answers = [self.engine.generate(every, params, n, mode)]
        broadcast_object_list(answers)
        first = n * sum(map(len, asked[: PartialState().process_index]))
        return answers[0][first : first + n * len(prompts)]

    def weights_changed(self) -> None:
        """The main process hands its weights over, for all."""
        if self.engine is not None:
            self.engine.weights_changed()
