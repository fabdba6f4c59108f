"""What a profile holds, section by section, with every default; nowhere else is there another.

A section is a frozen dataclass. Five keys hold the fields of another class and are handed on to it:
`engine` and `sampling` (of `npr_lib.engine`), `grpo` and `trl` (of TRL's configurations; TRL's own
defaults hold there, but for `train.reinforce.DEFAULTS`), `lora` (of peft's). Functions are
named `module:function`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from npr_lib.engine.api import EngineConfig, SamplingParams
from npr_lib.tasks.parts.settings import Corpus, Seed


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """A way into the format for a model that never writes it (`train.cold_start`): SFT, before
    stage 1, on so many `documents`.

    source: none, and nothing is done; `corpus`, written by the problem set's own templates;
    `few_shot`, the model's own valid and right responses to `prompt`, at most one of `samples` a
    problem; or a JSON-lines file with `problem` and `response`.
    """

    source: str = "none"
    documents: int = 400
    corpus: Corpus = field(default_factory=Corpus)
    prompt: str | dict[str, Any] = "{problem}\n"
    samples: int = 8
    sampling: SamplingParams = field(default_factory=SamplingParams)
    trl: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Every so many optimizer steps so many validation problems are answered, and a checkpoint is
    written; the best is kept."""

    every: int = 8
    problems: int = 100


@dataclass(frozen=True, kw_only=True)
class Reinforcement:
    """What both stages of reinforcement learning have.

    reward: of a scored rollout; nan keeps it out of loss and statistics. advantages: of a batch.
    max_flat: rollout batches in a row without different rewards in any group that stop a run.
    max_logprob_gap: |trainer - engine| that stops it, and a quarter of it where more than 1 % of
    the tokens have that; None: by the precision (`trainer.GAP_LIMITS`). min_kept: the share of
    valid responses below which it stops. engine_tokens: whether tokens the engine wrote are in the
    loss.
    resamples: how often groups of equal rewards are replaced by other problems.
    start_check: responses that are sampled before anything is trained, to say how many are valid;
    where none is and no reward differs, it stops there.
    """

    reward: str
    advantages: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    validation: Validation = Validation()
    resamples: int = 0
    start_check: int = 32
    max_flat: int = 3
    max_logprob_gap: float | None = None
    min_kept: float = 0.0
    engine_tokens: bool = False
    grpo: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NPRZero(Reinforcement):
    """Stage 1, DAPO (`train.dapo`). partial_credit: an invalid response earns more the more of the
    form it has (`rewards.progress`)."""

    reward: str = "npr_lib.rewards:stage1_reward"
    advantages: str = "npr_lib.train.dapo:advantages"
    resamples: int = 1
    partial_credit: bool = True


@dataclass(frozen=True, kw_only=True)
class NPR(Reinforcement):
    """Stage 3, PAPO (`train.papo`).

    advantage: what the difference to the group's mean is divided by. invalid: what becomes of
    responses with violations. clip: `dapo` brings ratio and clipping back. span_bonus: what a
    right answer earns for a short critical path.
    """

    reward: str = "npr_lib.rewards:stage3_reward"
    advantages: str = "npr_lib.train.papo:advantages"
    min_kept: float = 0.3
    advantage: Literal["batch", "group", "none"] = "batch"
    invalid: Literal["filter", "penalize"] = "penalize"
    clip: Literal["none", "dapo"] = "none"
    span_bonus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Stage 2, its data (`train.rejection`). k: samples a problem; problems: how many of the
    training problems; keep: which of the right and valid samples."""

    keep: Literal["first", "varied"] = "varied"
    k: int = 8
    problems: int = 1000
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if self.sampling.temperature == 0 and self.k > 1:
            raise ValueError("sampling.temperature = 0: k samples would be k times the same")


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Stage 2, its training (`train.sft`)."""

    trl: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Responses to held-out problems: so many samples a problem, and one greedy.

    metrics: more of them, name -> `module:function` of a frame of rollouts (a number, or an
    `Estimate`). speed_problems: whose decoding is timed, also the batch of the throughput.
    """

    samples: int = 2
    sampling: SamplingParams = field(default_factory=SamplingParams)
    metrics: dict[str, str] = field(default_factory=dict)
    speed_problems: int = 16
    speed_rounds: int = 3

    def __post_init__(self) -> None:
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature = 0: a greedy response is there beside samples")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How many processes share a training (`train.launch`), each with its own part of the batch.

    config_file: accelerate's own (`accelerate config` writes one). timeout: seconds that a process
    waits for the others before the run is stopped.
    """

    num_processes: int = 1
    config_file: str | None = None
    timeout: int = 3600

    def __post_init__(self) -> None:
        for name, value in (("num_processes", self.num_processes), ("timeout", self.timeout)):
            if value < 1:
                raise ValueError(f"launch.{name} = {value}: expected at least 1")
        if self.config_file and self.num_processes == 1:
            raise ValueError("launch.config_file is for several processes: set num_processes too")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a run is made of.

    problems: `kind`, how many of each split, and the fields of that kind (`tasks.problems`).
    model: the fields of Qwen3Config for a model that is made here; or `path` of one that exists,
    with further arguments of `from_pretrained`. prompt: goes through the chat template, if any;
    with a system message or options for that a mapping of `tasks.problems.PROMPT_KEYS`.
    lora: fields of peft.LoraConfig: adapters train (`train.lora`); without, all weights.
    smoke: sections with the changes for the smallest sizes (`run --smoke`).
    baselines: whether SR-Beta and SR, the same without branches, are trained and measured too.
    notebooks: more stages than those of the folder, by their paths. own: whatever one's own
    notebooks read.
    """

    problems: dict[str, Any]
    model: dict[str, Any]
    prompt: str | dict[str, Any] = "{problem}\n"
    random_seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)
    seed: Seed = field(default_factory=Seed)
    cold_start: ColdStart = field(default_factory=ColdStart)
    npr_zero: NPRZero = NPRZero()
    rejection: Rejection = Rejection()
    sft: SFT = SFT()
    npr: NPR = NPR()
    evaluation: Evaluation = Evaluation()
    lora: dict[str, Any] = field(default_factory=dict)
    smoke: dict[str, Any] = field(default_factory=dict)
    launch: Launch = Launch()
    baselines: bool = True
    notebooks: tuple[str, ...] = ()
    own: dict[str, Any] = field(default_factory=dict)
