"""Groups packed as forks of their prompt: the same logprobs and gradients, the prompt once."""

import random
from dataclasses import dataclass, field

import pytest
import torch
from accelerate import Accelerator
from oracles import brute_force_mask, dense_logits, random_model, trajectory_paths
from policies import random_policy
from test_mask import Largest
from test_papo import REWARDS, SPLITS, make_trainer
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl.trainer.utils import add_fused_lm_head

from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine, attention
from npr_lib.engine.attention import use_npr_attention
from npr_lib.engine.branch import Response
from npr_lib.reasoning.layout import causal_layout
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.train.forward import logprobs_and_entropies, plan, rows_of

TOKENIZER = tiny_tokenizer()
GROUP = 4


@dataclass
class Batch:
    """Random responses as TRL pads them, and a model that has not seen them."""

    model: torch.nn.Module
    trajectories: list
    advantages: torch.Tensor
    accelerator: Accelerator = field(default_factory=lambda: Accelerator(cpu=True))

    def __post_init__(self):
        self.layouts = [t.layout for t in self.trajectories]
        self.width = max(t.work for t in self.trajectories) + 2
        prompt = max(len(t.prompt_ids) for t in self.trajectories) + 3
        ids = torch.full((len(self.layouts), prompt + self.width), TOKENIZER.pad_token_id)
        self.mask = torch.zeros_like(ids)
        for i, t in enumerate(self.trajectories):
            own = slice(prompt - len(t.prompt_ids), prompt + t.work)
            ids[i, own] = torch.tensor(t.prompt_ids + t.completion_ids)
            self.mask[i, own] = 1
        self.ids = ids

    def rows(self, silent=None):
        silent = silent or [False] * len(self.layouts)
        return rows_of(self.ids, self.layouts, self.width, silent, self.accelerator)

    def forward(self, rows, silent=None):
        silent = silent or [False] * len(self.layouts)
        given = (self.layouts, self.width, rows, silent)
        return logprobs_and_entropies(self.model, self.accelerator, self.ids, self.mask, *given)

    def gradient(self, rows, silent=None):
        """Of a loss with these advantages and an entropy's weight that the silent lack too."""
        self.model.zero_grad()
        logprobs, entropies = self.forward(rows, silent)
        loss = self.advantages[:, None] * (logprobs + 0.1 * entropies)
        loss.sum().backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters()}


def random_batch(seed, monkeypatch, model=None, style="compact"):
    """Three groups and one more of the first prompt; nested, truncated and broken responses."""
    policy = random_policy(TOKENIZER, broken=0.02)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))
    rng = random.Random(seed)
    model = model or random_model(rng, TOKENIZER)
    config = EngineConfig(num_slots=8192, max_depth=3, style=style)
    engine = TorchEngine(model, TOKENIZER, config)
    prompts = ["A=1+2;", "B", "C=4-3+2;D=1;", "A=1+2;"]
    params = SamplingParams(max_tokens=300, seed=seed)
    trajectories = engine.generate(prompts, params, n=GROUP)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    advantages = torch.tensor([rng.uniform(-1, 1) for _ in trajectories])
    advantages[2], advantages[GROUP : 2 * GROUP] = 0, 0
    return Batch(model, trajectories, advantages)


def assert_same(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert torch.allclose(found[name], gradient, rtol=0, atol=tolerance * scale), name


ALONE = [[[i]] for i in range(4 * GROUP)]


@pytest.mark.parametrize(
    "seed, style", [(0, "compact"), (1, "compact"), (2, "compact"), (3, "lines")]
)
def test_logprobs_are_the_dense_ones_and_gradients_the_unpacked_ones(seed, style, monkeypatch):
    batch = random_batch(seed, monkeypatch, style=style)
    assert {t.finish_reason for t in batch.trajectories} == {"stop", "length", "invalid"}
    assert max(len(s.path) for t in batch.trajectories for s in t.layout.segments) > 1
    rows = batch.rows()
    assert [len(group) for row in rows for group in row] == [2 * GROUP, GROUP, GROUP]
    logprobs, entropies = batch.forward(rows)
    for i, t in enumerate(batch.trajectories):
        ids, start = t.prompt_ids + t.completion_ids, len(t.prompt_ids)
        mask = brute_force_mask(trajectory_paths(t))
        logits = dense_logits(batch.model, ids, t.position_ids, mask)[start - 1 : -1]
        expected = logits.log_softmax(-1)
        own = expected.gather(1, torch.tensor(t.completion_ids)[:, None])[:, 0]
        assert torch.allclose(logprobs[i, : t.work], own, atol=1e-4)
        entropy = -(expected.exp() * expected).sum(-1)
        assert torch.allclose(entropies[i, : t.work], entropy, atol=1e-4)
        assert not logprobs[i, t.work :].any() and not entropies[i, t.work :].any()
    alone = batch.gradient(ALONE)
    assert_same(batch.gradient(rows), alone)
    assert_same(batch.gradient(plan(batch.layouts, rows[0], limit=700)), alone)
    silent = (batch.advantages == 0).tolist()
    assert_same(batch.gradient(batch.rows(silent), silent), alone)
    batch.model.train().gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(batch.gradient(rows), alone)


def test_the_prompt_is_computed_once_a_group_and_nothing_is_padded(monkeypatch):
    batch = random_batch(5, monkeypatch)
    seen = []
    embeddings = batch.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
    batch.forward(batch.rows())
    prompts = {tuple(t.prompt_ids): 0 for t in batch.trajectories}
    total = sum(len(p) - 1 for p in prompts) + sum(t.work + 1 for t in batch.trajectories)
    assert sum(ids.numel() for ids, _ in seen) == total
    seen.clear()
    silent = (batch.advantages == 0).tolist()
    batch.forward(batch.rows(silent), silent)
    learnt = [ids.numel() for ids, out in seen if out.requires_grad]
    kept = [t for t, still in zip(batch.trajectories, silent, strict=True) if not still]
    assert sum(learnt) == sum(len(p) - 1 for p in {tuple(t.prompt_ids) for t in kept}) + sum(
        t.work + 1 for t in kept
    )
    seen.clear()
    batch.forward(batch.rows([True] * len(silent)), [True] * len(silent))
    assert seen[0][1].requires_grad, "a loss that can go back, whatever is silent"


def test_tokens_without_a_mask_have_no_logprob(monkeypatch):
    """As TRL marks truncated responses that are not to be learned."""
    batch = random_batch(6, monkeypatch)
    before, *_ = batch.forward(batch.rows())
    batch.mask[3, -batch.width :] = 0
    after, *_ = batch.forward(batch.rows())
    assert not after[3].any()
    before[3] = 0
    assert torch.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_rows_hold_every_sequence_once_and_no_more_than_the_limit(seed):
    rng = random.Random(seed)
    layouts, groups = [], []
    for _ in range(rng.randint(1, 6)):
        prompt, size = rng.randint(1, 30), rng.randint(1, 6)
        groups.append(list(range(len(layouts), len(layouts) + size)))
        layouts += [causal_layout(prompt + rng.randint(1, 60), prompt) for _ in range(size)]
    rows = plan(layouts, groups, limit=100)
    assert [i for row in rows for group in row for i in group] == list(range(len(layouts)))
    own = lambda i: len(layouts[i]) - layouts[i].prompt_len + 1  # noqa: E731
    for row in rows:
        tokens = sum(layouts[g[0]].prompt_len - 1 + sum(map(own, g)) for g in row)
        assert tokens <= 100 or sum(map(len, row)) == 1
    parts = [group for row in rows for group in row]
    for group in groups:
        whole = layouts[group[0]].prompt_len - 1 + sum(map(own, group))
        assert (group in parts) or whole > 100, "split without need"


def test_all_processes_make_as_many_calls(monkeypatch):
    """A process that needs two rows where another needs seven makes seven of them."""
    batch = random_batch(7, monkeypatch)
    expected = batch.gradient(batch.rows())

    class Several:
        num_processes, device = 2, torch.device("cpu")
        autocast = batch.accelerator.autocast

        def gather(self, tensor):
            return torch.cat([tensor, torch.tensor([7])])

    batch.accelerator = Several()
    rows = batch.rows()
    assert len(rows) == 7 and sorted(i for row in rows for g in row for i in g) == list(range(16))
    assert_same(batch.gradient(rows), expected)


def test_mixtures_of_experts(monkeypatch):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(**sizes, moe_intermediate_size=24, initializer_range=0.3)
    batch = random_batch(8, monkeypatch, Qwen3MoeForCausalLM(config).eval())
    assert_same(batch.gradient(batch.rows()), batch.gradient(ALONE), tolerance=5e-5)


def test_a_micro_batch_holds_whole_groups(tmp_path, monkeypatch):
    """TRL would shuffle them."""
    trainer = make_trainer(tmp_path, monkeypatch, REWARDS, **SPLITS[1])
    compute, seen = trainer._compute_loss, []

    def spy(model, inputs):
        seen.append(inputs)
        return compute(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    assert len(seen) == 3
    for inputs in seen:
        assert len(inputs["layouts"]) == 4 and len(inputs["prompt_ids"].unique(dim=0)) == 1
    found = torch.cat([inputs["advantages"] for inputs in seen])
    assert torch.equal(found, trainer._advantages(trainer._batch))


def test_flex_attention_takes_no_memory_above_a_rows_length(monkeypatch):
    """The whole forward of a model, with the CUDA path's kernel stood in for."""
    model = random_model(random.Random(2), TOKENIZER, max_position_embeddings=8192)
    use_npr_attention(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    masks = []

    def attend(query, key, value, block_mask, scale):
        assert query.shape == key.shape == value.shape
        masks.append(block_mask)
        return value

    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 64)
    monkeypatch.setattr(attention, "_by_blocks", lambda query: True)
    monkeypatch.setattr(attention, "_compiled", lambda: attend)
    n, prompt = 2048, 200
    layouts = [causal_layout(n, prompt) for _ in range(4)]
    ids = torch.randint(10, 40, (4, n))
    ids[:, :prompt] = ids[0, :prompt]
    rows = rows_of(ids, layouts, n - prompt, [False] * 4, accelerator := Accelerator(cpu=True))
    assert rows == [[[0, 1, 2, 3]]]
    with Largest() as largest:
        given = (ids, torch.ones_like(ids), layouts, n - prompt, rows, [False] * 4)
        logprobs, *_ = logprobs_and_entropies(model, accelerator, *given)
        logprobs.sum().backward()
    tokens = masks[0].seq_lengths[0]
    assert tokens > 7000 and all(mask is masks[0] for mask in masks), "one for all layers"
    assert largest.elements < tokens**2 / 64
