r"""Responses written by hand, and an engine that gives them: what evaluation is checked against.

A response is a text; its layout is that of its tokens, so work, span and branches are known by
counting (the tiny tokenizer has one token a character, a tag, a `\boxed{`, a two-digit number).
"""

from npr_lib.reasoning.layout import causal_layout, layout
from npr_lib.reasoning.tokens import TagIds, encode
from npr_lib.reasoning.trajectory import Trajectory
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)


def block(*steps):
    """A block of these steps, each with a plan of one letter."""
    plans = "".join(f"<plan>{i}:A</plan>" for i, _ in enumerate(steps, 1))
    written = "".join(f"<step>{i}:{step}</step>" for i, step in enumerate(steps, 1))
    return f"<guideline>{plans}</guideline>{written}<takeaway>A</takeaway>"


def trajectory(text, prompt="A=1;", temperature=1.0, mode="parallel"):
    prompt_ids, ids = encode(prompt, TOKENIZER), encode(text, TOKENIZER)
    n = len(ids)
    places = (
        layout(prompt_ids + ids, TAGS, len(prompt_ids))
        if mode == "parallel"
        else causal_layout(len(prompt_ids) + n, len(prompt_ids))
    )
    return Trajectory(
        prompt_ids=prompt_ids,
        completion_ids=ids,
        logprobs=[-0.5] * n,
        behaviour_logprobs=[-0.5] * n,
        sampled=[True] * n,
        decode_steps=list(range(n)),
        layout=places,
        finish_reason="stop",
        text=text,
        mode=mode,
        temperature=temperature,
    )


class ScriptedEngine:
    """Answers `script(prompt, sample, params, mode)`; keeps what it was asked in `calls`."""

    tokenizer = TOKENIZER

    def __init__(self, script):
        self.script, self.calls = script, []

    def generate(self, prompts, params, n=1, mode="parallel"):
        self.calls.append((list(prompts), params, n, mode))
        return [
            self.script(prompt, sample, params, mode) for prompt in prompts for sample in range(n)
        ]
