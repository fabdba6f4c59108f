"""Problem sets: determinism, disjoint splits, verifiers, and errors a user can act on."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npr_lib.tasks import gym, problems
from npr_lib.tasks.parts import task
from npr_lib.tasks.parts.problems import parts_problem
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.tasks.problems import (
    SPLITS,
    Problem,
    build_prompt,
    load_problems,
    split_of,
)

PARTS = {"kind": "parts", "parts": [2, 4], "train": 300, "validation": 200, "test": 200}
DATA = Path(__file__).parents[2] / "data"


def test_parts_answers_equal_pythons_own_arithmetic():
    for split in SPLITS:
        for problem in load_problems(PARTS, split, seed=3):
            found = dict(re.findall(r"([A-Z])=([^;]+);", problem.problem))
            assert problem.meta["parts"] == found
            assert 2 <= len(found) <= 4
            assert problem.answer == ",".join(map(str, worked_out(found).values()))


def worked_out(parts):
    """The values of all parts by substitution and eval: shares no code with the task."""
    texts = dict(parts)
    while any(text[0].isalpha() for text in texts.values()):
        for label, text in texts.items():
            if text[0].isalpha() and not texts[text[0]][0].isalpha():
                texts[label] = str(eval(texts[text[0]])) + text[1:]
    return {label: eval(text) for label, text in texts.items()}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_splits_share_no_sub_expression_whatever_the_seeds(one, other):
    used = {
        (split, seed): {
            text for p in load_problems(PARTS, split, seed) for text in resolved(p.meta["parts"])
        }
        for split in SPLITS
        for seed in (one, other)
    }
    for (split_a, _), texts_a in used.items():
        for (split_b, _), texts_b in used.items():
            assert split_a == split_b or not texts_a & texts_b


def resolved(parts):
    values = worked_out(parts)
    return {
        (str(values[text[0]]) if text[0].isalpha() else text[0]) + text[1:]
        for text in parts.values()
    }


def test_shares_decide_how_many_expressions_a_split_owns():
    shares = {"train": 0.3, "validation": 0.3, "test": 0.4}
    owned = [split_of(text, shares) for text in task.expressions(3)]
    for split, share in shares.items():
        # 4 standard deviations of a binomial around the share
        slack = 4 * (share * (1 - share) / len(owned)) ** 0.5
        assert abs(owned.count(split) / len(owned) - share) < slack
    with pytest.raises(ValueError, match="sum to 1"):
        split_of("1+1+1", {"train": 0.5, "test": 0.4})


def test_a_problem_set_is_a_function_of_spec_split_and_seed():
    first, again = (load_problems(PARTS, "train", 7) for _ in range(2))
    assert list(first) == list(again)
    assert list(first) != list(load_problems(PARTS, "train", 8))
    assert len({p.id for p in first}) == len(first) == 300
    assert isinstance(first[:5], type(first)) and list(first[:5]) == list(first)[:5]


def test_ids_are_stable_across_versions():
    problem = parts_problem({"A": "7-2+3+1", "B": "A+1-2-3"})
    assert problem.problem == "A=7-2+3+1;B=A+1-2-3;values?"
    assert (problem.id, problem.answer) == ("parts-6864fb485f9a", "9,5")


def test_parts_verifier_wants_the_number_itself():
    problem_set = load_problems(PARTS, "test", 0)
    problem = problem_set[0]
    assert problem_set.verify(f" {problem.answer} ", problem)
    for wrong in (None, "", "0," + problem.answer, problem.answer + "0"):
        assert not problem_set.verify(wrong, problem)


def test_too_small_pools_are_refused():
    with pytest.raises(ValueError, match="distinct problems"):
        load_problems({"kind": "parts", "parts": [1, 1], "terms": 2, "test": 20}, "test", 0)


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ({"kind": "nonsense"}, "train", "unknown kind of problem set: 'nonsense'"),
        (PARTS, "dev", "unknown split 'dev'"),
        ({"kind": "parts"}, "train", "number of problems: train: N"),
        ({"kind": "parts", "parts": [3, 2], "train": 1}, "train", "fewest, most"),
    ],
)
def test_bad_specs_say_what_is_wrong(spec, split, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_problems(spec, split, 0)


# ---------------------------------------------------------------- reasoning-gym


def test_reasoning_gym_is_scored_by_its_own_verifier():
    spec = {"kind": "reasoning-gym", "name": "leg_counting"} | dict.fromkeys(SPLITS, 15)
    sets = {split: load_problems(spec, split, 1) for split in SPLITS}
    texts = {split: {p.problem for p in sets[split]} for split in SPLITS}
    assert all(len(texts[split]) == 15 for split in SPLITS)
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    assert list(sets["test"]) == list(load_problems(spec, "test", 1))
    for problem in sets["test"]:
        assert problem.answer == str(problem.meta["entry"]["metadata"]["total_legs"])
        assert sets["test"].verify(problem.answer, problem)
        assert not sets["test"].verify(problem.answer + "1", problem)
        assert not sets["test"].verify(None, problem)


def test_reasoning_gym_takes_any_right_answer_not_only_the_reference():
    spec = {"kind": "reasoning-gym", "name": "countdown", "test": 3}
    countdown = load_problems(spec, "test", 0)
    for problem in countdown:  # many expressions reach the target: the scorer evaluates them
        assert countdown.verify(f"({problem.answer})", problem)
        assert not countdown.verify("1", problem)


def test_an_exhausted_generator_is_an_error(monkeypatch):
    monkeypatch.setattr(gym, "BARREN_CHUNKS", 2)
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    spec = {"kind": "reasoning-gym", "name": "chain_sum", "config": tiny, "test": 10_000}
    with pytest.raises(ValueError, match=r"only .* of 10000 test problems"):
        load_problems(spec, "test", 0)


# ---------------------------------------------------------------- files and the hub

ROWS = [{"problem": f"What is {i} halves?", "answer": i / 2, "level": i % 3} for i in range(60)]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["problems.jsonl", "problems.parquet"])
def test_files_are_read_and_cut_into_disjoint_splits(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    sets = [load_problems({"kind": "file", "path": str(path)}, split, 0) for split in SPLITS]
    assert sorted(p.problem for s in sets for p in s) == sorted(row["problem"] for row in ROWS)
    assert all(len(s) for s in sets)
    problem = sets[0][0]
    assert "level" in problem.meta
    assert sets[0].verify(rf"\frac{{{int(2 * float(problem.answer))}}}{{2}}", problem)
    assert not sets[0].verify(str(float(problem.answer) + 1), problem)


def test_a_file_per_split_is_taken_whole_or_sampled_in_order(tmp_path):
    path = str(write(tmp_path / "bench.jsonl", ROWS))
    spec = {"kind": "file", "path": {"test": path}}
    assert [p.problem for p in load_problems(spec, "test", 0)] == [r["problem"] for r in ROWS]
    some = load_problems(spec | {"test": 10}, "test", 0)
    order = [[r["problem"] for r in ROWS].index(p.problem) for p in some]
    assert order == sorted(order) and len(set(order)) == 10
    assert list(some) != list(load_problems(spec | {"test": 10}, "test", 1))
    with pytest.raises(ValueError, match="61 test problems asked, it has 60"):
        load_problems(spec | {"test": 61}, "test", 0)
    with pytest.raises(ValueError, match="no source for the split 'train'"):
        load_problems(spec, "train", 0)
    with pytest.raises(ValueError, match="several splits"):
        load_problems({"kind": "file", "path": {"train": path, "test": path}}, "test", 0)


@pytest.mark.parametrize("column", ["problem", "answer"])
@pytest.mark.parametrize("name", ["bad.jsonl", "bad.parquet"])
def test_a_missing_column_is_named_with_its_file(tmp_path, name, column):
    rows = [{k: v for k, v in row.items() if k != column} for row in ROWS]
    path = write(tmp_path / name, rows)
    with pytest.raises(ValueError) as error:
        load_problems({"kind": "file", "path": str(path)}, "train", 0)
    assert str(path) in str(error.value) and repr(column) in str(error.value)


def test_columns_can_be_renamed_and_ids_are_kept_and_unique(tmp_path):
    rows = [{"id": "q1", "q": "1+1", "a": 2}, {"id": "q1", "q": "1+1", "a": 2}]
    path = write(tmp_path / "named.jsonl", rows)
    spec = {"kind": "file", "path": {"test": str(path)}}
    named = load_problems(spec | {"columns": {"problem": "q", "answer": "a"}}, "test", 0)
    assert [(p.id, p.problem, p.answer) for p in named] == [
        ("q1", "1+1", "2"),
        ("q1-2", "1+1", "2"),
    ]
    with pytest.raises(ValueError, match=r"line 1 lacks column 'problem' \(.*\); it has id, q, a"):
        load_problems(spec, "test", 0)
    with pytest.raises(ValueError, match=r"end in .jsonl, .json, .parquet, .csv"):
        load_problems({"kind": "file", "path": "problems.xlsx"}, "test", 0)
    with pytest.raises(FileNotFoundError, match=r"nowhere.jsonl"):
        load_problems({"kind": "file", "path": "nowhere.jsonl"}, "test", 0)


def test_hub_sets_are_read_by_load_dataset_from_a_local_folder(tmp_path):
    write(tmp_path / "test.parquet", ROWS)
    spec = {"kind": "hub", "name": str(tmp_path), "splits": {"test": "test"}, "test": 5}
    loaded = load_problems(spec, "test", 0)
    assert len(loaded) == 5 and {p.problem for p in loaded} <= {r["problem"] for r in ROWS}
    assert loaded.verify(loaded[0].answer, loaded[0])


def test_hub_arguments_are_passed_on_and_a_missing_column_is_named(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return [{"q": "1+1", "answer": "2"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    spec = {"kind": "hub", "name": "org/bench", "config": "main", "revision": "abc"}
    with pytest.raises(ValueError, match=r"org/bench \(split test\): row 1 lacks column 'problem'"):
        load_problems(spec, "test", 0)
    assert calls == [(("org/bench", "main"), {"split": "test", "revision": "abc"})]
    named = spec | {"columns": {"problem": "q"}, "splits": "train", "shares": {"test": 1.0}}
    assert [p.problem for p in load_problems(named, "test", 0)] == ["1+1"]
    assert calls[-1][1]["split"] == "train"


# ---------------------------------------------------------------- prompts and data/


def test_prompt_templates_replace_the_problem_only():
    problem = Problem("x", "1+{1}", "2")
    template = "Answer in \\boxed{}: {problem}\n"
    assert build_prompt(problem, template) == "Answer in \\boxed{}: 1+{1}\n"
    with pytest.raises(ValueError, match=r"no {problem}"):
        build_prompt(problem, "hello")


def test_prompts_go_through_the_chat_template_when_there_is_one():
    class Tokenizer:
        chat_template = "some template"

        def apply_chat_template(self, messages, tokenize, add_generation_prompt):
            assert not tokenize and add_generation_prompt
            return "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"

    problem = Problem("x", "1+1", "2")
    assert build_prompt(problem, "Q {problem}", Tokenizer()) == "[user]Q 1+1[assistant]"
    plain = SimpleNamespace(chat_template=None)
    assert build_prompt(problem, "Q {problem}", plain) == "Q 1+1"


def test_a_prompt_may_say_more_to_the_chat_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    )
    problem = Problem("x", "1+1", "2")
    assert build_prompt(problem, {"template": "Q {problem}"}, tokenizer) == "[user]Q 1+1[assistant]"
    prompt = {"template": "Q {problem}", "system": "S", "chat": {"enable_thinking": False}}
    expected = "[system]S[user]Q 1+1[assistant]<think></think>"
    assert build_prompt(problem, prompt, tokenizer) == expected
    for key in ("system", "chat"):
        given = {"template": "{problem}", key: prompt[key]}
        with pytest.raises(ValueError, match=rf"prompt\.{key} is for a chat template"):
            build_prompt(problem, given, tiny_tokenizer())
    with pytest.raises(ValueError, match=r"no {problem}: ''"):
        build_prompt(problem, {"system": "S"}, tokenizer)


def test_a_prompt_may_show_how_problems_are_answered():
    tokenizer = tiny_tokenizer()
    problem = Problem("x", "1+1", "2")
    prompt = {"template": "Q {problem}\n", "turns": [{"problem": "2+2", "response": "4"}]}
    assert build_prompt(problem, prompt, tokenizer) == "Q 2+2\n4\n\nQ 1+1\n"
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    expected = "[user]Q 2+2\n[assistant]4[user]Q 1+1\n"
    assert build_prompt(problem, prompt, tokenizer) == expected
    with pytest.raises(ValueError, match=r"prompt\.turns: each has `problem` and `response`"):
        build_prompt(problem, {**prompt, "turns": [{"problem": "2+2"}]}, tokenizer)


def test_committed_sets_are_what_their_command_writes(capsys):
    commands = re.findall(
        r"^ +python -m npr_lib\.tasks\.problems '(.+)' (\w+) (\d+) > data/(\S+)$",
        (DATA / "README.md").read_text(),
        re.MULTILINE,
    )
    assert sorted(name for *_, name in commands) == sorted(p.name for p in DATA.glob("*.jsonl"))
    for spec, split, seed, name in commands:
        problems.main([spec, split, seed])
        assert capsys.readouterr().out == (DATA / name).read_text(), name
        assert len(load_problems({"kind": "file", "path": {"test": str(DATA / name)}}, "test", 0))
