"""What the interactive explorer is given to show, read back and held against the trajectories."""

import base64
import gzip
import json
import random
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import random_response
from pages import is_local, sources
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from npr_lib import viz
from npr_lib.reasoning.layout import causal_layout, layout, sampled_tokens
from npr_lib.reasoning.tokens import TagIds, decode_with_tags
from npr_lib.reasoning.trajectory import Trajectory, to_rows
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.viz.explorer import data
from npr_lib.viz.explorer.formulas import formulas
from npr_lib.viz.explorer.suspects import false_equations

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)
HOSTILE = (
    "<script>window.hacked=1</script></script><img src=x onerror=window.hacked=1>"
    "<!--<script>\x1b[31mred\x1b[0m\u202eright to left\u202c שלום \u2028 👩‍👩‍👧 &lt;b&gt; "
    '{"a":NaN} ${window.hacked=1} https://evil.example/x.js'
)
HUGE = "a<" * 50_000


def made(rng: random.Random, parallel: bool = True) -> tuple[Trajectory, list[int], list[dict]]:
    """A random trajectory with the positions and paths that the oracle gave its tokens."""
    response, prompt = random_response(rng, TOKENIZER, depth=3)
    ids, n = response.ids, len(response.ids)
    executed = layout(ids, TAGS, prompt) if parallel else causal_layout(n, prompt)
    own = sampled_tokens(ids, executed, TOKENIZER) if parallel else [True] * (n - prompt)
    reading = (TOKENIZER, TAGS, (TOKENIZER.eos_token_id,))
    texts = [decode_with_tags(ids[s.start : s.end], *reading)[0] for s in executed.segments[1:]]
    logprobs = [-rng.random() * 4 if sampled else float("nan") for sampled in own]
    entropies = [rng.random() if sampled else float("nan") for sampled in own]
    trajectory = Trajectory(
        prompt_ids=ids[:prompt],
        completion_ids=ids[prompt:],
        logprobs=logprobs,
        behaviour_logprobs=logprobs,
        entropies=entropies,
        sampled=own,
        decode_steps=[rng.randrange(50) for _ in own],
        layout=executed,
        finish_reason="stop",
        text="".join(texts),
        mode="parallel" if parallel else "sequential",
        max_depth=3,
        segment_texts=texts,
    )
    return trajectory, response.positions, response.paths


@pytest.fixture(scope="module")
def hundred():
    rng = random.Random(0)
    return [made(rng) for _ in range(100)]


def rollouts_of(trajectories, **columns):
    n = len(trajectories)
    known = {"problem": [f"problem {i}" for i in range(n)], "accuracy": [i % 2 for i in range(n)]}
    return to_rows(trajectories, **(known | columns))


def asked(widget, kind, value):
    """What the widget answers to a message of its front end."""
    sent = []
    widget.send = sent.append
    widget._handle_custom_msg({"ask": kind, "value": value}, [])
    (reply,) = sent
    assert (reply["reply"], reply["value"]) == (kind, value)
    return json.loads(json.dumps(reply["content"], allow_nan=False))


def unpacked(page):
    """The table, records and texts in a page."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])

    def unpack(text):
        return json.loads(gzip.decompress(base64.b64decode(text)))

    chunks = [unpack(chunk) for chunk in data["chunks"]]
    records = [chunks[chunk][place] for chunk, place in data["places"]]
    return data["table"], records, unpack(data["texts"])


# ------------------------------------------------------------------ right


def visible(paths):
    """visible(q, k) from its definition, path by path instead of token by token."""
    distinct = list({str(path): path for path in paths}.values())
    agree = np.array(
        [[all(k.get(b, i) == i for b, i in q.items()) for k in distinct] for q in distinct]
    )
    index = [distinct.index(path) for path in paths]
    return np.tril(agree[np.ix_(index, index)])


def covering(segments, mask):
    """Edges by definition: b sees a, and sees nothing that sees a."""
    first = [segment.start for segment in segments]
    last = [segment.end - 1 for segment in segments]
    sees_BA = mask[np.ix_(first, last)] & ~np.eye(len(segments), dtype=bool)
    direct_BA = sees_BA & ~(sees_BA.astype(int) @ sees_BA.astype(int) > 0)
    return {(int(a), int(b)) for b, a in np.argwhere(direct_BA)}


def test_the_widgets_data_are_the_trajectorys(hundred):
    widget = viz.explore(rollouts_of([t for t, _, _ in hundred]), TOKENIZER)
    for row, (trajectory, positions, paths) in enumerate(hundred):
        record = asked(widget, "record", row)
        segments, nodes = trajectory.segments, record["segments"]
        mask = visible(paths)
        ids = [*trajectory.prompt_ids, *trajectory.completion_ids]
        assert [(s.kind, s.start, s.end) for s in segments] == [
            (node["kind"], node["start"], node["end"]) for node in nodes
        ]
        assert {tuple(edge) for edge in record["edges"]} == covering(segments, mask)
        assert len(record["edges"]) == len({tuple(edge) for edge in record["edges"]})
        for node in nodes:
            start, end = node["start"], node["end"]
            first, last = node["positions"]
            assert positions[start:end] == list(range(first, last + 1))
            own = [branch + 1 for branch in paths[start].values()]
            lane = f"branch {'.'.join(map(str, own))}" if own else "trunk"
            assert record["lanes"][node["lane"]] == lane
            assert [tuple(step) for step in node["path"]] == list(paths[start].items())
            seen = np.ones(start, dtype=bool)
            for low, high in node["hidden"]:
                seen[low:high] = False
            assert (mask[start:end, :start] == seen).all()
            assert node["shared"] == seen.sum()
            assert node["tokens"] == [
                "" if i == TOKENIZER.eos_token_id else TOKENIZER.decode([i]) for i in ids[start:end]
            ]
        assert record["steps"] == trajectory.decode_steps
        assert record["sampled"] == [int(own) for own in trajectory.sampled]
        for name in ("logprobs", "entropies"):
            for shown, nats in zip(record[name], getattr(trajectory, name), strict=True):
                assert shown == (None if np.isnan(nats) else pytest.approx(1000 * nats, abs=0.5))
        assert (record["work"], record["span"]) == (trajectory.work, trajectory.span)


def test_the_page_holds_what_the_widget_shows(hundred):
    rollouts = rollouts_of([t for t, _, _ in hundred])
    widget = viz.explore(rollouts, TOKENIZER)
    table, records, texts = unpacked(viz.page(rollouts, TOKENIZER))
    assert table == json.loads(json.dumps(widget.table))
    assert records == [asked(widget, "record", row) for row in range(len(rollouts))]
    assert texts[3] == f"problem 3\n{hundred[3][0].text}"


def test_a_sequential_response_is_shown_in_the_parts_it_wrote():
    for seed in range(30):
        parallel, _, _ = made(random.Random(seed))
        sequential, _, _ = made(random.Random(seed), parallel=False)
        pieces = data.reader(TOKENIZER)
        shown, other = (data.record(t, pieces) for t in (sequential, parallel))
        for field in ("kind", "name", "path", "start", "end", "tokens"):
            assert [n[field] for n in shown["segments"]] == [n[field] for n in other["segments"]]
        assert shown["edges"] == other["edges"] and shown["lanes"] == other["lanes"]
        assert all(node["hidden"] == [] for node in shown["segments"])
        assert all(node["shared"] == node["start"] for node in shown["segments"])


def test_violations_are_where_they_are(hundred):
    one = hundred[0][0]
    second = next(i for i, segment in enumerate(one.segments) if segment.kind == "takeaway")
    texts = list(one.segment_texts)
    texts[second - 1] = texts[second - 1].replace("<takeaway>", "<takeaway><plan>")
    broken = Trajectory(**{**vars_of(one), "segment_texts": texts, "text": "".join(texts)})
    record = data.record(broken, data.reader(TOKENIZER))
    found = {v["kind"]: v for v in record["violations"]}["tags_in_takeaway"]
    assert found["segment"] == second and "<plan>" in found["message"]
    node = record["segments"][second]
    assert "".join(node["tokens"]) == texts[second - 1]


def vars_of(trajectory):
    return {name: getattr(trajectory, name) for name in Trajectory.__dataclass_fields__}


# ------------------------------------------------------------------ the table


def test_the_table_keeps_what_tells_rows_apart(hundred):
    trajectories = [t for t, _, _ in hundred[:4]]
    columns = {"problem_id": ["a", "b", "a", "b"], "stage": ["sr", "sr", "npr", "npr"]}
    columns |= {"checkpoint": ["sr", "sr", "npr", "npr"], "advantage": [0.5, None, 1.0, 2.0]}
    table = data.table(rollouts_of(trajectories, **columns, temperature=1.0))
    assert table["size"] == 4 and table["groups"] == [0, 1, 0, 1]
    assert table["columns"]["verdict"] == ["wrong", "right"] * 2
    assert table["columns"]["advantage"] == [0.5, None, 1.0, 2.0]
    assert table["columns"]["branches"] == [max(t.num_branches) for t in trajectories]
    assert table["columns"]["work"] == [t.work for t in trajectories]
    absent = {"temperature", "checkpoint", "mode", "finish_reason"}
    assert not absent & table["columns"].keys()
    assert set(table["headings"]) == set(table["columns"])
    with pytest.raises(ValueError, match="no rollouts"):
        viz.explore(rollouts_of(trajectories).iloc[:0])


def test_rollouts_of_older_files_have_no_entropies_to_show(hundred):
    rollouts = rollouts_of([t for t, _, _ in hundred[:3]])
    older = viz.explore(rollouts.drop(columns="entropies"), TOKENIZER)
    unknown = [replace(t, entropies=[]) for t, _, _ in hundred[:3]]
    assert not viz.explore(rollouts_of(unknown)).table["entropies"]
    assert viz.explore(rollouts).table["entropies"] and not older.table["entropies"]
    record = asked(older, "record", 1)
    assert record["entropies"] == [None] * record["work"]


def test_rollouts_without_scores_or_tokenizer_can_be_explored(hundred):
    one = hundred[0][0]
    widget = viz.explore(to_rows([one]))
    assert "verdict" not in widget.table["columns"]
    nodes = asked(widget, "record", 0)["segments"][1:]
    assert [node["tokens"] for node in nodes] == [[text] for text in one.segment_texts]


def test_search_is_in_problem_and_response(hundred):
    rollouts = rollouts_of([t for t, _, _ in hundred])
    widget = viz.explore(rollouts)
    assert asked(widget, "find", "PROBLEM 7") == [7, *range(70, 80)]
    assert asked(widget, "find", "(") == []
    expected = [i for i, (t, _, _) in enumerate(hundred) if "3:A" in t.text]
    assert asked(widget, "find", "3:a") == expected and expected


def test_a_trajectory_can_be_sent_unasked(hundred):
    widget = viz.explore(rollouts_of([t for t, _, _ in hundred[:3]]), TOKENIZER)
    sent = []
    widget.send = sent.append
    widget.update(1, hundred[5][0])
    assert sent[0]["reply"] == "record" and sent[0]["value"] == 1
    assert len(sent[0]["content"]["segments"]) == len(hundred[5][0].segments)


# ------------------------------------------------------------------ hostile text


def test_hostile_text_arrives_whole_and_stays_text(hundred):
    one = hundred[0][0]
    texts = [HOSTILE, HUGE, *one.segment_texts[2:]]
    hostile = Trajectory(**{**vars_of(one), "segment_texts": texts, "text": "".join(texts)})
    rollouts = rollouts_of([hostile, one], problem=HOSTILE, stage=[HOSTILE, "npr"])
    page = viz.page(rollouts, TOKENIZER, title=HOSTILE)
    assert all(map(is_local, sources(page)))
    assert page.count("</script>") == 2 and page.count("<script") == 2
    assert "<img" not in page and "default-src 'none'" in page
    table, records, found = unpacked(page)
    assert table["columns"]["stage"][0] == HOSTILE
    for record in (records[0], asked(viz.explore(rollouts, TOKENIZER), "record", 0)):
        shown = ["".join(node["tokens"]) for node in record["segments"][1:]]
        assert shown == texts
    assert found[0] == f"{HOSTILE}\n{hostile.text}"


def test_the_front_end_reads_no_text_as_code_and_fetches_nothing():
    script = data.script()
    forbidden = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|fetch\(|"
    forbidden += r"XMLHttpRequest|WebSocket|createContextualFragment|srcdoc|</script"
    assert not re.findall(forbidden, script)
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML"}
    assert set(re.findall(r"https?://[^\"]*", script)) == names
    assert "url(" not in data.style() and "@import" not in data.style()


def test_the_modules_fit_together():
    """They share one scope once they are joined, and each uses only what stands above it."""
    script = data.script()
    assert not re.search(r"^import\b", script, re.MULTILINE)
    assert re.findall(r"^export .*", script, re.MULTILINE) == ["export default {"]
    top = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script, re.MULTILINE)
    assert sorted(top) == sorted(set(top))
    above = set()
    for name in data.MODULES:
        text = (data.FRONTEND / f"{name}.js").read_text()
        assert len(text.splitlines()) < 400
        assert set(re.findall(r'from "\./(\w+)\.js"', text)) <= above
        above.add(name)
    assert {path.stem for path in data.FRONTEND.glob("*.js")} == set(data.MODULES)


def test_no_module_exports_what_no_one_uses():
    texts = {path.stem: path.read_text() for path in data.FRONTEND.glob("*.js")}
    exported = r"^export (?:async )?(?:function|const|let) (\w+)|^export \{([^}]*)\}"
    for name, text in texts.items():
        others = " ".join(other for stem, other in texts.items() if stem != name)
        for one, several in re.findall(exported, text, re.MULTILINE):
            for own in filter(None, re.split(r"[,\s]+", one or several)):
                in_pages = own in ("mount", "pageSource", "responseSource")
                assert in_pages or re.search(rf"\b{own}\b", others), f"{name}: {own}"


# ------------------------------------------------------------------ parts


def test_tokens_joined_are_the_text_whatever_the_tokenizer():
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(["a b"], trainers.BpeTrainer(initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    text = "naïve 👩‍👩‍👧 שלום\n x"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text)  # single bytes: most characters take several tokens
    tokens = data.reader(tokenizer)(ids, text)
    assert len(tokens) == len(ids) and "".join(tokens) == text
    assert "\ufffd" not in "".join(tokens) and "👩" in tokens
    for other in ("another text", "naïve x", ""):
        tokens = data.reader(tokenizer)(ids, other)
        assert len(tokens) == len(ids) and "".join(tokens) == other


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("A=7-2-3=5-3~5,C=1", ["5-3~5"]),
        ("7-2=5;5+3=9.", ["5+3=9"]),
        ("2 + 3*4 = 14, 20/4/5 = 1, 2×3=6", []),
        ("-3+5=2 and -3--5=2", []),
        ("1/3=0.33 but 1/3=0.34", ["1/3=0.34"]),
        ("x+2=5, 2x=4, 3^2=9, (1+1)2=4, 5=2x, 5=2+x, 10=50%, 4!=24", []),
        (r"\frac{1}{2}=0.5, 3=\sqrt{9}", []),
        ("7/0=1, version 1.2.3=4", []),
        ("10~10.3", []),
        ("0.1+0.2=0.3", []),
    ],
)
def test_false_equations(text, wrong):
    assert [text[start:end] for start, end in false_equations(text)] == wrong


def test_false_equations_of_a_long_text_take_linear_time():
    for text in ("1-" * 50_000, "1=" * 50_000, "1" * 100_000, "1 - " * 30_000, HUGE):
        false_equations(text)


def test_slips_name_the_part(hundred):
    one = hundred[0][0]
    texts = [*one.segment_texts[:-1], "so 1+1=3"]
    wrong = Trajectory(**{**vars_of(one), "segment_texts": texts, "text": "".join(texts)})
    assert ("answer", "1+1=3") in viz.slips(wrong)


def test_doubt_is_the_part_of_the_most_surprising_token(hundred):
    for trajectory, _, _ in hundred:
        name, surprise = viz.doubt(trajectory)
        prompt = len(trajectory.prompt_ids)
        kinds = {t: s.kind for s in trajectory.segments for t in range(s.start, s.end)}
        chosen = [-x for t, x in enumerate(trajectory.logprobs, prompt) if kinds[t] != "guideline"]
        assert surprise == np.nanmax(chosen)
        t = prompt + [-x for x in trajectory.logprobs].index(surprise)
        assert name.split()[0] in (kinds[t], "answer") and kinds[t] != "guideline"


def test_formulas_are_trees_of_presentation_alone():
    text = r"so \boxed{\frac{1}{2}}, \(a<b\), $5 and $6, $\href{javascript:x}{y}$, $}{$ $$z^2$$"
    found = formulas(text)
    assert [source for source, _ in found] == [
        r"\boxed{\frac{1}{2}}",
        r"\(a<b\)",
        r"$\href{javascript:x}{y}$",
        "$$z^2$$",
    ]
    assert "javascript" not in json.dumps([tree for _, tree in found])
    tag, attributes, _, [(row, _, _, children)] = found[1][1]
    assert (tag, attributes, row) == ("math", {"display": "inline"}, "mrow")
    assert [child[:3:2] for child in children] == [["mi", "a"], ["mo", "<"], ["mi", "b"]]


@given(st.text(r"\\{}[]()$^_&ab1 <", max_size=30) | st.text(max_size=20))
def test_formulas_of_any_text(text):
    for source, _ in formulas(f"${text}$ \\[{text}\\] \\boxed{{{text}}}"):
        assert source in f"${text}$ \\[{text}\\] \\boxed{{{text}}}"


def test_formulas_of_a_long_text_take_linear_time():
    for text in (r"\boxed{" * 15_000, "$" * 100_000, "$a" * 50_000, r"\(" * 50_000):
        formulas(text)


def test_the_page_is_compact():
    rng = random.Random(1)
    trajectories = [made(rng)[0] for _ in range(50)]
    tokens = sum(len(t.layout) for t in trajectories)
    rollouts = pd.concat([rollouts_of(trajectories)] * 4, ignore_index=True)
    page = viz.page(rollouts, TOKENIZER)
    assert len(page) < 200_000 + 12 * 4 * tokens
