"""The order of the training problems: a function of seed and epoch, wherever a run was resumed."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler
from transformers import Trainer
from trl.trainer.utils import RepeatSampler


class EpochOrder(Sampler[int]):
    """A `RepeatSampler` that is seeded anew for each epoch.

    TRL seeds it once, when it is made. A run that was resumed in its second epoch would make it
    again, and repeat the order of the first.
    """

    def __init__(self, sampler: RepeatSampler, trainer: Trainer) -> None:
        self.sampler, self.trainer = sampler, trainer

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        epoch = int(self.trainer.state.epoch or 0)
        self.sampler.generator.manual_seed(self.trainer.args.seed + epoch)
        return iter(self.sampler)
