"""What a training step costs: groups packed as forks of their prompt, each response by itself, and
TRL's own forward (padded rows, causal) on the same tokens."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from npr_lib import WorkbenchError
from npr_lib.bench.measurements import counted, take_turns
from npr_lib.bench.peers import Subject, timed
from npr_lib.bench.sections import Row
from npr_lib.bench.workload import Sizes, block, words
from npr_lib.engine.attention import use_npr_attention
from npr_lib.reasoning.layout import Layout, layout
from npr_lib.reasoning.tokens import TagIds
from npr_lib.train.forward import logprobs_and_entropies, plan

PROCESS = Path("/proc/self")
BRANCHES = 3
WRITTEN = 40  # tokens of a response around its branches, at most


def training(subject: Subject, sizes: Sizes) -> Iterator[list[Row]]:
    """Forward and backward of one group: seconds, and the peak of memory above what is held before.

    Responses are a block of three branches, and half to one and a half times as long as said.
    """
    use_npr_attention(subject.model)
    for model in (subject.model, subject.peer):
        if "forward" not in vars(model):  # the head is one
            add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    for prompt, response, group in sizes.groups:
        arms = _steps(subject, prompt, response, group)
        rows = {"prompt": prompt, "response": response, "group": group}
        rows["tokens"] = group * (prompt + response)
        peaks = {f"{name}_peak": _peak(subject.device, step) for name, step in arms.items()}
        timers = {name: timed(subject.device, step) for name, step in arms.items()}
        yield counted(peaks, "B", rows) + take_turns(timers, sizes.pairs, rows)


def _steps(
    subject: Subject, prompt: int, response: int, group: int
) -> dict[str, Callable[[], None]]:
    """The forward and backward pass of each arm."""
    layouts, ids, mask, width = _group(subject.tokenizer, prompt, response, group)
    ids, mask = ids.to(subject.device), mask.to(subject.device)
    accelerator = Accelerator(cpu=subject.device.type == "cpu")
    weights = torch.randn(group, 1, device=subject.device)

    def ours(groups: list[list[int]]) -> None:
        rows = plan(layouts, groups)
        given = (ids, mask, layouts, width, rows, [False] * group)
        logprobs, *_ = logprobs_and_entropies(subject.model, accelerator, *given)
        (logprobs * weights).sum().backward()
        subject.model.zero_grad()

    def trl() -> None:
        own = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__  # unprofiled
        trainer = SimpleNamespace(accelerator=accelerator)
        logprobs, *_ = own(trainer, subject.peer, ids, mask, width, compute_entropy=True)
        (logprobs * weights).sum().backward()
        subject.peer.zero_grad()

    members = list(range(group))
    return {
        "packed": lambda: ours([members]),
        "alone": lambda: ours([[i] for i in members]),
        "trl": trl,
    }


def _group(
    tokenizer: PreTrainedTokenizerBase, prompt: int, response: int, group: int
) -> tuple[list[Layout], torch.Tensor, torch.Tensor, int]:
    """Layouts, ids and mask [B, L] as TRL pads them, and the completions' width."""
    draw, tags = random.Random(0), TagIds.from_tokenizer(tokenizer)
    asked = words(prompt, tokenizer, draw)
    answers = []
    for i in range(group):
        length = round(response * (0.5 + i / (group - 1)))
        made = block(BRANCHES, (length - WRITTEN) // (BRANCHES + 1), tokenizer, draw)
        answers.append(made + words(length - len(made), tokenizer, draw))
    width = max(map(len, answers))
    ids = torch.tensor([asked + own + [0] * (width - len(own)) for own in answers])
    mask = torch.tensor([[1] * (prompt + len(a)) + [0] * (width - len(a)) for a in answers])
    return [layout(asked + own, tags, prompt) for own in answers], ids, mask, width


def _peak(device: torch.device, step: Callable[[], None]) -> int:
    """Bytes at the peak of a second call above those held before it; on a CPU, of the process."""
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    if not PROCESS.exists():
        raise WorkbenchError("training: the peak of memory on a CPU is known on Linux only")
    ctypes.CDLL(None).malloc_trim(0)  # or what the last step freed would count as held
    (PROCESS / "clear_refs").write_text("5")  # the peak is from now on
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(name)]
    return 1024 * int(line.split()[1])
