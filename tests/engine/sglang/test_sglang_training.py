"""PAPO with rollouts on real SGLang, as a profile's `engine: {backend: sglang}` asks for."""

import psutil
import pytest
import torch
from sglang_engines import TOKENIZER, forking_model
from trl import GRPOConfig

from npr_lib.engine import EngineConfig, SamplingParams, SGLangEngine
from npr_lib.engine.checkpoint import load_checkpoint, save_model
from npr_lib.profiles.sections import NPR
from npr_lib.tasks.problems import Problem, ProblemSet
from npr_lib.train.engines import rollout_engine
from npr_lib.train.lora import add_adapter
from npr_lib.train.papo import PAPO, advantages
from npr_lib.train.reinforce import DEFAULTS
from npr_lib.train.trainer import Recipe, RolloutTrainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.mark.parametrize("lora", [{}, {"r": 4, "target_modules": ["q_proj", "down_proj"]}])
def test_papo_steps_with_sglang_rollouts(lora, tmp_path):
    """Two optimizer steps: SGLang follows the weights, of an adapter merged into its base, and
    trainer and engine agree on logprobs."""
    model, folder = forking_model("qwen3"), tmp_path / "start"
    save_model(model, TOKENIZER, folder, "parallel")
    if lora:
        model = add_adapter(load_checkpoint(folder)[0], TOKENIZER, lora, seed=0)
        folder = tmp_path / "adapter"
        save_model(model, TOKENIZER, folder, "parallel")
    problems = ProblemSet(
        [Problem(str(i), f"{i}{i}", "0", {}) for i in range(6)], lambda predicted, problem: False
    )
    rewards = iter([1.0, -1.0, 0.5, -1.0] * 12)
    section = NPR(sampling=SamplingParams(max_tokens=100), min_kept=0.0)
    recipe = Recipe(section, "parallel", lambda rollout: next(rewards), advantages)
    args = GRPOConfig(
        **{
            **DEFAULTS,
            **PAPO,
            "scale_rewards": "batch",
            "save_strategy": "no",
            "output_dir": str(tmp_path / "out"),
            "num_generations": 4,
            "per_device_train_batch_size": 12,
            "max_completion_length": 100,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "use_cpu": True,
        }
    )
    before = [p.detach().clone() for p in model.parameters()]
    config = EngineConfig(backend="sglang", num_slots=4096)
    with rollout_engine(model, TOKENIZER, config, folder) as engine:
        assert isinstance(engine, SGLangEngine)
        trainer = RolloutTrainer(
            model, TOKENIZER, args, engine, problems, problems[:2], "{problem}=", recipe
        )
        trainer.train()
    left = psutil.Process().children(recursive=True)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in left), "SGLang lives on"
    key = "sampling/sampling_logp_difference/max"
    gaps = [row[key] for row in trainer.state.log_history if key in row]
    assert len(gaps) == 2
    print("max |trainer - engine| logprob:", gaps)
    assert max(gaps) <= 1e-3
    moved = max((p - b).abs().max().item() for p, b in zip(model.parameters(), before, strict=True))
    assert moved > 1e-3, "the weights did not change: the test shows nothing"
    assert torch.isfinite(torch.tensor(gaps)).all()
