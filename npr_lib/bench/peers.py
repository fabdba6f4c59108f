"""The models of the benchmark, and transformers on the same weights: the engine's peers.

- `bare_step`: one forward of k rows over a `DynamicCache`, the least that a decode step can cost
- `generate`: the left-padded batch of `model.generate`
- `continuous_batching`: `model.generate_batch` with `paged|sdpa`

Weights are random: time does not depend on them. No text ends, since no token is an EOS, so that
all decode the same number of tokens.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from npr_lib import WorkbenchError
from npr_lib.engine.forward import fitting_threads, matrix_size
from npr_lib.profiles.profile import load_profile
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

CONTEXT = 32_768  # tokens: room for every trajectory of the benchmark one token after the other
BLOCK = 32  # tokens in a block of generate_batch's cache
PREFILL = 1024  # tokens a step of generate_batch at most: its own upper bound

# name -> config class and fields; "tiny" is read from its profile
SHAPES: dict[str, tuple[type[LlamaConfig] | type[Qwen3Config], dict[str, Any]]] = {
    "tiny": (Qwen3Config, {}),
    "llama25m": (
        LlamaConfig,
        {
            "vocab_size": 16_384,
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "tie_word_embeddings": True,
        },
    ),
    "llama135m": (  # SmolLM2-135M
        LlamaConfig,
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-1.7b": (
        Qwen3Config,
        {
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """One set of weights in two model objects: an engine switches the attention of `model` for
    good, `peer` keeps transformers' sdpa."""

    name: str
    model: PreTrainedModel
    peer: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def parameters(self) -> int:
        """How many, tied ones counted once."""
        return sum(p.numel() for p in self.model.parameters())


def build(name: str, device: str, dtype: torch.dtype) -> Subject:
    """A model of `SHAPES` with random weights, its tokenizer without an EOS."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    kind, fields = SHAPES[name]
    if name == "tiny":
        fields = {"vocab_size": len(tokenizer), **load_profile("tiny").model}
    without_end = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = kind(**{**fields, **without_end, "max_position_embeddings": CONTEXT})
    torch.manual_seed(0)
    family = Qwen3ForCausalLM if kind is Qwen3Config else LlamaForCausalLM
    model = family(config).to(device, dtype).eval()
    model.set_attn_implementation("sdpa")
    shared = {id(weight): weight for weight in model.parameters()}
    return Subject(name, model, copy.deepcopy(model, shared), tokenizer)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, until the device has finished."""
    _synchronize(device)
    begin = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def bare_step(peer: PreTrainedModel, rows: int, context: int) -> Callable[[], None]:
    """A call that forwards one new token in each of `rows` rows that hold `context` tokens already;
    every call the same, and with as many threads as the engine takes for so many rows."""
    cache = DynamicCache(config=peer.config)
    prompt = torch.arange(context, device=peer.device)[None] % peer.config.vocab_size
    peer(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    ids = torch.zeros(rows, 1, dtype=torch.int64, device=peer.device)
    products = rows * matrix_size(peer)

    @torch.inference_mode()
    def step() -> None:
        with fitting_threads(peer, products):
            peer(input_ids=ids, past_key_values=cache, use_cache=True)
            cache.crop(context)

    return step


def generate(
    peer: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int
) -> Callable[[], list[list[int]]]:
    """A call of `model.generate` on a left-padded batch, greedy; returns the new token ids."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(peer.device), mask.to(peer.device)
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)

    def run() -> list[list[int]]:
        output = peer.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return output[:, width:].tolist()

    return run


@contextmanager
def continuous_batching(
    peer: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int
) -> Iterator[Callable[[], tuple[float, list[list[int]]]]]:
    """Calls of `model.generate_batch`, greedy: seconds and the new token ids.

    As kind to it as its settings allow: the cache is made once for all calls, holds twice what the
    responses need, and the time is that from the first request's creation to the last one's end,
    without starting and stopping its thread.
    """
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    blocks = -(-(max(map(len, prompts)) + new_tokens) // BLOCK)
    batching = ContinuousBatchingConfig(
        block_size=BLOCK,
        num_blocks=2 * len(prompts) * blocks + 8,
        max_batch_tokens=PREFILL,
        allow_block_sharing=False,  # as its manual says for short prompts
    )
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1)

    def run() -> tuple[float, list[list[int]]]:
        outputs = peer.generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=config,
            continuous_batching_config=batching,
            progress_bar=False,
            persistent_manager=True,
        ).values()
        if len(outputs) < len(prompts):
            raise WorkbenchError(
                f"generate_batch ended with {len(outputs)} of {len(prompts)} responses; its own "
                "message stands above"
            )
        begin = min(output.created_time for output in outputs)
        end = max(output.lifespan[1] for output in outputs)
        return end - begin, [output.generated_tokens for output in outputs]

    try:
        yield run
    finally:
        peer.destroy_cached_continuous_batching_manager()
