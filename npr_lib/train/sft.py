"""Stage 2, parallel warm-up: SFT on the distilled responses under the mask (paper section 3.2).

The *original* model learns NPR-Zero's responses as NPR-Beta: tags as tokens, branches that don't
see each other, positions of parallel decoding, and a loss on exactly the tokens it will have to
sample (the engine writes `<step>`, "i:" and `<takeaway>`, with its style's white space around
them). SR-Beta, the sequential baseline, gets the same data, order and steps with a causal mask, and
a loss on every completion token, since it must write those itself.

    sft.train(stage)                       # NPR-Beta
    sft.train(stage, mode="sequential")    # SR-Beta
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from npr_lib import WorkbenchError
from npr_lib.engine.attention import use_npr_attention
from npr_lib.engine.checkpoint import style_for
from npr_lib.identity import closure, fingerprint
from npr_lib.profiles.stage import Stage
from npr_lib.reasoning.layout import Layout, causal_layout, layout, sampled_tokens
from npr_lib.reasoning.mask import pack
from npr_lib.reasoning.schema import parse_unlimited
from npr_lib.reasoning.style import COMPACT, Style
from npr_lib.reasoning.tokens import COMPACT_IDS, StyleIds, TagIds, add_tag_tokens, render_ids
from npr_lib.reasoning.trajectory import Mode
from npr_lib.train import checkpoints, launch
from npr_lib.train.checkpoints import begin_training, finish_training
from npr_lib.train.launch import launched
from npr_lib.train.logs import log_to
from npr_lib.train.lora import add_adapter, load_trainable
from npr_lib.train.reinforce import DEFAULTS


def example(
    prompt_ids: Sequence[int],
    response: str,
    tokenizer: PreTrainedTokenizerBase,
    mode: Mode,
    style: Style = COMPACT,
) -> dict[str, Any]:
    """Token ids and labels (-100: no loss) of one valid response, rendered canonically in a style.

    Valid but for the limits of `parse`, which the engine that wrote it may have had wider; else
    ValueError.
    """
    prompt_ids = [int(i) for i in prompt_ids]
    graph = parse_unlimited(response, style)
    completion_ids = [*render_ids(graph, tokenizer, style), tokenizer.eos_token_id]
    ids = prompt_ids + completion_ids
    sampled = [True] * len(completion_ids)
    if mode == "parallel":
        tags, writes = TagIds.from_tokenizer(tokenizer), StyleIds.from_tokenizer(tokenizer, style)
        structure = layout(ids, tags, len(prompt_ids), writes)
        sampled = sampled_tokens(ids, structure, tokenizer, style)
    chosen = [i if own else -100 for i, own in zip(completion_ids, sampled, strict=True)]
    return {
        "input_ids": ids,
        "labels": [-100] * len(prompt_ids) + chosen,
        "prompt_len": len(prompt_ids),
    }


@dataclass(frozen=True, slots=True)
class Collator:
    """Examples one behind another in one row, with the positions and the visibility of each.
    tags: for parallel ones."""

    tags: TagIds | None
    mode: Mode
    writes: StyleIds = COMPACT_IDS

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        packed = pack([self._layout(row) for row in rows], [[i] for i in range(len(rows))])
        return {
            "input_ids": torch.tensor([[i for row in rows for i in row["input_ids"]]]),
            "labels": torch.tensor([[i for row in rows for i in row["labels"]]]),
            "attention_mask": torch.ones(1, len(packed), dtype=torch.int64),
            "position_ids": torch.from_numpy(packed.position_ids)[None],
            "npr_layout": packed,
        }

    def _layout(self, row: dict[str, Any]) -> Layout:
        if self.tags is None or self.mode == "sequential":
            return causal_layout(len(row["input_ids"]), row["prompt_len"])
        return layout(row["input_ids"], self.tags, row["prompt_len"], self.writes)


def arguments(fields: Mapping[str, Any], folder: Path, seed: int) -> SFTConfig:
    """TRL's arguments with those of a profile; the rows come from `Collator`."""
    return SFTConfig(
        **{
            **DEFAULTS,
            "lr_scheduler_type": "cosine",
            "save_steps": 100,
            **fields,
            "output_dir": str(folder),
            "seed": seed,
            "max_length": None,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "remove_unused_columns": False,
        }
    )


@launched
def train(stage: Stage, mode: Mode = "parallel") -> Path:
    """Train NPR-Beta (or SR-Beta) from the original model on run_dir / "rejection.parquet".

    Returns the checkpoint's folder. WorkbenchError if the data are missing.
    """
    data, start = stage.run_dir / "rejection.parquet", stage.run_dir / "seed"
    if not data.exists():
        raise WorkbenchError(f"{data} does not exist: run rejection sampling (stage 2) first")
    settings, frame = stage.profile.sft, pd.read_parquet(data, columns=["prompt_ids", "text"])
    rows = list(zip(frame["prompt_ids"], frame["text"], strict=True))
    identity = {
        "sft": asdict(settings),
        "style": stage.profile.engine.style,
        "rows": fingerprint([[list(map(int, ids)), text] for ids, text in rows]),
        "mode": mode,
        "lora": stage.profile.lora,
        "seed": stage.seed,
        "launch": launch.identity(stage.profile.launch),
        "code": closure(__name__),
    }
    folder = stage.run_dir / ("npr_beta" if mode == "parallel" else "sr_beta")
    training = begin_training(folder, start, identity)
    if training.done:
        return folder
    lora = stage.profile.lora
    model, tokenizer = load_trainable(start, lora)
    tags = add_tag_tokens(model, tokenizer)
    model = add_adapter(model, tokenizer, lora, stage.seed)
    style = style_for(tokenizer, stage.profile.engine)
    use_npr_attention(model)
    examples = [example(prompt_ids, text, tokenizer, mode, style) for prompt_ids, text in rows]
    args = arguments(settings.trl, training.work, stage.seed)
    writes = StyleIds.from_tokenizer(tokenizer, style)
    trainer = SFTTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(examples),
        data_collator=Collator(tags, mode, writes),
    )
    log_to(trainer, training.work, folder.name)
    checkpoints.train(trainer, training.resume)
    return finish_training(training, model, tokenizer, mode, style)
