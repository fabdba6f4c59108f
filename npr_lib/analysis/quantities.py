"""What the numbers of the report are called and how they are written, each once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True, slots=True)
class Quantity:
    """heading: its name in tables and figures. scale, digits: how a value is written. unit and
    points: what stands in brackets behind a value, and behind a difference of two."""

    heading: str
    scale: float = 1
    digits: int = 2
    unit: str = ""
    points: str = ""

    def title(self, of: str = "", unit: str | None = None) -> str:
        """The heading of a column: `accuracy, T = 1 (%)`."""
        unit = self.unit if unit is None else unit
        return self.heading + (f", {of}" if of else "") + (f" ({unit})" if unit else "")

    def difference(self, of: str = "") -> str:
        """The heading of a column of differences: `accuracy, T = 1 (points)`."""
        return self.title(of, self.points)

    def number(self, value: float) -> str:
        """The value alone, or a dash when undefined."""
        return "–" if pd.isna(value) else f"{self.scale * value:.{self.digits}f}"

    def text(self, estimate: Any) -> str:
        """`value [low, high]`, or a dash when undefined."""
        return interval_text(estimate, self.scale, self.digits)


def interval_text(estimate: Any, scale: float = 1, digits: int = 2) -> str:
    """`value [low, high]`, or a dash when undefined."""
    if pd.isna(estimate.value):
        return "–"
    numbers = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return "{} [{}, {}]".format(*numbers)


def share(heading: str) -> Quantity:
    """A share in [0, 1], written in %; differences are in points."""
    return Quantity(heading, 100, 1, "%", "points")


QUANTITIES = {
    "avg": share("accuracy"),
    "avg_protocol": share("accuracy by the protocol"),
    "best": share("best of k"),
    "maj": share("majority vote"),
    "format_pass": share("format pass"),
    "trigger_rate": share("parallel trigger rate"),
    "cut_off": share("cut off"),
    "undecided": share("could not be compared"),
    "wide_block_share": share("blocks of ≥ 2 branches"),
    "branches_per_block": Quantity("branches a block"),
    "balance": Quantity("balance of branches"),
    "work": Quantity("work", digits=1, points="tokens"),
    "span": Quantity("span", digits=1, points="tokens"),
    "ideal_speedup": Quantity("work/span"),
    "wrong_parts": share("branches on a wrong part"),
    "blind": share("blind divisions"),
    "blocks": Quantity("blocks"),
    "span_ratio": Quantity("span / SR's length, ≥ 3 independent parts"),
}
"""Metric (without its @k) -> how it is shown. Shares come first."""


LOGGED = {
    "reward": Quantity("mean reward"),
    "eval_reward": Quantity("validation reward"),
    "eval_loss": Quantity("validation loss", unit="nats / token"),
    "entropy": Quantity("policy entropy", unit="nats / token"),
    "entropy/tags": Quantity("entropy at tags", unit="nats / token"),
    "entropy/others": Quantity("entropy elsewhere", unit="nats / token"),
    "grad_norm": Quantity("gradient norm"),
    "learning_rate": Quantity("learning rate"),
    "accuracy": QUANTITIES["avg"],
    "format": QUANTITIES["format_pass"],
    "format_reward": Quantity("format reward"),
    "trigger_rate": QUANTITIES["trigger_rate"],
    "kept_share": share("kept responses"),
    "zero_variance_groups": share("groups of equal rewards"),
    "branches": QUANTITIES["branches_per_block"],
    "blocks": QUANTITIES["blocks"],
    "work": Quantity("work", unit="tokens / response"),
    "span": Quantity("span", unit="tokens / response"),
    "mean_token_accuracy": share("token accuracy"),
}
"""Name in a training log -> how it is shown, where not under that name."""


def logged(name: str) -> Quantity:
    """How a column of a training log is shown."""
    return LOGGED.get(name, Quantity(name))


def quantity(metric: str) -> Quantity:
    """How a metric of the ladder is shown; one's own under its own name, with two digits."""
    return QUANTITIES.get(metric.split("@")[0], Quantity(metric))
