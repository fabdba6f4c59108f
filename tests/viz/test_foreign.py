"""Responses made elsewhere: every arrangement of a file, and what their text alone says."""

import json
import random
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import tokenizers
from test_response import NESTED, PLAIN, SIMPLE, TAGS, TOKENIZER, trajectory
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from npr_lib import WorkbenchError, __main__, viz
from npr_lib.reasoning.layout import layout
from npr_lib.reasoning.tokens import encode
from npr_lib.reasoning.trajectory import from_row, to_rows
from npr_lib.viz.explorer import data


@dataclass
class Written:
    """A text in the release's style, piece by piece, each with the branch that it lies in."""

    pieces: list[tuple[str, tuple]] = field(default_factory=list)
    blocks: int = 0

    def add(self, text: str, path: tuple = ()) -> None:
        self.pieces.append((text, path))

    def block(self, steps: list, path: tuple = ()) -> None:
        """steps: the text of each branch, or (text, steps of a block in it, text)."""
        number, self.blocks = self.blocks, self.blocks + 1
        self.add("<guideline>", path)
        for i in range(1, len(steps) + 1):
            for text in ("\n", "<plan>", f"{i}: part {i}", "</plan>"):
                self.add(text, path)
        self.add("\n", path)
        self.add("</guideline>", path)
        self.add("\n", path)
        for i, step in enumerate(steps):
            own = (*path, (number, i))
            for text in ("<step>", f"\n{i + 1}:"):
                self.add(text, own)
            if isinstance(step, str):
                self.add(f" {step}\n", own)
            else:
                self.add(f" {step[0]}\n", own)
                self.block(step[1], own)
                self.add(f"\n{step[2]}\n", own)
            self.add("</step>", own)
            self.add("\n\n" if i + 1 < len(steps) else "\n", own)
        for text in ("<takeaway>", "\nall done\n", "</takeaway>"):
            self.add(text, path)

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def cut(self, count: int) -> "Written":
        return Written(self.pieces[:count])


def written(*blocks: list, answer: str = "6") -> Written:
    made = Written()
    for i, steps in enumerate(blocks):
        if i:
            made.add("\n\n")
        made.block(steps)
    made.add("\n\nSo the answer is ")
    made.add(rf"\boxed{{{answer}}}.")
    return made


def random_text(draw: random.Random) -> Written:
    def steps(depth: int) -> list:
        return [
            ("so far", steps(depth + 1), "hence")
            if depth < 3 and draw.random() < 0.25
            else " ".join(["word"] * draw.randint(1, 6))
            for _ in range(draw.randint(1, 4))
        ]

    return written(*(steps(1) for _ in range(draw.randint(1, 3))))


RELEASE = written(["1+1=2", "2+2=4"]).text
RECORDS = [
    {"question": "What is 1+1 and 2+2?", "output": RELEASE, "gts": "6", "step": 3},
    {"question": "And\u2028this?", "output": "no block \\boxed{5}", "gts": "5", "step": 3},
]


def save(path, text):
    path.write_text(text, encoding="utf-8")
    return path


ARRANGEMENTS = {
    "array": lambda rows: json.dumps(rows, indent=1),
    "lines": lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n",
    "dump": lambda rows: "\n".join(json.dumps(row, indent=4) for row in rows),
    "side by side": lambda rows: "\ufeff" + "".join(map(json.dumps, rows)),
    "held": lambda rows: json.dumps({"model": "m", "accuracy": 0.5, "results": rows}),
    "keyed": lambda rows: json.dumps({f"p{i}": row for i, row in enumerate(rows)}),
    "by benchmark": lambda rows: json.dumps(
        {"aime": {"results": rows[:1]}, "amc": {"outputs": rows[1:], "accuracy": 1}}
    ),
}


@pytest.mark.parametrize("name", [*ARRANGEMENTS, "parquet"])
def test_every_arrangement_of_a_file_holds_the_same_responses(tmp_path, capsys, name):
    if name == "parquet":
        path = tmp_path / "made.parquet"
        pd.DataFrame(RECORDS).to_parquet(path)
    else:
        path = save(tmp_path / "made.json", ARRANGEMENTS[name](RECORDS))
    frame = viz.read_texts(path)
    assert frame["text"].tolist() == [row["output"] for row in RECORDS]
    assert frame["problem"].tolist() == [row["question"] for row in RECORDS]
    assert frame["answer"].tolist() == ["6", "5"] and frame["accuracy"].tolist() == [1.0, 1.0]
    if name == "by benchmark":
        assert frame["stage"].tolist() == ["aime", "amc"]
    assert frame["num_branches"].tolist() == [[2], []] and frame["step"].tolist() == [3, 3]
    told = "2 responses: responses in 'output', problems in 'question', answers in 'gts'"
    assert capsys.readouterr().out == f"{path}, {told}\n"


def test_a_list_of_texts_is_enough(tmp_path):
    path = save(tmp_path / "made.json", json.dumps([RELEASE, "plain"]))
    assert viz.read_texts(path)["text"].tolist() == [RELEASE, "plain"]


@pytest.mark.parametrize(
    "responses",
    [
        ["one", "two", "three"],
        [{"text": "one"}, {"text": "two"}, {"text": "three"}],
        [{"message": {"role": "assistant", "content": t}} for t in ("one", "two", "three")],
    ],
)
def test_a_record_may_hold_several_responses(tmp_path, responses):
    asked = [{"role": "system", "content": "think"}, {"role": "user", "content": "Why?"}]
    record = {"prompt": asked, "responses": responses, "reward_model": {"ground_truth": ["1", "2"]}}
    frame = viz.read_texts(save(tmp_path / "made.jsonl", json.dumps(record)))
    assert frame["text"].tolist() == ["one", "two", "three"]
    assert frame["sample"].tolist() == [0, 1, 2] and set(frame["problem_id"]) == {"Why?"}
    assert set(frame["answer"]) == {"1 or 2"} and frame["accuracy"].tolist() == [0.0, 0.0, 0.0]


def test_a_verdict_is_the_verifiers_and_only_where_an_answer_is_given(tmp_path):
    boxes = {"a": "A", "b": None, "c": ["x", "c"]}
    rows = [{"completion": rf"\boxed{{{box}}}", "answer": right} for box, right in boxes.items()]
    path = save(tmp_path / "made.json", json.dumps(rows))
    frame = viz.read_texts(path, verify=lambda predicted, answer: predicted == answer.lower())
    np.testing.assert_array_equal(frame["accuracy"], [1.0, np.nan, 1.0])
    assert data.table(frame)["columns"]["verdict"] == ["right", None, "right"]
    path = save(tmp_path / "bare.json", json.dumps([{"text": "x"}]))
    bare = viz.read_texts(path)
    assert not {"accuracy", "answer", "problem", "reward", "step"} & set(bare)
    assert "verdict" not in data.table(bare)["columns"]


BROKEN_FILES = {
    '{"output": "x"}\n{"output": "y"}\n{"output": ': r"record 3: no JSON at line 3, column 12",
    '[{"output": "x"}, {"output": null}]': r"record 2: 'output' holds a NoneType",
    '[{"output": "x"}, {"other": "y"}]': r"record 2: 'output' holds a NoneType",
    '[{"output": "x"}, {"output": ["y", 3]}]': r"record 2: 'output' holds a int",
    '{"output": "x"} 7': r"record 2: expected an object, not a int",
    '{"model": "m", "accuracy": 1}': r"an object with model, accuracy holds no records",
    '[{"id": 1, "score": 2}]': r"no column of responses found among id, score: name it",
    "": r"made.json holds no records",
    "[]": r"made.json holds no records",
}


@pytest.mark.parametrize(("text", "message"), BROKEN_FILES.items())
def test_an_error_names_the_file_and_the_record(tmp_path, text, message):
    path = save(tmp_path / "made.json", text)
    with pytest.raises(WorkbenchError, match=message) as caught:
        viz.read_texts(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_none_or_no_text_is_told(tmp_path):
    with pytest.raises(WorkbenchError, match=r"none\.json is no file"):
        viz.read_texts(tmp_path / "none.json")
    (tmp_path / "made.bin").write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(WorkbenchError, match="neither parquet nor text"):
        viz.read_texts(tmp_path / "made.bin")
    path = save(tmp_path / "made.json", json.dumps(RECORDS))
    with pytest.raises(WorkbenchError, match=r"tokenizer\.json does not exist"):
        viz.read_texts(path, tmp_path)
    assert viz.read_texts(path, column="question")["text"].tolist() == [
        row["question"] for row in RECORDS
    ]


# ------------------------------------------------------------------ tokens


def bytes_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE that has seen little: an emoji is several tokens, and no tag is one."""
    core = tokenizers.Tokenizer(BPE())
    core.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet())
    core.train_from_iterator([RELEASE] * 3, trainer)
    return core


@pytest.mark.parametrize("how", ["words", "folder", "file", "object"])
def test_the_tokens_are_the_text(tmp_path, how):
    core = bytes_tokenizer()
    core.save(str(tmp_path / "tokenizer.json"))
    TOKENIZER.save_pretrained(tmp_path / "tiny")
    given = {
        **{"words": None, "folder": tmp_path, "file": tmp_path / "tokenizer.json"},
        **{"object": TOKENIZER},
    }[how]
    texts = [RELEASE, "naïve 🙂🙃 \t\n\n  x", SIMPLE, "", " ", "<step>" * 3]
    path = save(tmp_path / "made.json", json.dumps([{"text": text} for text in texts]))
    frame = viz.read_texts(path, given)
    read = data.records(frame, None)
    for row, text in enumerate(texts):
        tokens = frame["tokens"].iloc[row]
        assert "".join(tokens) == text == "".join(frame["segment_texts"].iloc[row])
        assert len(tokens) == len(frame["completion_ids"].iloc[row]) == frame["work"].iloc[row]
        nodes = read(row)["segments"]
        assert "".join("".join(node["tokens"]) for node in nodes) == text
        assert all(len(node["tokens"]) == node["end"] - node["start"] for node in nodes)
    if how == "file":
        assert frame["completion_ids"].iloc[0] == core.encode(RELEASE).ids
    if how == "words":
        assert "<step>" in frame["tokens"].iloc[0] and " answer" in frame["tokens"].iloc[0]


# ------------------------------------------------------------------ positions, visibility


def by_definition(paths: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Positions [n] and visibility [n, n] of design section 4, token by token: k is seen by q
    unless a block holds both in different branches; a position is one more than the largest seen
    before it."""
    n = len(paths)
    visible = np.zeros((n, n), bool)
    positions = np.zeros(n, int)
    for q in range(n):
        for k in range(q + 1):
            mine, other = dict(paths[q]), dict(paths[k])
            visible[q, k] = all(mine[b] == other[b] for b in mine.keys() & other.keys())
        positions[q] = 1 + max((positions[k] for k in range(q) if visible[q, k]), default=-1)
    return positions, visible


def executed(row: pd.Series) -> tuple[list[int], np.ndarray]:
    """Positions and visibility as the explorer gets them."""
    record = data.records(pd.DataFrame([row]), None)(0)
    n = record["work"]
    visible = np.tril(np.ones((n, n), bool))
    for node in record["segments"]:
        for low, high in node["hidden"]:
            visible[node["start"] : node["end"], low:high] = False
    return row["position_ids"], visible


def assert_by_definition(row: pd.Series, made: Written) -> None:
    places = [path for text, path in made.pieces for _ in text]
    starts = np.cumsum([0, *map(len, row["tokens"])])[:-1]
    positions, visible = by_definition([places[start] for start in starts])
    found = executed(row)
    np.testing.assert_array_equal(found[0], positions)
    np.testing.assert_array_equal(found[1], visible)
    assert row["decode_steps"] == positions.tolist() and row["span"] == positions.max() + 1


@pytest.mark.parametrize("seed", range(12))
def test_positions_and_visibility_are_the_definition_whole_and_cut(tmp_path, seed):
    draw = random.Random(seed)
    whole = random_text(draw)
    cuts = [whole.cut(draw.randint(1, len(whole.pieces))) for _ in range(5)]
    every = [one for one in (whole, *cuts) if one.text]
    path = save(tmp_path / "made.json", json.dumps([{"text": one.text} for one in every]))
    frame = viz.read_texts(path, max_branches=4)
    assert frame["valid"].iloc[0] and frame["num_blocks"].iloc[0] == whole.blocks
    for (_, row), made in zip(frame.iterrows(), every, strict=True):
        assert_by_definition(row, made)


@pytest.mark.parametrize("text", [SIMPLE, NESTED, PLAIN])
def test_canonical_text_has_the_layout_of_its_ids(tmp_path, text):
    path = save(tmp_path / "made.json", json.dumps([{"text": text}]))
    row = viz.read_texts(path, TOKENIZER).iloc[0]
    ids = encode(text, TOKENIZER)
    assert row["completion_ids"] == ids and from_row(row).layout == layout(ids, TAGS)


BROKEN = [
    "",
    "plain",
    "<guideline>",
    "</step></plan>",
    "<guideline>\n<plan>1: a</plan>\n</guideline>\n<step>\n2: x\n<step>\n1: y</step>",
    "<step>\n1: a\n</step>\n<takeaway>\nb\n</takeaway>",
    "<guideline><plan>1: <takeaway> a</plan></guideline><takeaway>c</takeaway>\\boxed{1}",
    "<guideline></guideline><guideline></guideline><step>1:<guideline><step>",
    RELEASE.replace("</step>", "", 1),
    RELEASE.replace("<takeaway>", ""),
    RELEASE.replace("<plan>", "<step>"),
]


@pytest.mark.parametrize("tokenizer", [None, TOKENIZER], ids=["words", "tiny"])
def test_broken_texts_open_and_say_what_is_wrong(tmp_path, tokenizer):
    draw = random.Random(0)
    tags = ["<guideline>", "<plan>", "<step>", "<takeaway>", "1:", "\n", "x", "\\boxed{1}"]
    tags += [f"</{tag[1:]}" for tag in tags[:4]]
    chaos = ["".join(draw.choices(tags, k=draw.randint(1, 40))) for _ in range(60)]
    texts = BROKEN + chaos
    path = save(tmp_path / "made.json", json.dumps([{"text": text} for text in texts]))
    frame = viz.read_texts(path, tokenizer)
    read = data.records(frame, None)
    for row, text in enumerate(texts):
        record = read(row)
        assert record["violations"] or frame["valid"].iloc[row]
        assert "".join("".join(node["tokens"]) for node in record["segments"]) == text
    assert not frame["valid"].iloc[: len(BROKEN)].any()
    assert "<title>rollouts" in viz.page(frame)


# ------------------------------------------------------------------ what isn't known


def test_what_nobody_knows_is_left_out(tmp_path):
    path = save(tmp_path / "made.json", json.dumps(RECORDS))
    frame = viz.read_texts(path)
    record, table = data.records(frame, TOKENIZER)(0), data.table(frame)
    assert record["ideal"] and record["ended"] is None
    assert record["logprobs"] == record["entropies"] == record["sampled"] == []
    assert not table["logprobs"] and not table["entropies"]
    assert not {"temperature", "finish_reason", "reward", "advantage"} & set(table["columns"])
    assert np.isnan(np.concatenate(frame["logprobs"].tolist())).all()


def test_they_stand_beside_ones_own(tmp_path):
    path = save(tmp_path / "made.json", json.dumps(RECORDS))
    own = to_rows([trajectory(SIMPLE)], problem="mine", accuracy=1.0)
    both = pd.concat([own, viz.read_texts(path)], ignore_index=True)
    read, table = data.records(both, TOKENIZER), data.table(both)
    assert [read(row)["ideal"] for row in range(3)] == [False, True, True]
    assert read(0)["logprobs"] and not read(1)["logprobs"] and table["logprobs"]
    assert table["columns"]["finish_reason"] == ["stop", None, None]
    assert data.find(both, "1+1") == [1]
    assert viz.explore(both, TOKENIZER).table["size"] == 3


# ------------------------------------------------------------------ the command


def test_the_command_writes_a_page_beside_the_file(tmp_path, capsys):
    path = save(tmp_path / "made.json", json.dumps(RECORDS))
    assert __main__.main(["explore", str(path)]) == 0
    assert "made.json.html" in capsys.readouterr().out
    assert "<title>made.json</title>" in (tmp_path / "made.json.html").read_text()
    TOKENIZER.save_pretrained(tmp_path / "tiny")
    target = tmp_path / "sub" / "page.html"
    arguments = ["--html", str(target), "--tokenizer", str(tmp_path / "tiny"), "--column", "output"]
    assert __main__.main(["explore", str(path), *arguments, "--where", "accuracy == 1"]) == 0
    assert target.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/none.json"], "none.json is no file"),
        (["{}/made.json", "--where", "span > 10000"], "no response in"),
        (["tiny", "--column", "x"], "tiny is no file: --tokenizer and --column are for one"),
    ],
)
def test_the_command_tells_what_is_wrong_in_a_line(tmp_path, capsys, arguments, message):
    save(tmp_path / "made.json", json.dumps(RECORDS))
    assert __main__.main(["explore", *(a.format(tmp_path) for a in arguments)]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
