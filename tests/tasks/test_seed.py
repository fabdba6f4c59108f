"""A short pretraining of the seed, its batches, its optimizer."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import torch
from stages_for_tests import make_stage
from transformers import AutoModelForCausalLM, AutoTokenizer

from npr_lib.engine.checkpoint import checkpoint_mode
from npr_lib.profiles.profile import load_profile
from npr_lib.reasoning.tokens import TagIds
from npr_lib.tasks.parts.seed import IGNORE, Muon, _batches, _encode, orthogonalise
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.tasks.problems import load_problems
from npr_lib.train.seed import documents, train

TINY, SMOKE = load_profile("tiny"), load_profile("smoke")


def test_batches_hold_every_document_once_with_little_padding():
    tokenizer = tiny_tokenizer()
    settings = replace(TINY.seed, steps=11)
    batches = list(_batches(settings, documents(TINY, 0), tokenizer, 0))
    assert len(batches) == 11
    size = TINY.seed.batch
    expected = [_encode(d, tokenizer)[0] for d in itertools.islice(documents(TINY, 0), 11 * size)]
    pad = tokenizer.pad_token_id
    found = [[i for i in row if i != pad] for ids, _ in batches for row in ids.tolist()]
    assert sorted(found) == sorted(expected)
    assert sum(map(len, found)) > 0.85 * sum(ids.numel() for ids, _ in batches)
    for ids, labels in batches:
        assert ((labels == ids) | (labels == IGNORE)).all()
        assert (labels[ids == pad] == IGNORE).all()


def test_muon_steps_like_torchs_own():
    torch.manual_seed(0)
    shapes = [(24, 16), (16, 24), (24, 16), (16, 16)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = [Muon(ours, lr=0.1), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0)]
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=0.02)  # theirs orthogonalises in bfloat16


def test_orthogonalised_updates_have_singular_values_near_one():
    updates = orthogonalise(torch.randn(3, 20, 50, generator=torch.manual_seed(0)))
    singular = torch.linalg.svdvals(updates)
    assert singular.min() > 0.5 and singular.max() < 1.3


def test_smoke_pretraining_learns_and_is_repeatable(tmp_path):
    assert SMOKE.seed.steps <= 150
    folders = [train(make_stage(SMOKE, tmp_path / name)) for name in ("a", "b")]
    log = [json.loads(line) for line in (folders[0] / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(10, SMOKE.seed.steps + 1, 10))
    assert log[-1]["loss"] < 0.75 * log[0]["loss"]
    assert log[-1]["num_tokens"] > 0
    assert checkpoint_mode(folders[0]) == "sequential"
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    assert TagIds.from_tokenizer(tokenizer) == TagIds.from_tokenizer(tiny_tokenizer())
    problem = load_problems(SMOKE.problems, "validation", 0)[0]
    ids = tokenizer(SMOKE.prompt.format(problem=problem.problem), return_tensors="pt").input_ids
    assert models[0](ids).logits.shape == (*ids.shape, len(tokenizer))


def test_the_tiny_model_is_tiny():
    from npr_lib.tasks.parts.seed import build_model

    model = build_model(TINY.model, tiny_tokenizer())
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
