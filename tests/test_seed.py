"""The seed corpus (shares, grammar, what is right and wrong in it) and a short pretraining."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from npr_lib.problems import SHARES, load_problems, split_of
from npr_lib.profile import load_profile
from npr_lib.schema import parse
from npr_lib.tokenizer import TagIds, tiny_tokenizer
from npr_lib.train.seed import (
    IGNORE,
    KINDS,
    MALFORMATIONS,
    Muon,
    _batches,
    _encode,
    corpus,
    orthogonalise,
    train,
)

TINY, SMOKE = load_profile("tiny"), load_profile("smoke")


@pytest.fixture(scope="module")
def documents():
    return list(itertools.islice(corpus(TINY, 0), 4000))


def values(text: str) -> dict[str, tuple[str, int]]:
    """label -> (expression, last number) for every "A=7-2+3=5+3=8" or "...~8" in a step."""
    found = re.findall(r"([A-Z])=(\d[+-]\d[+-]\d)=(\d+)([+-]\d)([=~])(\d+)", text)
    for _, expression, middle, rest, _, _ in found:
        assert eval(expression[:3]) == int(middle) and expression[3:] == rest
    return {label: (expression, int(last)) for label, expression, _, _, _, last in found}


def test_shares_of_kinds_are_the_profiles(documents):
    kinds = Counter("malformed" if d.kind in MALFORMATIONS else d.kind for d in documents)
    for kind in KINDS:
        share = TINY["seed"]["corpus"][kind]
        slack = 4 * (share * (1 - share) / len(documents)) ** 0.5  # 4 standard deviations
        assert abs(kinds[kind] / len(documents) - share) < slack, kind
    assert set(MALFORMATIONS) <= {d.kind for d in documents}


def test_exactly_the_documents_called_valid_are_valid(documents):
    for document in documents:
        if document.kind != "drill":  # drills are not whole responses
            graph = parse(document.response)
            assert graph.valid == (document.kind == "valid"), (document, graph.violations)


def test_only_training_sub_expressions_are_used(documents):
    for document in documents:
        for expression in re.findall(r"=([^;]+);", document.prompt):
            assert split_of(expression, TINY["problems"].get("shares", SHARES)) == "train"


def test_alone_a_part_is_right_and_together_subtractions_are_forgotten(documents):
    together = Counter()
    for document in documents:
        if document.kind != "valid":
            continue
        block = parse(document.response).blocks[0]
        for plan, step in zip(block.plans, block.steps, strict=True):
            found = values(step.text)
            assert list(found) == plan.text.split(",")
            for expression, last in found.values():
                assert f"={expression};" in document.prompt
                if len(found) == 1:
                    assert last == eval(expression)
                else:
                    together[expression[3], last == eval(expression)] += 1
    careless = TINY["seed"]["corpus"]["careless"]
    assert together["+", False] == 0
    wrong = together["-", False] / (together["-", False] + together["-", True])
    assert abs(wrong - careless) < 0.03


def test_the_answer_of_a_valid_document_is_the_sum_of_what_its_steps_found(documents):
    for document in documents:
        if document.kind == "valid":
            graph = parse(document.response)
            found = [
                last for step in graph.blocks[0].steps for _, last in values(step.text).values()
            ]
            assert int(graph.boxed) == sum(found)
            assert graph.blocks[0].takeaway.endswith(f":{sum(found)}")


def test_plans_cover_the_parts_in_cyclic_order_in_every_width(documents):
    widths = Counter()
    for document in documents:
        if document.kind == "valid":
            plans = [plan.text.split(",") for plan in parse(document.response).blocks[0].plans]
            labels = "".join(itertools.chain(*plans))
            assert labels in "".join(sorted(labels)) * 2
            assert document.prompt.count("=") == len(labels)
            widths[len(labels), len(plans)] += 1
    assert set(widths) == {(n, k) for n in (2, 3, 4) for k in range(1, n + 1)}


def test_drills_train_only_what_follows_the_forced_index(documents):
    """The index is the only key: steps come in any order and their headers have no loss."""
    tokenizer = tiny_tokenizer()
    tags = TagIds.from_tokenizer(tokenizer)
    first = Counter()
    for document in (d for d in documents if d.kind == "drill"):
        ids, labels = _encode(document, tokenizer)
        assert tokenizer.decode(ids) == document.prompt + document.response
        trained = [i for i, label in enumerate(labels) if label != IGNORE]
        assert trained and all(ids[i] == labels[i] for i in trained)
        assert not any(ids[i] in (tags.step, tags.guideline, tags.plan_end) for i in trained)
        plans = dict(re.findall(r"<plan>(\d):([^<]+)<", document.response))
        steps = re.findall(r"<step>(\d):([^<]+)<", document.response)
        assert [",".join(values(text)) for _, text in steps] == [plans[i] for i, _ in steps]
        assert len(steps) == 1
        if len(plans) == 3:
            first[int(steps[0][0])] += 1
    assert min(first[1], first[2], first[3]) > 0.5 * max(first.values())


def test_a_corpus_is_a_function_of_profile_and_seed(documents):
    assert list(itertools.islice(corpus(TINY, 0), 50)) == documents[:50]
    assert list(itertools.islice(corpus(TINY, 1), 50)) != documents[:50]
    with pytest.raises(ValueError, match="kind 'parts' only"):
        next(corpus(TINY | {"problems": {"kind": "file"}}, 0))


def test_batches_hold_every_document_once_with_little_padding():
    tokenizer = tiny_tokenizer()
    profile = TINY | {"seed": TINY["seed"] | {"steps": 11}}
    batches = list(_batches(profile, tokenizer, 0))
    assert len(batches) == 11
    size = TINY["seed"]["batch"]
    expected = [_encode(d, tokenizer)[0] for d in itertools.islice(corpus(TINY, 0), 11 * size)]
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
    assert SMOKE["seed"]["steps"] <= 150
    folders = [train(SMOKE, tmp_path / name, seed=0) for name in ("a", "b")]
    log = [json.loads(line) for line in (folders[0] / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(10, SMOKE["seed"]["steps"] + 1, 10))
    assert log[-1]["loss"] < 0.75 * log[0]["loss"]
    assert log[-1]["num_tokens"] > 0
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    assert TagIds.from_tokenizer(tokenizer) == TagIds.from_tokenizer(tiny_tokenizer())
    problem = load_problems(SMOKE["problems"], "validation", 0)[0]
    ids = tokenizer(SMOKE["prompt"].format(problem=problem.problem), return_tensors="pt").input_ids
    assert models[0](ids).logits.shape == (*ids.shape, len(tokenizer))


def test_the_tiny_model_is_tiny():
    from npr_lib.train.seed import build_model

    model = build_model(TINY["model"], tiny_tokenizer())
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
