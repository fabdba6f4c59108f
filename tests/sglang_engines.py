"""Real SGLang for tests: launched with its strict memory checks on, gone when the test is over."""

import os
import random
from contextlib import contextmanager
from dataclasses import replace

import psutil
import torch
from oracles import random_model
from policies import random_policy
from transformers import AutoConfig, AutoModelForCausalLM

from npr_lib.engine import SamplingParams, SGLangEngine, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.reasoning.layout import layout
from npr_lib.reasoning.mask import dense_mask
from npr_lib.reasoning.tokens import TagIds, encode, step_prefix
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)
CHECKS = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
}


def model_of_type(model_type, seed=0):
    """A random small model of this type, the first from `seed` on."""
    for number in range(seed, seed + 50):
        model = random_model(random.Random(number), TOKENIZER)
        if model.config.model_type == model_type:
            return model
    raise AssertionError(model_type)


def digits_prompt(digits):
    return encode("".join(map(str, digits)) + "=", TOKENIZER)


def digits_response(digits):
    """A response whose shape is its prompt's: a plan and a step a digit, the step as long as the
    digit is large; two blocks if the first digit is odd. Token ids, and how many are the prompt."""
    prompt, ids = digits_prompt(digits), []
    for _ in range(1 + digits[0] % 2):
        ids.append(TAGS.guideline)
        for i, digit in enumerate(digits, 1):
            ids += [TAGS.plan, *encode(f"{i}:", TOKENIZER), *encode(str(digit), TOKENIZER)]
            ids.append(TAGS.plan_end)
        ids.append(TAGS.guideline_end)
        for i, digit in enumerate(digits, 1):
            words = encode(str(digit) * (1 + digit), TOKENIZER)
            ids += [*step_prefix(i, TOKENIZER, TAGS), *words, TAGS.step_end]
        ids += [TAGS.takeaway, *encode(str(digits[0]), TOKENIZER), TAGS.takeaway_end]
    return [*prompt, *ids, TOKENIZER.eos_token_id], len(prompt)


def forking_model(model_type, steps=250, seed=0):
    """A small model that has learnt, under the parallel mask, to answer digits by
    `digits_response`: it forks of its own accord. About 20 s."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    options = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "eos_token_id": TOKENIZER.eos_token_id,
        "pad_token_id": TOKENIZER.pad_token_id,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))
    model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, step / 20, 3 * (steps - step) / steps)
        batch = [digits_response(random_digits(rng)) for _ in range(16)]
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.zeros(16, longest, dtype=torch.long)
        positions = torch.zeros_like(ids)
        mask = torch.eye(longest, dtype=torch.bool).repeat(16, 1, 1)
        labels = torch.full_like(ids, -100)
        for row, (tokens, prompt) in enumerate(batch):
            n, own = len(tokens), layout(tokens, TAGS, prompt)
            ids[row, :n] = torch.tensor(tokens)
            positions[row, :n] = torch.from_numpy(own.position_ids)
            mask[row, :n, :n] = dense_mask(own)
            labels[row, prompt - 1 : n - 1] = ids[row, prompt:n]
        bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        logits = model(
            input_ids=ids, position_ids=positions, attention_mask=bias[:, None], use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def random_digits(rng):
    return [rng.randint(0, 6) for _ in range(rng.randint(1, 5))]


@contextmanager
def sglang_engine(model, folder, config, **server_args):
    """An SGLangEngine on a model (None: on the one in the folder); afterwards none of its processes
    is left."""
    os.environ.update(CHECKS)
    if model is not None:
        model.save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
    engine = SGLangEngine(folder, config, **server_args)
    children = psutil.Process().children(recursive=True)
    assert children, "SGLang runs in no process"
    try:
        yield engine
    finally:
        engine.shutdown()
        _, alive = psutil.wait_procs(children, timeout=20)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=20)
    assert not alive, f"SGLang left processes behind: {alive}"


def written_by_policy(model, monkeypatch, seed, config, params, n, broken=0.05):
    """Trajectories of the embedded engine whose tokens a random writer chose: random weights write
    no block by themselves."""
    policy = random_policy(TOKENIZER, broken=broken)
    prompts = [encode(text, TOKENIZER) for text in ("A=1+2", "7;8;9=", "A=1+2", "B")]
    with monkeypatch.context() as patch:
        patch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
        engine = TorchEngine(model, TOKENIZER, replace(config, num_slots=65_536))
        return engine.generate(prompts, SamplingParams(seed=seed, **params), n=n)
