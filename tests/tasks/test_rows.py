"""Problem files as they are found in the wild: every form, usual names, and rows that are wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from npr_lib.tasks.problems import load_problems, local_files

VERL = {
    "data_source": "math",
    "prompt": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1+1?"},
    ],
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 7},
}
ORZ = [
    {"from": "human", "value": "What is 1+1?"},
    {"from": "assistant", "ground_truth": {"value": "2"}},
]
QUESTIONS = [{"question": f"What is {i}+{i}?", "answer": 2 * i, "level": "easy"} for i in range(9)]


def write(path: Path, rows: list) -> str:
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            out = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            out.writeheader()
            out.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def whole(*paths, **fields):
    path = paths[0] if len(paths) == 1 else list(paths)
    return load_problems({"kind": "file", "path": {"test": path}, **fields}, "test", 0)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv", "tsv"])
def test_every_kind_of_file_holds_the_same_problems(tmp_path, ending, capsys):
    path = write(tmp_path / f"set.{ending}", QUESTIONS)
    found = whole(path)
    assert [(p.problem, p.answer) for p in found] == [
        (row["question"], str(row["answer"])) for row in QUESTIONS
    ]
    assert {p.meta["level"] for p in found} == {"easy"}
    assert capsys.readouterr().err == f"{path}: column question as problem\n"


def test_json_lines_in_a_file_called_json(tmp_path):
    path = tmp_path / "lines.json"
    path.write_text("\n".join(json.dumps(row) for row in QUESTIONS))
    assert [p.answer for p in whole(str(path))] == [str(2 * i) for i in range(9)]


def test_one_file_for_evaluation_is_whole_and_one_for_all_splits_is_cut_and_says_so(
    tmp_path, capsys
):
    path = write(tmp_path / "set.jsonl", QUESTIONS)
    assert len(whole(path)) == 9
    capsys.readouterr()
    cut = load_problems({"kind": "file", "path": path}, "test", 0)
    assert 0 < len(cut) < 9
    said = capsys.readouterr().err
    assert f"{path}: shared by all splits, {len(cut)} of 9 problems are of test" in said


def test_several_files_are_one_split(tmp_path):
    first, second = (
        write(tmp_path / name, rows)
        for name, rows in (("a.jsonl", QUESTIONS[:4]), ("b.csv", QUESTIONS[4:]))
    )
    spec = {"kind": "file", "path": {"train": [first, second], "test": first}}
    assert len(load_problems(spec, "train", 0)) == 9
    assert list(map(str, local_files(spec))) == [first, second, first]
    shared = {"kind": "file", "path": [first, second]}
    parts = [load_problems(shared, split, 0) for split in ("train", "validation", "test")]
    assert sorted(p.problem for part in parts for p in part) == [r["question"] for r in QUESTIONS]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (VERL, "column prompt as problem, reward_model.ground_truth as answer"),
        (ORZ, "column 0.value as problem, 1.ground_truth.value as answer"),
        ({"Question": "What is 1+1?", "Final_Answer": ["2"]}, "Question as problem, Final_Answer"),
        ({"problem": "What is 1+1?", "solution": r"It is \boxed{1}, no: \boxed{2}"}, "solution"),
        ({"puzzle": "What is 1+1?", "answer": 2}, "puzzle as problem"),
        ({"query": "What is 1+1?", "reward_model.ground_truth": "2"}, "reward_model.ground_truth"),
    ],
)
def test_usual_columns_are_found_and_named(tmp_path, row, said, capsys):
    problem = whole(write(tmp_path / "set.json", [row]))[0]
    assert (problem.problem, problem.answer) == ("What is 1+1?", "2")
    assert said in capsys.readouterr().err


def test_what_a_conversation_holds_beside_the_problem_is_kept(tmp_path):
    problem = whole(write(tmp_path / "set.parquet", [VERL]))[0]
    assert problem.problem == "What is 1+1?"
    assert problem.meta["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert problem.meta["extra_info"] == {"index": 7}


def test_of_several_answers_any_is_right(tmp_path):
    rows = [{"problem": "?", "answer": ["1/2", 0.5, "1/2"]}, {"problem": "??", "answer": ["3"]}]
    for name in ("set.jsonl", "set.json"):
        both, one = whole(write(tmp_path / name, rows))
        assert (both.answer, both.meta["answers"]) == ("1/2", ["1/2", "0.5"])
        assert one.answer == "3" and "answers" not in one.meta


def test_columns_may_be_named_by_their_path(tmp_path):
    rows = [{"data": {"text": "1+1?"}, "answer": "no", "gold": [{"value": "2"}]}]
    columns = {"problem": "data.text", "answer": "gold.0.value"}
    problem = whole(write(tmp_path / "set.jsonl", rows), columns=columns)[0]
    assert (problem.problem, problem.answer) == ("1+1?", "2")
    with pytest.raises(ValueError, match=r"line 1 lacks column 'data.txt'; it has data, answer"):
        whole(str(tmp_path / "set.jsonl"), columns={"problem": "data.txt"})


GOOD = {"problem": "1+1?", "answer": "2"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "2?", "answer": "  "}, r"column 'answer' \(answer\) is blank"),
        ({"problem": "2?", "answer": float("nan")}, "is nan"),
        ({"problem": "2?", "answer": None}, "has nothing in the column 'answer'"),
        ({"problem": "2?"}, "lacks column 'answer'"),
        ({"problem": "", "answer": "1"}, r"column 'problem' \(problem\) is blank"),
        ({"problem": {"text": "2?"}, "answer": "1"}, 'is no text but a mapping: {"text": "2'),
        ({"problem": ["2?"], "answer": "1"}, "is no text but a list"),
        ({"problem": 2 * [{"role": "user", "content": "2?"}], "answer": "1"}, "speaks 2 times"),
        ({"problem": [{"role": "system", "content": "2?"}], "answer": "1"}, "speaks 0 times"),
        ({"problem": "2?", "answer": {"value": 3}}, "is no text or number but a mapping"),
        ({"problem": "2?", "answer": []}, "is an empty list"),
        ({"problem": "2?", "answer": [[1]]}, "is no text or number but a list"),
        ({"problem": "1+1?", "answer": "3"}, "gives the problem of .*1 another answer: 3"),
        (17, "is no row but int: 17"),
    ],
)
def test_a_row_that_is_wrong_is_named_with_its_file(tmp_path, row, message):
    lines, array = (write(tmp_path / name, [GOOD, row]) for name in ("set.jsonl", "set.json"))
    for path, place in ((lines, "line 2"), (array, "row 2")):
        with pytest.raises(ValueError, match=message) as error:
            whole(path)
        assert str(error.value).startswith(f"{path}: {place} ")


def test_blank_cells_of_a_table_are_errors_and_not_nan(tmp_path):
    rows = [GOOD, {"problem": "2?", "answer": ""}]
    with pytest.raises(ValueError, match=r"set.csv: row 2 column 'answer' \(answer\) is blank"):
        whole(write(tmp_path / "set.csv", rows))
    rows = [GOOD | {"answer": 2.0}, {"problem": "2?", "answer": None}]
    with pytest.raises(ValueError, match=r"set.parquet: row 2"):
        whole(write(tmp_path / "set.parquet", rows))


def test_broken_files_say_where(tmp_path):
    lines = tmp_path / "set.jsonl"
    lines.write_text(json.dumps(GOOD) + "\n\n" + '{"problem": "2?", "ans\n')
    with pytest.raises(ValueError, match=r"set.jsonl: line 3 is not JSON: "):
        whole(str(lines))
    (tmp_path / "set.json").write_text('[{"problem": ')
    with pytest.raises(ValueError, match=r"set.json is not JSON: "):
        whole(str(tmp_path / "set.json"))
    (tmp_path / "set.json").write_text('{"a":\n 1}')
    with pytest.raises(ValueError, match=r"set.json: expected an array"):
        whole(str(tmp_path / "set.json"))
    (tmp_path / "set.csv").write_text("problem,answer\n1+1?,2\n1,000?,1000\n")
    with pytest.raises(ValueError, match=r"set.csv: row 2 has 3 cells for 2 columns"):
        whole(str(tmp_path / "set.csv"))


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv"])
def test_bytes_that_are_no_such_file_are_named(tmp_path, ending):
    path = tmp_path / f"set.{ending}"
    path.write_bytes(b'problem,answer\n"\xff' + b"1" * 200_000 + b'",2\n')
    with pytest.raises(ValueError, match=rf"^{path}"):
        whole(str(path))


def test_only_a_line_feed_ends_a_line(tmp_path):
    texts = ["one\u2028two?", "three\u2029four?", "five\x0bsix?", "seven\x85eight?"]
    rows = [{"problem": text, "answer": text} for text in texts]
    path = tmp_path / "set.jsonl"
    path.write_text(
        "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), newline=""
    )
    assert [(p.problem, p.answer) for p in whole(str(path))] == [(text, text) for text in texts]


def test_faulty_rows_are_left_out_only_when_asked_to_and_said(tmp_path, capsys):
    rows = [GOOD, {"problem": "2?", "answer": ""}, {"problem": "1+1?", "answer": "3"}]
    found = whole(write(tmp_path / "set.jsonl", rows), faulty="drop")
    assert [p.answer for p in found] == ["2"]
    assert "2 rows left out, the first: " in capsys.readouterr().err
