"""The profile's section `seed`: what the tiny seed model reads, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What the tiny seed model reads: shares of the kinds of documents, and chances
    (`corpus`). problems: how many are drawn from."""

    problems: int = 20_000
    split: float = 0.7
    wide: float = 0.6
    careless: float = 0.95
    valid: float = 0.52
    malformed: float = 0.12
    plain: float = 0.12
    drill: float = 0.24


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Pretraining of the tiny seed model; unused where `model.path` names one that exists.

    batch: documents. muon, adamw: arguments of their optimizers. warmup: a share of the steps.
    """

    steps: int = 3000
    batch: int = 14
    muon: dict[str, float] = field(default_factory=lambda: {"lr": 0.02})
    adamw: dict[str, float] = field(default_factory=lambda: {"lr": 0.003, "weight_decay": 0.0})
    warmup: float = 0.05
    log_every: int = 10
    corpus: Corpus = Corpus()
