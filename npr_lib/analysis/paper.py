"""What the paper measured (arXiv 2512.07461), benchmark by benchmark."""

from __future__ import annotations

import pandas as pd

COLUMNS = (
    *("AIME25", "AIME24", "HMMT25", "OlympiadBench", "Minerva", "ZebraLogic", "AMC23", "MATH500"),
)

ACCURACY = pd.DataFrame.from_dict(
    {
        "Qwen3-4B-Instruct": [47.4, 60.0, 31.0, 64.0, 41.2, 80.2, 92.2, 93.4, 63.7],
        "Multiverse-4B": [42.9, 46.7, 20.8, 38.8, 34.9, 60.2, 75.0, 81.6, 50.1],
        "Multiverse-32B": [45.8, 53.8, 20.8, 48.0, 40.0, 47.1, 72.5, 91.8, 52.5],
        "NPR-Beta": [42.9, 50.8, 23.3, 60.1, 41.2, 76.1, 85.9, 91.6, 59.0],
        "SR-Beta": [37.1, 52.1, 22.5, 56.3, 41.5, 72.8, 91.6, 92.0, 58.2],
        "SR": [49.2, 57.1, 26.3, 62.2, 38.2, 78.9, 90.9, 92.8, 62.0],
        "NPR": [50.4, 63.3, 30.8, 63.7, 43.0, 81.7, 93.1, 93.6, 65.0],
        "Qwen3-4B (non-thinking)": [19.1, 25.0, 12.1, 48.6, 28.5, 35.2, 65.6, 84.8, 39.9],
        "NPR of Qwen3-4B (non-thinking)": [53.8, 62.5, 32.9, 61.9, 47.1, 75.8, 89.7, 91.8, 64.4],
    },
    orient="index",
    columns=[*COLUMNS, "mean"],
)
"""Accuracy in %: avg@8 on AIME25, AIME24, HMMT25 and AMC23, one response elsewhere."""

TRIGGER_RATE = pd.DataFrame.from_dict(
    {
        "Multiverse-32B": [65.0, 62.9, 63.3, 69.5, 66.9, 45.8, 70.0, 76.0],
        "NPR": [100.0] * 8,
    },
    orient="index",
    columns=list(COLUMNS),
)
"""Share of responses with a parallel block, in %."""

BEST_AT_8 = {"Qwen3-4B (non-thinking)": 36.7, "NPR of Qwen3-4B (non-thinking)": 76.7}
"""best@8 on AIME25, in %."""
