"""What the parts of a trajectory are called in pictures: segments, branches and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from npr_lib.viz.theme import escape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from npr_lib.reasoning.layout import BranchPath, Segment
    from npr_lib.reasoning.trajectory import Trajectory

# Characters that would leave a hover label empty or break its line.
_VISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", " ": "␣"})


def segment_names(trajectory: Trajectory) -> list[str]:
    """ "prompt", "guideline", "step 2", "step 2.1", "takeaway", "text", "answer", "response".

    A step goes on, after a block nested in it, as "step 2, cont.".
    """
    segments = trajectory.segments
    names, begun = [], set()
    for segment in segments:
        name = segment.kind
        if segment.kind == "step":
            name = f"step {branch_number(segment.path)}"
            if segment.path in begun:
                name += ", cont."
            begun.add(segment.path)
        names.append(name)
    if segments[-1].kind == "text":
        alone = sum(segment.kind != "prompt" for segment in segments) == 1
        names[-1] = "response" if alone else "answer"
    return names


def branch_number(path: BranchPath) -> str:
    """Branch indices from 1, outermost first: "2", or "2.1" for a nested branch."""
    return ".".join(str(branch + 1) for _, branch in path)


def segment_text(trajectory: Trajectory, segment: Segment, prompt: str | None = None) -> str:
    """Text of any segment; the prompt's is not part of a trajectory, so it is passed in."""
    if segment.kind == "prompt":
        return "" if prompt is None else prompt
    return trajectory.segment_text(segment)


def token_names(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """A short escaped name for every token of prompt + completion; its id without a tokenizer."""
    ids = [*trajectory.prompt_ids, *trajectory.completion_ids]
    if tokenizer is None:
        return [f"id {i}" for i in ids]
    texts = {i: tokenizer.decode([i]) for i in set(ids)}
    return [escape(texts[i].translate(_VISIBLE)[:40]) for i in ids]
