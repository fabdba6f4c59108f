"""Accuracies in the shape that lm-evaluation-harness writes, for tools that read its results.

`results`: task -> `METRIC,none` and `METRIC_stderr,none`; `configs`, `n-samples`, `versions`,
`n-shot`, `higher_is_better` by task. Standard errors are those of a mean over problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from npr_lib.analysis import metrics
from npr_lib.files import write_json


def write(
    folder: Path, model: str, result: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]
) -> None:
    """Write folder/results.json of one model.

    result: what `benchmark.evaluate` returns; tables: set -> the model's rollouts."""
    folder.mkdir(parents=True, exist_ok=True)
    about, sampling = result["models"][model], result["settings"]["sampling"]
    tasks = result["sets"]
    write_json(
        folder / "results.json",
        {
            "results": {name: _result(name, tables[name], one["k"]) for name, one in tasks.items()},
            "group_subtasks": {},
            "configs": {
                name: {
                    "task": name,
                    "dataset_kwargs": one["spec"],
                    "output_type": "generate_until",
                    "doc_to_text": about["prompt"],
                    "num_fewshot": 0,
                    "repeats": one["k"],
                    "generation_kwargs": {**sampling, "do_sample": sampling["temperature"] > 0},
                }
                for name, one in tasks.items()
            },
            "versions": dict.fromkeys(tasks, result["npr_lib"]),
            "n-shot": dict.fromkeys(tasks, 0),
            "higher_is_better": {
                name: dict.fromkeys(_metrics(one["k"]), True) for name, one in tasks.items()
            },
            "n-samples": {
                name: {"original": one["whole"], "effective": one["problems"]}
                for name, one in tasks.items()
            },
            "config": {
                "model": f"npr_lib {result['settings']['engine']}",
                "model_args": {"pretrained": about["path"], "mode": about["mode"]},
                "random_seed": sampling["seed"],
            },
            "model_name": model,
            "model_source": "npr_lib",
        },
    )


def _metrics(k: int) -> dict[str, Any]:
    names = {f"avg@{k}": metrics.avg_values}
    if k > 1:
        names |= {f"best@{k}": metrics.best_values, f"maj@{k}": metrics.maj_values}
    return names


def _result(name: str, table: pd.DataFrame, k: int) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": name}
    for metric, values in _metrics(k).items():
        of = values(table).to_numpy()
        found[f"{metric},none"] = float(of.mean())
        found[f"{metric}_stderr,none"] = (
            float(np.std(of, ddof=1) / np.sqrt(len(of))) if len(of) > 1 else "N/A"
        )
    return found
