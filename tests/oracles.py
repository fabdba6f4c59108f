"""Independent reference implementations, written from the definitions and not from the library."""

import random
from dataclasses import dataclass

import torch
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from npr_lib.reasoning.tokens import TagIds, encode


@dataclass
class RandomResponse:
    """Token ids with, for each token, its position and its path {block: branch}."""

    ids: list[int]
    positions: list[int]
    paths: list[dict[int, int]]


def random_response(
    rng: random.Random, tokenizer, depth=2, max_branches=5, prompt_len=None, style="compact"
):
    """A random well-formed response, laid out by hand while it is written (design section 4).

    In style lines a line for every tag: those around a step are its branch's, others the trunk's.
    """
    newline = encode("\n", tokenizer) if style == "lines" else []
    tags = TagIds.from_tokenizer(tokenizer)
    word = lambda: rng.choice(encode("0123456789+-=;ABCD", tokenizer))  # noqa: E731
    out = RandomResponse([], [], [])
    blocks = iter(range(10**6))

    def put(token, position, path):
        out.ids.append(token)
        out.positions.append(position)
        out.paths.append(dict(path))
        return position + 1

    def words(position, path, low=0, high=4):
        for _ in range(rng.randint(low, high)):
            position = put(word(), position, path)
        return position

    def white(position, path):
        for token in newline:
            position = put(token, position, path)
        return position

    def block(position, path, level):
        number, k = next(blocks), rng.randint(1, max_branches)
        position = white(put(tags.guideline, position, path), path)
        for i in range(k):
            position = put(tags.plan, position, path)
            for token in encode(f"{i + 1}:", tokenizer):
                position = put(token, position, path)
            position = words(position, path, 1, 3)
            position = white(put(tags.plan_end, position, path), path)
        fork = put(tags.guideline_end, position, path)
        ends = []
        for i in range(k):
            inner = {**path, number: i}
            position = white(put(tags.step, white(fork, inner), inner), inner)
            for token in encode(f"{i + 1}:", tokenizer):
                position = put(token, position, inner)
            position = words(position, inner)
            while level < depth and rng.random() < 0.3:
                position = words(block(position, inner, level + 1), inner, 0, 2)
            ends.append(white(put(tags.step_end, white(position, inner), inner), inner))
        position = white(put(tags.takeaway, max(ends), path), path)
        position = words(position, path)
        return white(white(put(tags.takeaway_end, position, path), path), path)

    position = 0
    for _ in range(prompt_len if prompt_len is not None else rng.randint(1, 6)):
        position = put(word(), position, {})
    prompt = len(out.ids)
    for _ in range(rng.randint(1, 3)):
        position = block(position, {}, 1)
    position = words(position, {}, 1, 4)
    put(tokenizer.eos_token_id, position, {})
    return out, prompt


def brute_force_mask(paths):
    """visible(q, k) straight from the definition, one pair at a time."""
    n = len(paths)
    mask = torch.zeros(n, n, dtype=torch.bool)
    for q in range(n):
        for k in range(q + 1):
            mask[q, k] = all(paths[k].get(block, own) == own for block, own in paths[q].items())
    return mask


def trajectory_paths(trajectory):
    """{block: branch} of every token of an executed trajectory, from its recorded segments."""
    paths = [None] * len(trajectory.layout)
    for segment in trajectory.layout.segments:
        for t in range(segment.start, segment.end):
            paths[t] = dict(segment.path)
    return paths


def dense_logits(model, ids, positions, mask):
    """Logits [n, V] of one plain Hugging Face forward with an explicit dense mask (eager)."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.as_tensor(positions)[None],
            attention_mask=bias[None, None],
            use_cache=False,
        ).logits[0]
    model.set_attn_implementation(implementation)
    return logits


FAMILIES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "glm": (GlmConfig, GlmForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM),
}
# They rotate a part of each head and put it together again: such a query lies in memory head by
# head, those of the others token by token.
PARTIAL_ROTARY = ("glm", "phi3", "gpt_neox")


def random_model(
    rng: random.Random, tokenizer, max_position_embeddings=512, families=("qwen3", "llama")
):
    """A random small model of one of the families: tied or not, with and without grouped-query
    attention."""
    torch.manual_seed(rng.randrange(2**31))
    heads = rng.choice([2, 4])
    options = {
        "vocab_size": len(tokenizer) + rng.choice([0, 5]),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([1, 2, heads]),
        "head_dim": rng.choice([8, 16]),
        "tie_word_embeddings": rng.random() < 0.5,
        "max_position_embeddings": max_position_embeddings,
        "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    family = families[int(rng.random() * len(families))]
    if family in PARTIAL_ROTARY:
        options["partial_rotary_factor"] = 0.5
    if family in ("phi3", "gpt_neox"):
        del options["head_dim"]  # theirs is hidden_size / heads
    if family == "gpt_neox":
        del options["num_key_value_heads"]  # as many as heads
    config, model = FAMILIES[family]
    return model(config(**options)).eval()
