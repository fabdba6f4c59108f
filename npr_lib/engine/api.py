"""What every engine takes and gives: configuration, sampling parameters, the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from npr_lib.trajectory import Mode, Trajectory


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {value!r}: expected {expected}")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and limits of an engine.

    num_slots: tokens of KV in the pool. max_running: responses in flight at most.
    max_branches (paper: 5) and max_depth (paper: 1): what the pre-branch validator accepts.
    """

    num_slots: int = 65_536
    max_running: int = 256
    max_branches: int = 5
    max_depth: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            _require(value >= 1, field.name, value, "at least 1")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one call samples.

    max_tokens: completion tokens of a response over all branches, engine-written ones and EOS
        included. max_span: tokens on its critical path. min_fork_tokens: a `</guideline>` that
        leaves fewer tokens of the budget ends the response with `length`.
    temperature: 0 is greedy. top_p = 1, top_k = 0 and branch_penalty = 1 switch those off;
        branch_penalty > 1 divides (multiplies, if negative) the logits of the tokens a branch has
        already sampled itself, inside steps only (paper: 1.02, for evaluation).
    seed: 64 bits; the same seed gives the same response whatever else is in the batch.
    """

    max_tokens: int = 1024
    max_span: int | None = None
    min_fork_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    branch_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _require(self.max_span is None or self.max_span >= 1, "max_span", self.max_span, ">= 1")
        _require(self.temperature >= 0, "temperature", self.temperature, "at least 0")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0: off)")
        _require(self.branch_penalty > 0, "branch_penalty", self.branch_penalty, "above 0 (1: off)")

    @property
    def distribution(self) -> tuple[float, ...]:
        """What decides the distribution of the next token."""
        return self.temperature, self.top_p, self.top_k, self.branch_penalty

    @property
    def on_policy(self) -> bool:
        """Both logprobs of a trajectory agree, as PAPO needs."""
        plain = self.top_p == 1 and self.top_k == 0 and self.branch_penalty == 1
        return plain and self.temperature > 0


class Engine(Protocol):
    """The embedded engine and the SGLang engine look like this."""

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams,
        n: int = 1,
        mode: Mode = "parallel",
    ) -> list[Trajectory]:
        """n trajectories a prompt, grouped by prompt in the order given."""
        ...

    def replay(self, trajectory: Trajectory, mode: Mode) -> Trajectory:
        """Decode a trajectory's own tokens again, scoring them."""
        ...

    def weights_changed(self) -> None:
        """Whoever changes the weights says so: KV of the old ones must not be used again."""
        ...
