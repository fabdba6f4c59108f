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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from npr_lib.engine.forward import fitting_threads, matrix_size
from npr_lib.profiles.profile import load_profile
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

CONTEXT = 32_768  # tokens: room for every trajectory of the benchmark one token after the other
BLOCK = 32  # tokens in a block of generate_batch's cache
PREFILL = 1024  # tokens a step of generate_batch at most: its own upper bound

Ids = list[list[int]]  # tokens of prompts, or of responses
Timer = Callable[[], float]  # does something, returns the seconds that it took
FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
# name -> config class and its FIELDS; those of "tiny" are in its profile
SHAPES: dict[str, tuple[type[LlamaConfig] | type[Qwen3Config], tuple[int, ...]]] = {
    "tiny": (Qwen3Config, ()),
    "llama25m": (LlamaConfig, (16_384, 384, 1536, 8, 6, 6, 64)),
    "llama135m": (LlamaConfig, (49_152, 576, 1536, 30, 9, 3, 64)),  # SmolLM2-135M
    "qwen3-1.7b": (Qwen3Config, (151_936, 2048, 6144, 28, 16, 8, 128)),
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
    def device(self) -> torch.device:
        """The one that both are on."""
        return self.model.device

    def about(self) -> dict[str, Any]:
        """How many parameters, tied ones counted once, and the sizes of the layers."""
        shape = {name: getattr(self.model.config, name) for name in FIELDS}
        return {"parameters": sum(p.numel() for p in self.model.parameters()), "shape": shape}


def configuration(name: str) -> LlamaConfig | Qwen3Config:
    """That of a model of `SHAPES`, without an EOS."""
    kind, sizes = SHAPES[name]
    fields: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    fields |= {"tie_word_embeddings": True, **dict(zip(FIELDS, sizes, strict=False))}
    if name == "tiny":
        fields |= {"vocab_size": len(tiny_tokenizer()), **load_profile("tiny").model}
    return kind(**fields | {"max_position_embeddings": CONTEXT})


def build(name: str, device: str, dtype: torch.dtype) -> Subject:
    """A model of `SHAPES` with random weights, its tokenizer without an EOS."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration(name)).to(device, dtype).eval()
    model.set_attn_implementation("sdpa")
    shared = {id(weight): weight for weight in model.parameters()}
    return Subject(name, model, copy.deepcopy(model, shared), tokenizer)


def timed(device: torch.device, call: Callable[..., Any], *args: Any, **named: Any) -> Timer:
    """A timer of the call, until the device has finished."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def timer() -> float:
        wait()
        begin = time.perf_counter()
        call(*args, **named)
        wait()
        return time.perf_counter() - begin

    return timer


@torch.inference_mode()
def bare_step(peer: PreTrainedModel, rows: int, context: int) -> Callable[[], None]:
    """A call that forwards one new token in each of `rows` rows that hold `context` tokens already;
    every call the same, and with as many threads as the engine takes for so many rows."""
    cache = DynamicCache(config=peer.config)
    prompt = torch.arange(context, device=peer.device)[None] % peer.config.vocab_size
    peer(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    ids = torch.zeros(rows, 1, dtype=torch.int64, device=peer.device)

    @torch.inference_mode()
    def step() -> None:
        with fitting_threads(peer, rows * matrix_size(peer)):
            peer(input_ids=ids, past_key_values=cache, use_cache=True)
            cache.crop(context)

    return step


def generate(peer: PreTrainedModel, prompts: Ids, new_tokens: int) -> Callable[[], Ids]:
    """A call of `model.generate` on a left-padded batch, greedy; returns the new token ids."""
    pad = partial(pad_sequence, batch_first=True, padding_side="left")
    rows = [torch.tensor(prompt, device=peer.device) for prompt in prompts]
    ids, mask = pad(rows), pad([torch.ones_like(row) for row in rows])
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)

    def run() -> Ids:
        output = peer.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return output[:, ids.shape[1] :].tolist()

    return run


@contextmanager
def continuous_batching(
    peer: PreTrainedModel, prompts: Ids, new_tokens: int
) -> Iterator[Callable[[], tuple[float, Ids]]]:
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
    settings = {"generation_config": config, "continuous_batching_config": batching}
    settings |= {"progress_bar": False, "persistent_manager": True}

    def run() -> tuple[float, Ids]:
        outputs = peer.generate_batch([list(prompt) for prompt in prompts], **settings).values()
        begin = min((output.created_time for output in outputs), default=0.0)
        end = max((output.lifespan[1] for output in outputs), default=0.0)
        return end - begin, [output.generated_tokens for output in outputs]

    try:
        yield run
    finally:
        peer.destroy_cached_continuous_batching_manager()
