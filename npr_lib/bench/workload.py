"""The work of the benchmark: how much of it, and well-formed responses made by hand.

They are replayed, so that nothing has to be sampled and any two ways of decoding do the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase as Tokenizer

from npr_lib.reasoning.layout import layout, sampled_tokens
from npr_lib.reasoning.tokens import TagIds, encode, step_prefix
from npr_lib.reasoning.trajectory import Trajectory

PROMPT = 32  # tokens
STUB = 8  # tokens of a branch in the trajectory that is subtracted


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured. Lengths are in tokens; `in_flight` pairs responses with new tokens each."""

    pairs: int = 5  # paired runs
    turns: int = 3  # the same for throughput, where one takes minutes
    bare_calls: int = 20  # forwards that make one timing of the bare model
    branches: tuple[int, ...] = (1, 2, 3, 4, 5)
    wide: tuple[int, ...] = (8, 16)  # more branches, at the middle length only
    lengths: tuple[int, ...] = (32, 128, 512)  # of a branch, tags and label included
    in_flight: tuple[tuple[int, int], ...] = ((1, 128), (8, 128), (64, 128), (256, 32))
    samples: tuple[int, ...] = (4, 16, 64)  # of one prompt
    layouts: tuple[int, ...] = tuple(2**i for i in (10, 12, 14, 15, 16, 17))
    more_branches: tuple[int, ...] = (1, 2, 4, 8)
    more_responses: tuple[int, ...] = (1, 2, 4, 8, 16)
    more_prefix: tuple[float, ...] = (0.064, 1.024, 2.048, 4.096)  # thousands
    steps: int = 64  # decode steps that make one timing of a step
    # prompt, mean response, responses: groups of 2k to 32k tokens that are trained on
    groups: tuple[tuple[int, int, int], ...] = (
        *((50, 200, 8), (500, 500, 8), (2000, 500, 8)),
        *((50, 1000, 16), (1000, 1000, 16)),
    )

    @property
    def middle(self) -> int:
        """The middle one of the lengths."""
        return self.lengths[len(self.lengths) // 2]


FULL = Sizes()
QUICK = Sizes(
    *(2, 2, 3),
    branches=(1, 3),
    wide=(),
    lengths=(24,),
    in_flight=((1, 8), (4, 8)),
    samples=(3,),
    layouts=(1024, 4096),
    more_branches=(1, 2),
    more_responses=(1, 2),
    more_prefix=(0.064, 0.256),
    steps=8,
    groups=((24, 120, 3),),
)


def words(count: int, tokenizer: Tokenizer, draw: random.Random) -> list[int]:
    """Ids of `count` random tokens that are no tags and nothing special."""
    special = {*TagIds.from_tokenizer(tokenizer).ids, *tokenizer.all_special_ids}
    return draw.choices([i for i in range(len(tokenizer)) if i not in special], k=count)


def block(branches: int, length: int, tokenizer: Tokenizer, draw: random.Random) -> list[int]:
    """Ids of a guideline of `branches` plans, as many steps of `length` tokens, a takeaway."""
    tags = TagIds.from_tokenizer(tokenizer)
    ids = [tags.guideline]
    for i in range(1, branches + 1):
        label = encode(f"{i}:", tokenizer)
        ids += [tags.plan, *label, *words(2, tokenizer, draw), tags.plan_end]
    ids.append(tags.guideline_end)
    for i in range(1, branches + 1):
        prefix = step_prefix(i, tokenizer, tags)
        if length < len(prefix) + 2:
            raise ValueError(f"a branch of {length} tokens: expected at least {len(prefix) + 2}")
        ids += [*prefix, *words(length - len(prefix) - 1, tokenizer, draw), tags.step_end]
    return [*ids, tags.takeaway, *words(4, tokenizer, draw), tags.takeaway_end]


def trajectory(branches: int, length: int, tokenizer: Tokenizer, seed: int = 0) -> Trajectory:
    """A well-formed response of one block, to be replayed: nothing of it was sampled."""
    draw = random.Random(seed)
    prompt = words(PROMPT, tokenizer, draw)
    ids = block(branches, length, tokenizer, draw) + words(4, tokenizer, draw)
    structure = layout(prompt + ids, TagIds.from_tokenizer(tokenizer), len(prompt))
    sampled = sampled_tokens(prompt + ids, structure, tokenizer)
    zeros = ([0.0] * len(ids), [0.0] * len(ids))  # logprobs
    decoded = (prompt, ids, *zeros, sampled, [0] * len(ids), structure)
    return Trajectory(*decoded, finish_reason="stop", text="", max_branches=branches)
