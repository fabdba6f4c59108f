"""The ladder: the checkpoints of a run, from the seed to NPR, and which of them are compared."""

from __future__ import annotations

LADDER = ("seed", "npr_zero", "sr_beta", "npr_beta", "sr", "npr")
"""Folders of the checkpoints, in the order of the report."""

BASELINES = ("sr_beta", "sr")
"""Those that a run may leave out: the same without branches."""


def rungs(baselines: bool = True) -> tuple[str, ...]:
    """The ladder of a run, with its sequential baselines or without."""
    return LADDER if baselines else tuple(name for name in LADDER if name not in BASELINES)


NAMES = {
    "seed": "seed",
    "npr_zero": "NPR-Zero",
    "sr_beta": "SR-Beta",
    "npr_beta": "NPR-Beta",
    "sr": "SR",
    "npr": "NPR",
}
"""Folder of a checkpoint -> the paper's name for it."""

COMPARISONS = (
    ("seed", "npr_zero"),
    ("sr_beta", "npr_beta"),
    ("npr_beta", "npr"),
    ("sr_beta", "sr"),
    ("sr", "npr"),
)
"""Pairs (before, after) that answer a question of the report."""

CHANGES = {
    ("seed", "npr_zero"): "stage 1: NPR-Zero − seed",
    ("npr_zero", "npr_beta"): "stage 2: NPR-Beta − NPR-Zero",
    ("npr_beta", "npr"): "stage 3: NPR − NPR-Beta",
    ("sr_beta", "sr"): "stage 3, sequential: SR − SR-Beta",
    ("sr", "npr"): "parallel against sequential: NPR − SR",
}
"""What each stage changed, pair by pair."""
