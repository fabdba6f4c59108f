"""Real SGLang for tests: launched with its strict memory checks on, gone when the test is over."""

import os
import random
from contextlib import contextmanager

import psutil
from oracles import random_model
from policies import random_policy

from npr_lib.engine import EngineConfig, SamplingParams, SGLangEngine, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.tokenizer import encode, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
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


@contextmanager
def sglang_engine(model, folder, config, **server_args):
    """An SGLangEngine on a model; afterwards none of its processes is left."""
    os.environ.update(CHECKS)
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
        engine = TorchEngine(model, TOKENIZER, EngineConfig(max_depth=config.max_depth))
        return engine.generate(prompts, SamplingParams(seed=seed, **params), n=n)
