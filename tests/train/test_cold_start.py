"""Cold start: what is read, what is in the loss, and a file's lines; the check before training."""

import json
from dataclasses import replace

import pytest
from own_models import write_random
from releases import bpe
from scripted import ScriptedEngine, trajectory
from stages_for_tests import make_stage
from tokenizers.processors import TemplateProcessing

from npr_lib import WorkbenchError
from npr_lib.engine.checkpoint import checkpoint_mode
from npr_lib.profiles.profile import load_profile
from npr_lib.profiles.sections import ColdStart
from npr_lib.reasoning.tokens import encode_prompt
from npr_lib.tasks.parts.corpus import Document
from npr_lib.tasks.problems import load_problems
from npr_lib.train import cold_start, dapo, seed
from npr_lib.train.cold_start import documents, example
from npr_lib.train.trainer import TrainingStoppedError

TRL = {"max_steps": 3, "per_device_train_batch_size": 4, "save_steps": 1, "learning_rate": 1e-3}


@pytest.fixture
def profile(tmp_path):
    write_random(tmp_path / "mine")
    profile = load_profile("smoke", ["npr_zero.grpo.max_steps=1"])
    return replace(
        profile,
        model={"path": str(tmp_path / "mine")},
        cold_start=ColdStart(source="corpus", documents=12, trl=TRL),
    )


def test_a_response_is_encoded_whole_and_only_what_is_trained_has_a_loss():
    tokenizer = bpe()
    pieces = (("<guideline><plan>1:A</plan>", True), ("<plan>", False), ("2:B</plan>", True))
    row = example(Document("A=1;", pieces, "valid"), tokenizer)
    text = "<guideline><plan>1:A</plan><plan>2:B</plan>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    prompt = tokenizer.encode("A=1;", add_special_tokens=False)
    assert row["input_ids"] == [*prompt, *ids, tokenizer.eos_token_id]
    assert row["labels"][: len(prompt)] == [-100] * len(prompt)
    silent, position, start = [], 0, text.index("<plan>2")
    for i in ids:
        piece = tokenizer.decode([i])
        if position < start + len("<plan>") and position + len(piece) > start:
            silent.append(piece)
        position += len(piece)
    labels = row["labels"][len(prompt) :]
    assert [tokenizer.decode([i]) for i, label in zip(ids, labels, strict=False) if label < 0] == (
        silent
    )
    assert silent and labels[-1] == tokenizer.eos_token_id
    assert example(Document("A=1;", pieces, "drill"), tokenizer)["input_ids"][-1] == ids[-1]


def test_a_prompt_begins_as_the_engine_gives_it():
    """With one BOS where the tokenizer begins texts with it."""
    tokenizer = bpe()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    row = example(Document("A=1;", (("x", True),), "valid"), tokenizer)
    ids = encode_prompt("A=1;", tokenizer)
    assert ids[0] == tokenizer.bos_token_id and row["input_ids"][: len(ids)] == ids


def test_it_comes_before_stage_1_and_its_documents_stay(profile, tmp_path):
    folder = seed.train(make_stage(profile, tmp_path))
    read = documents(folder)
    assert len(read) == 12 and list(seed.documents(profile, 0, folder)) == read
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log][:3] == [1, 2, 3]
    assert checkpoint_mode(folder) == "sequential"


def test_a_file_of_responses(profile, tmp_path, capsys):
    file = tmp_path / "own.jsonl"
    file.write_text('{"problem": "A=1;", "response": "x\\\\boxed{1}"}\n{"problem": "B"}\n')
    given = replace(profile, cold_start=replace(profile.cold_start, source=str(file)))
    with pytest.raises(WorkbenchError, match=r"own\.jsonl, line 2: not a JSON object with texts"):
        seed.train(make_stage(given, tmp_path))
    for text, said in (
        ("", "none of its 0 responses"),
        ('{"problem": "A", "response": 3}', "line 1"),
    ):
        file.write_text(text)
        with pytest.raises(WorkbenchError, match=said):
            seed.train(make_stage(given, tmp_path / "bad"))
    held_out = load_problems(profile.problems, "test", 0)[0].problem
    line = '{"problem": "A=1;", "response": "x\\\\boxed{1}"}\n'
    file.write_text(line * 3 + line.replace("A=1;", held_out) + line * 2)
    read = documents(seed.train(make_stage(given, tmp_path)))
    assert [(d.prompt, d.response) for d in read] == [("A=1;\n", "x\\boxed{1}")] * 5
    assert "1 are to held-out problems" in capsys.readouterr().out
    for wrong, said in (("nothing.jsonl", "can't be read"), ("some", "none, corpus, few_shot")):
        given = replace(profile, cold_start=replace(profile.cold_start, source=wrong))
        with pytest.raises(WorkbenchError, match=said):
            seed.train(make_stage(given, tmp_path / "other"))


def test_few_shot_without_a_valid_response_says_so(profile, tmp_path):
    few = replace(profile.cold_start, source="few_shot", samples=1, documents=4)
    few = replace(few, sampling=replace(few.sampling, max_tokens=8))
    with pytest.raises(WorkbenchError, match="none of 4 problems got a valid, right response"):
        seed.train(make_stage(replace(profile, cold_start=few), tmp_path))


def test_few_shot_responses_are_distilled_into_the_plain_prompt(profile, tmp_path, monkeypatch):
    """Every second attempt is right; what is right is asked no more."""
    text = "<guideline><plan>1:A</plan></guideline><step>1:c</step><takeaway>t</takeaway>"
    engines = []

    def engine(*_):
        def script(prompt, sample, params, mode):
            assert prompt.startswith("shown: ") and mode == "sequential"
            right = len(engines[0].calls) > 1
            return trajectory(text + f"\\boxed{{{answers[prompt] if right else 'no'}}}", mode=mode)

        engines.append(ScriptedEngine(script))
        return engines[0]

    monkeypatch.setattr(cold_start, "TorchEngine", engine)
    problems = load_problems(profile.problems, "train", 0)[:4]
    answers = {f"shown: {p.problem}": p.answer for p in problems}
    few = replace(profile.cold_start, source="few_shot", documents=4, prompt="shown: {problem}")
    folder = seed.train(make_stage(replace(profile, cold_start=few), tmp_path))
    assert [len(call[0]) for call in engines[0].calls] == [4, 4]
    assert [d.prompt for d in documents(folder)] == [f"{p.problem}\n" for p in problems]
    assert all(d.response.startswith(text) for d in documents(folder))


def test_a_reward_that_cannot_vary_is_said_before_training(profile, tmp_path):
    seed.train(make_stage(replace(profile, cold_start=ColdStart()), tmp_path))
    flat = replace(profile.npr_zero, partial_credit=False, start_check=8)
    stage = make_stage(replace(profile, npr_zero=flat), tmp_path)
    with pytest.raises(TrainingStoppedError, match=r"0 of 8 responses are valid, 0 right; 0 of 4"):
        dapo.train(stage, reward=lambda rollout: rollout.format_reward)
    assert not (tmp_path / "npr_zero").exists()
