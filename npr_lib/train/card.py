"""The model card of a checkpoint, README.md: what is known of it when it is saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npr_lib.files import ADAPTER, TRAINING
from npr_lib.reasoning.style import Style
from npr_lib.reasoning.trajectory import Mode

STAGES = {
    "seed": "the model that its run started from (stage 0)",
    "npr_zero": "NPR-Zero: DAPO on the reward of format and accuracy (stage 1)",
    "npr_beta": "NPR-Beta: SFT on NPR-Zero's right and valid responses, branches apart (stage 2)",
    "sr_beta": "SR-Beta: the same responses learnt one token after the other (baseline)",
    "npr": "NPR: PAPO on parallel rollouts (stage 3)",
    "sr": "SR: reinforcement learning one token after the other (baseline)",
}
USE = {
    "full": "AutoModelForCausalLM.from_pretrained(folder)  # of transformers",
    "adapter": "AutoPeftModelForCausalLM.from_pretrained(folder)  # of peft; with its base",
}


def write_card(folder: Path, name: str, mode: Mode, style: Style) -> None:
    """README.md of a checkpoint from what lies beside it: its training's record and log."""
    record, path = json.loads((folder / TRAINING).read_text()), folder / "log.jsonl"
    log = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    stage = STAGES.get(name, name)
    kind = "adapter" if (folder / ADAPTER).exists() else "full"
    library = "peft" if kind == "adapter" else "transformers"
    parallel = "in parallel branches, by the NPR Engine" if mode == "parallel" else "token by token"
    text = f"""---
library_name: {library}
pipeline_tag: text-generation
tags: [native-parallel-reasoning]
---
# {name}

{stage[0].upper()}{stage[1:]}. Made with NPR Workbench, after
*Native Parallel Reasoner* (arXiv 2512.07461).

- decoded: {parallel}; responses are written in the style `{style.name}` (`npr.json`)
- weights: {"a LoRA adapter; adapter_config.json names its base" if kind == "adapter" else "whole"}
- load: `{USE[kind]}`; any library then decodes token by token. Parallel decoding, and evaluation:
  `python -m npr_lib evaluate {name} --sets ...`

## Data

```json
{json.dumps(_data(record), indent=2)}
```

## Figures

{_figures(log)}

## Limits

These figures are the training's own, at the moment of saving: of a few validation problems, the
same that chose the checkpoint. Held-out accuracy with its interval stands in the run's report. The
model was trained on the problems above and on nothing that would make it safe or useful elsewhere.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _data(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a training's record says of its data and settings; digests tell a reader nothing."""
    task = record.get("task", {})
    kept = {key: task[key] for key in ("problems", "prompt") if key in task}
    sections = ("section", "fields", "sft", "lora", "settings", "seed")
    return kept | {key: record[key] for key in sections if record.get(key)}


def _figures(log: list[dict[str, Any]]) -> str:
    """The last of every figure that was logged, validation first."""
    last: dict[str, Any] = {}
    for line in log:
        last |= {key: value for key, value in line.items() if isinstance(value, int | float)}
    names = sorted(last, key=lambda name: (not name.startswith("eval_"), name))
    if not names:
        return "None: it was not trained here."
    rows = [f"| {name} | {last[name]:.4g} |" for name in names]
    return "\n".join(["| figure | last value |", "|---|---|", *rows])
