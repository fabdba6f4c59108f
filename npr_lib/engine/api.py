"""What every engine takes and gives: configuration, sampling parameters, events, the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # torch and transformers, which whoever only reads a profile does without
    from npr_lib.reasoning.layout import BranchPath
    from npr_lib.reasoning.trajectory import Mode, Trajectory

# What a partial response already has: for every branch, keyed by its path with blocks counted
# within their parent, the tokens that the policy or a person chose (the engine adds its own).
Prefix = Mapping["BranchPath", Sequence[int]]


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {value!r}: expected {expected}")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and limits of an engine.

    num_slots: tokens of KV in the pool. max_running: responses in flight at most.
    max_branches (paper: 5) and max_depth (paper: 1): what the pre-branch validator accepts.
    max_step_tokens: tokens forwarded in one step at most; a longer prefill takes several steps,
        beside the branches that decode. (One response's branches always advance together.)
    persistent_prefix: keep the KV of prompts from call to call; whoever changes the weights then
        calls `weights_changed`. (SGLang always keeps it.)
    style: how responses are written around the tags (`reasoning.style`); None: as the model's own
        (`checkpoint.style_of`). min_chars: least lengths of a plan, a step and a takeaway; None:
        the style's.
    backend: what the RL stages roll out on: torch (the embedded engine), sglang, or the url of a
        `python -m npr_lib serve`. sglang: arguments of SGLang's own for `sglang` (tp_size,
        mem_fraction_static, dtype, ...), stronger than those that follow from the rest.
    """

    num_slots: int = 65_536
    max_running: int = 256
    max_branches: int = 5
    max_depth: int = 1
    max_step_tokens: int = 4096
    persistent_prefix: bool = False
    style: Literal["compact", "lines"] | None = None
    min_chars: tuple[int, int, int] | None = None
    backend: str = "torch"
    sglang: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            _require(field.type != "int" or value >= 1, field.name, value, "at least 1")
        least = self.min_chars is None or (len(self.min_chars) == 3 and min(self.min_chars) >= 0)
        _require(least, "min_chars", self.min_chars, "three numbers, at least 0")
        known = self.backend in ("torch", "sglang") or "://" in self.backend
        _require(known, "backend", self.backend, "torch, sglang or a url")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a response is sampled.

    max_tokens: completion tokens of a response over all branches, engine-written ones and EOS
        included. max_span: tokens on its critical path. min_fork_tokens: a `</guideline>` that
        leaves fewer tokens of the budget ends the response with `length`.
    temperature: 0 is greedy. top_p = 1, top_k = 0 and branch_penalty = 1 switch those off;
        branch_penalty > 1 divides (multiplies, if negative) the logits of the tokens a branch has
        already sampled itself, inside steps only (paper: 1.02, for evaluation).
    stop: strings; the first to be completed within one branch's text ends the whole response with
        `stop_string`. What the engine writes and what a prefix holds is not searched.
    seed: 64 bits; the same seed gives the same response whatever else is in the batch.
    """

    max_tokens: int = 1024
    max_span: int | None = None
    min_fork_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    branch_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _require(self.max_span is None or self.max_span >= 1, "max_span", self.max_span, ">= 1")
        _require(self.temperature >= 0, "temperature", self.temperature, "at least 0")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0: off)")
        _require(self.branch_penalty > 0, "branch_penalty", self.branch_penalty, "above 0 (1: off)")
        texts = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        _require(texts, "stop", self.stop, "a tuple of non-empty strings")

    @property
    def distribution(self) -> tuple[float, ...]:
        """What decides the distribution of the next token."""
        return self.temperature, self.top_p, self.top_k, self.branch_penalty

    @property
    def on_policy(self) -> bool:
        """Both logprobs of a trajectory agree, as PAPO needs."""
        plain = self.top_p == 1 and self.top_k == 0 and self.branch_penalty == 1
        return plain and self.temperature > 0


@dataclass(slots=True)
class EngineStats:
    """Totals over the engine's life; `seconds` is time inside `step`."""

    steps: int = 0
    forwarded: int = 0  # tokens through the model
    responses: int = 0
    seconds: float = 0.0
    peak_slots: int = 0
    preemptions: int = 0
    recomputed: int = 0  # tokens forwarded again after a preemption
    prompt_tokens: int = 0  # of prompts, each counted once for the samples of its group
    reused: int = 0  # prompt tokens whose KV was there already: no slot and no work for them


@dataclass(slots=True)
class Event:
    """Something that happened to a response.

    call: number of the call. index: of the response in it (prompt number * n + sample number).
    step, seconds: engine steps and wall time since the call began. path: the branch it happened
    in, with blocks counted within their parent.
    """

    call: int
    index: int
    step: int
    seconds: float
    path: BranchPath


@dataclass(slots=True)
class Token(Event):
    """A token was appended to a branch; `logprob` is nan for one the engine wrote."""

    token: int
    logprob: float
    sampled: bool


@dataclass(slots=True)
class Fork(Event):
    """The branch forked into `branches` new ones."""

    branches: int


@dataclass(slots=True)
class BranchEnd(Event):
    """The branch wrote its `</step>`."""


@dataclass(slots=True)
class Join(Event):
    """The branch goes on with `<takeaway>` after the last branch of its block has ended."""


@dataclass(slots=True)
class Preempt(Event):
    """The KV of the whole response was dropped to make room; its tokens were kept."""


@dataclass(slots=True)
class Resume(Event):
    """The response goes on; `recomputed` of its tokens are forwarded again."""

    recomputed: int


@dataclass(slots=True)
class Finish(Event):
    """The response has ended."""

    trajectory: Trajectory


class Engine(Protocol):
    """The embedded engine and the SGLang engine look like this."""

    tokenizer: Any

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        mode: Mode = "parallel",
        prefix: Prefix | Sequence[Prefix | None] | None = None,
        best_of: int | None = None,
    ) -> list[Trajectory]:
        """n trajectories a prompt, grouped by prompt in the order given."""
        ...

    def stream(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        mode: Mode = "parallel",
        prefix: Prefix | Sequence[Prefix | None] | None = None,
    ) -> Iterator[Event]:
        """The same responses, event by event."""
        ...

    def replay(self, trajectory: Trajectory, mode: Mode) -> Trajectory:
        """Decode a trajectory's own tokens again, scoring them."""
        ...

    def weights_changed(self) -> None:
        """Whoever changes the weights says so: KV of the old ones must not be used again."""
        ...
