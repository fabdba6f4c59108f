"""Benchmarks by name, from files and from a hub that is not there."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import pytest

from npr_lib import WorkbenchError
from npr_lib.tasks import benchmarks
from npr_lib.tasks.benchmarks import BENCHMARKS, benchmark
from npr_lib.tasks.problems import identity, load_problems

ROWS = {
    "aime25": {"problem": "1+1?", "answer": "2"},
    "aime24": {"id": 1, "problem": "1+1?", "solution": "so \\boxed{2}", "answer": "2"},
    "hmmt25": {"problem_idx": 1, "problem": "1+1?", "answer": "2", "problem_type": ["Algebra"]},
    "olympiadbench": {"question": "1+1?", "solution": ["long"], "final_answer": ["2"]},
    "minerva": {"question": "1+1?", "answer": "2"},
    "amc23": {"id": 0, "question": "1+1?", "answer": "2", "url": ""},
    "math500": {"problem": "1+1?", "solution": "…", "answer": "2", "unique_id": "a"},
    "orz57k": {"0": {"value": "1+1?"}, "1": {"ground_truth": {"value": "2"}}},
}
PUZZLE = {
    "id": "lgp-1",
    "size": "2*2",
    "puzzle": "Two houses …",
    "solution": {"header": ["House", "Name"], "rows": [["1", "Ann"], ["2", "Bob"]]},
}
CHOICE = {
    "Record ID": "rec1",
    "Question": "Which?",
    "Correct Answer": "this\n",
    **{f"Incorrect Answer {i}": f"that {i}" for i in (1, 2, 3)},
}


def spec(name, **fields):
    return {"kind": "benchmark", "name": name, **fields}


@pytest.mark.parametrize("name", ROWS)
def test_the_hubs_rows_become_problems(name, monkeypatch, tmp_path):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return [ROWS[name]]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    one = benchmark(name)
    shares = {"shares": {"test": 1.0}} if one.training else {}
    (problem,) = load_problems(spec(name, folder=str(tmp_path), **shares), "test", 0)
    assert (problem.problem, problem.answer) == ("1+1?", "2")
    (((hub, config), given),) = calls
    assert (hub, config) == (one.hub, one.config)
    assert given == {"split": one.split, "revision": one.revision}


def test_names_revisions_and_sizes_of_the_table():
    assert len({one.name for one in BENCHMARKS}) == len(BENCHMARKS)
    for one in BENCHMARKS:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", one.hub)
        assert one.revision is None or re.fullmatch(r"[0-9a-f]{40}", one.revision)
        assert one.k == (8 if one.name in ("aime24", "aime25", "hmmt25", "amc23") else 1)
    with pytest.raises(ValueError, match="no benchmark is called 'aime26'; there are: aime25, "):
        load_problems(spec("aime26"), "test", 0)


@pytest.mark.parametrize("place", ["aime25.json", "aime25/test.jsonl"])
def test_a_folder_of_files_comes_before_the_hub(place, tmp_path, capsys):
    rows = [{"question": f"{i}+{i}?", "answer": str(2 * i)} for i in range(30)]
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    lines = "\n".join(map(json.dumps, rows))
    file.write_text(json.dumps(rows) if place.endswith(".json") else lines)
    asked = spec("aime25", folder=str(tmp_path))
    found = load_problems(asked, "test", 0)
    assert [p.answer for p in found] == [row["answer"] for row in rows]
    assert f"aime25: read from {file}" in capsys.readouterr().err
    assert list(identity(asked)["files"]) == [str(file)]
    with pytest.raises(ValueError, match="there for evaluation: it has no split 'train'"):
        load_problems(asked, "train", 0)
    file.write_text(json.dumps(rows[:3]) if place.endswith(".json") else lines.split("\n")[0])
    few = load_problems(asked, "test", 0)
    assert f"aime25: {len(few)} problems, AIME25 has 30" in capsys.readouterr().err


def test_two_files_of_one_benchmark_are_refused(tmp_path):
    for ending in ("json", "csv"):
        (tmp_path / f"aime25.{ending}").write_text("[]")
    with pytest.raises(ValueError, match=r"several files for aime25: .*aime25.csv, .*aime25.json"):
        load_problems(spec("aime25", folder=str(tmp_path)), "test", 0)


def test_without_a_network_one_is_told_which_file_and_how_to_get_it(monkeypatch, tmp_path):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(WorkbenchError) as error:
        load_problems(spec("math500", folder=str(tmp_path)), "test", 0)
    told = str(error.value)
    one = benchmark("math500")
    assert "Couldn't reach the Hub" in told and f"{tmp_path}/math500.jsonl" in told
    assert f"hf download {one.hub} --repo-type dataset --revision {one.revision}" in told


def test_choices_stand_in_an_order_that_depends_on_the_question_alone():
    row = benchmarks._choices(CHOICE)
    assert row == benchmarks._choices(dict(reversed(CHOICE.items())))
    asked, blank, *listed = row["problem"].split("\n")
    assert (
        asked == "Which?"
        and not blank
        and [line[:3] for line in listed]
        == [
            "A. ",
            "B. ",
            "C. ",
            "D. ",
        ]
    )
    assert f"{row['answer']}. this" in listed
    assert sorted(row["options"]) == ["that 1", "that 2", "that 3", "this"]
    places = {benchmarks._choices(CHOICE | {"Question": f"{i}?"})["answer"] for i in range(40)}
    assert places == set("ABCD")


def test_a_puzzles_answer_is_its_whole_table():
    row = benchmarks._grid(PUZZLE)
    assert json.loads(row["answer"]) == PUZZLE["solution"]
    assert row["problem"].startswith("Two houses …\n\n") and '"header"' in row["problem"]
    masked = PUZZLE | {"solution": {"header": ["House"], "rows": [["___"]]}}
    with pytest.raises(ValueError, match="masked in this copy"):
        benchmarks._grid(masked)


def test_a_set_for_training_is_cut_into_splits_and_leaves_out_what_cannot_be_right(
    tmp_path, capsys
):
    rows = [[{"value": f"{i % 50}+1?"}, {"ground_truth": {"value": str(i)}}] for i in range(53)]
    (tmp_path / "orz57k.json").write_text(json.dumps(rows))
    asked = spec("orz57k", folder=str(tmp_path))
    parts = [load_problems(asked, split, 0) for split in ("train", "validation", "test")]
    assert sorted(int(p.answer) for part in parts for p in part) == list(range(50))
    assert "3 rows left out" in capsys.readouterr().err
