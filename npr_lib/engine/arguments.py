"""What both engines do with the arguments of a call, so that the same call means the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from npr_lib.engine.api import Prefix, SamplingParams
from npr_lib.engine.sampling import hash_ids, mix
from npr_lib.reasoning.layout import BranchPath, by_branch, layout, sampled_tokens
from npr_lib.reasoning.tokens import StyleIds, TagIds, encode_prompt
from npr_lib.reasoning.trajectory import Mode, Trajectory


class Asked(NamedTuple):
    """What a call asks for one of its prompts; `keys` holds the randomness of each sample."""

    prompt_ids: list[int]
    params: SamplingParams
    keys: list[int]
    prefix: Prefix | None


def read_call(
    prompts: Sequence[str | Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    n: int,
    prefix: Prefix | Sequence[Prefix | None] | None,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> Iterator[Asked]:
    """The arguments of `Engine.generate`, prompt by prompt.

    The key of a sample is a function of (params.seed, the prompt, its occurrence in this call, the
    sample's index), and so independent of whatever else is asked. ValueError for arguments that
    don't fit each other, an empty prompt and one that leaves no room in the context.
    """
    if n < 1:
        raise ValueError(f"n = {n}: expected at least 1")
    if isinstance(prompts, str):
        raise ValueError("prompts is one text: expected a list of prompts")
    count = len(prompts)
    every = [params] * count if isinstance(params, SamplingParams) else params
    _check_count(every, count, "params")
    prefixes: Sequence[Prefix | None] = (
        [prefix] * count if prefix is None or isinstance(prefix, Mapping) else prefix
    )
    _check_count(prefixes, count, "prefix")
    occurrences: Counter[int] = Counter()
    for index, (prompt, own, start) in enumerate(zip(prompts, every, prefixes, strict=True)):
        if isinstance(prompt, str):
            prompt = encode_prompt(prompt, tokenizer)
        ids = [int(i) for i in prompt]
        if not ids:
            raise ValueError(f"prompt {index} is empty")
        if len(ids) >= context:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens, the model's context is {context}"
            )
        digest = hash_ids(ids)
        seed = mix(own.seed, digest, occurrences[digest])
        occurrences[digest] += 1
        yield Asked(ids, own, [mix(seed, i) for i in range(n)], start or None)


def _check_count(values: Sized, count: int, name: str) -> None:
    """One for each prompt, where there isn't one for all."""
    if len(values) != count:
        raise ValueError(f"{len(values)} {name} for {count} prompts")


def best(trajectories: Sequence[Trajectory], n: int, best_of: int) -> list[Trajectory]:
    """Of each `best_of` in a row the n with the highest mean logprob of sampled tokens, best
    first."""
    groups = [trajectories[i : i + best_of] for i in range(0, len(trajectories), best_of)]
    return [t for group in groups for t in sorted(group, key=_mean_logprob)[: -n - 1 : -1]]


def _mean_logprob(trajectory: Trajectory) -> float:
    return float(np.nanmean(trajectory.logprobs))


def forced(
    trajectory: Trajectory, mode: Mode, tokenizer: PreTrainedTokenizerBase
) -> dict[BranchPath, list[int]]:
    """What a replay in this mode writes in each branch: its sampled tokens. LayoutError if the
    ids of one decoded sequentially are no well-formed response."""
    ids = trajectory.completion_ids
    if mode == "sequential":
        return {(): ids}
    every = trajectory.prompt_ids + ids
    structure = trajectory.layout
    if trajectory.mode == "sequential":
        tags = TagIds.from_tokenizer(tokenizer)
        writes = StyleIds.from_tokenizer(tokenizer, trajectory.style)
        structure = layout(every, tags, len(trajectory.prompt_ids), writes)
    chosen = sampled_tokens(every, structure, tokenizer, trajectory.style)
    return by_branch(structure, ids, chosen)


def replayed(
    again: Sequence[Trajectory], trajectories: Sequence[Trajectory], context: int
) -> list[Trajectory]:
    """Replays, each with the ending of its original, which forced tokens don't bring about.
    ValueError for one that came to other tokens."""
    for new, old in zip(again, trajectories, strict=True):
        if new.completion_ids != old.completion_ids:
            raise ValueError(
                f"replay ended after {new.work} of {old.work} tokens "
                f"({new.violation or new.finish_reason}; context {context})"
            )
        new.finish_reason, new.violation = old.finish_reason, old.violation
    return list(again)
