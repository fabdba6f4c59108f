"""An engine at work in the explorer: a response that grows, and edits that it goes on from."""

import asyncio
import json
import random
import threading
from collections import Counter
from itertools import pairwise

import pandas as pd
import pytest
from oracles import random_model
from policies import random_policy
from test_engine import same

from npr_lib import viz
from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine, edit
from npr_lib.engine.branch import Response
from npr_lib.reasoning.layout import branch_paths, by_branch
from npr_lib.reasoning.style import STYLES
from npr_lib.reasoning.tokens import TagIds
from npr_lib.reasoning.trajectory import from_row, to_rows
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer
from npr_lib.viz.explorer import data, live
from npr_lib.viz.explorer.what_if import edits
from npr_lib.viz.explorer.widget import Explorer

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)
PARAMS = SamplingParams(max_tokens=300, seed=5)
ENGINE = TorchEngine(
    random_model(random.Random(0), TOKENIZER), TOKENIZER, EngineConfig(max_depth=2)
)


def write_with(monkeypatch, policy):
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))


@pytest.fixture
def writer(monkeypatch):
    write_with(monkeypatch, random_policy(TOKENIZER, broken=0))


@pytest.fixture
def drawn(monkeypatch):
    """Every step is drawn; what was: (trajectory, whether there is more to come)."""
    monkeypatch.setattr(live, "PAUSE", 0)
    monkeypatch.setattr(live, "SHARE", 0)
    seen, update = [], Explorer.update

    def seeing(self, row, trajectory, prompt="", decoding=False):
        seen.append((trajectory, decoding))
        return update(self, row, trajectory, prompt, decoding)

    monkeypatch.setattr(Explorer, "update", seeing)
    return seen


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    ENGINE.kv.check()
    assert not ENGINE.busy and ENGINE.kv.num_used == 0


def alike(a, b):
    """The same tokens, whatever else was in the steps that decoded them."""
    return a.completion_ids == b.completion_ids and a.layout == b.layout


def run(act, params=PARAMS, prompt="A=1+2"):
    """A live response, with which something happens: (the widget, its trajectory)."""

    async def scenario():
        live = viz.live(ENGINE, prompt, params)
        await act(live)
        return live, await live.task

    return asyncio.run(scenario())


async def nothing(live):
    pass


def after(steps):
    """Click on the button after so many turns of the loop."""

    async def act(live):
        for _ in range(steps):
            await asyncio.sleep(0)
        live.children[0].children[0].click()

    return act


def test_what_is_drawn_grows_to_what_generate_gives(writer, drawn):
    live, trajectory = run(nothing)
    (expected,) = ENGINE.generate(["A=1+2"], PARAMS)
    assert same(trajectory, expected) and live.trajectory is trajectory
    assert [decoding for _, decoding in drawn] == [True] * (len(drawn) - 1) + [False]
    assert len(drawn) >= len(set(trajectory.decode_steps)) and trajectory.triggered
    for (before, _), (now, _) in pairwise(drawn):
        old, new = (by_branch(t.layout, t.completion_ids, [True] * t.work) for t in (before, now))
        assert before.work <= now.work
        assert all(new[path][: len(ids)] == ids for path, ids in old.items())
    assert live.status.startswith(f"ended: {trajectory.finish_reason} · ")
    assert f" · {trajectory.work} tokens · " in live.status
    shown = from_row(live.children[1].rollouts.iloc[0])
    assert same(shown, trajectory) and live.children[0].children[0].disabled


def test_while_it_grows_it_has_no_end_and_no_violations(writer, drawn):
    sent = []

    async def act(live):
        while len(live.children) < 2:
            await asyncio.sleep(0)
        live.children[1].send = sent.append

    _, trajectory = run(act)
    records = [message["content"] for message in sent if message["reply"] == "record"]
    assert all(r["ended"] is None and r["violations"] == [] for r in records[:-1]) and records[1:]
    assert records[-1] == data.record(trajectory, data.reader(TOKENIZER), "A=1+2")


def test_stop_ends_it_with_what_there_is(writer, drawn):
    live, trajectory = run(after(20))
    (whole,) = ENGINE.generate(["A=1+2"], PARAMS)
    assert trajectory.finish_reason == "cancelled" and 0 < trajectory.work < whole.work
    parts = [by_branch(t.layout, t.completion_ids, [True] * t.work) for t in (trajectory, whole)]
    assert all(parts[1][path][: len(ids)] == ids for path, ids in parts[0].items())
    assert "ended: cancelled" in live.status and drawn[-1] == (trajectory, False)


def test_stop_before_the_first_token(writer, drawn):
    live, trajectory = run(after(0))
    assert trajectory is None and live.trajectory is None and drawn == []
    assert live.status == "stopped before the first token"


@pytest.mark.parametrize("turns", [0, 12])
def test_an_interrupted_cell_leaves_nothing_in_the_engine(turns, writer):
    async def act(live):
        for _ in range(turns):
            await asyncio.sleep(0)
        live.task.cancel()

    with pytest.raises(asyncio.CancelledError):
        run(act)


def test_an_error_is_shown_and_raised(monkeypatch):
    fine = random_policy(TOKENIZER, broken=0)

    def policy(response, branch):
        if response.call.step == 6:
            raise ArithmeticError("no such token")
        return fine(response, branch)

    write_with(monkeypatch, policy)
    seen = []

    async def act(live):
        seen.append(live)

    with pytest.raises(ArithmeticError, match="no such token"):
        run(act)
    assert seen[0].status == "failed: ArithmeticError: no such token"


def test_what_cannot_be_begun_says_so():
    with pytest.raises(RuntimeError, match="running event loop"):
        viz.live(ENGINE, "A=1")
    with pytest.raises(ValueError, match="is empty"):
        run(nothing, prompt="")


def test_other_calls_run_beside_it(writer):
    """A call that fails ends what is in flight, and the live response says that it was not it."""
    (alone,) = ENGINE.generate(["B=2"], PARAMS)

    async def another(live):
        await asyncio.sleep(0)
        assert alike(ENGINE.generate(["B=2"], PARAMS)[0], alone)

    _, trajectory = run(another)
    assert alike(trajectory, ENGINE.generate(["A=1+2"], PARAMS)[0])

    async def broken(live):
        await asyncio.sleep(0)
        ENGINE._abort(ArithmeticError("theirs"))

    with pytest.raises(RuntimeError, match="another call"):
        run(broken)


# ------------------------------------------------------------------ what if


@pytest.fixture
def rollouts(writer):
    trajectories = ENGINE.generate(["A=1+2"], PARAMS, n=5)
    trajectories += ENGINE.generate(["A=1+2"], SamplingParams(max_tokens=9), mode="sequential")
    known = {"problem": "A=1+2", "answer": "3", "accuracy": [1.0, 0.0] * 3, "stage": "npr"}
    return to_rows(trajectories, **known)


def asked(widget, value, kind="edit"):
    """What the widget sends on a message of its front end."""
    sent = []
    widget.send = sent.append
    widget._handle_custom_msg({"ask": kind, "value": value}, [])
    return json.loads(json.dumps(sent, allow_nan=False))


def draft(t, i, label, text):
    """The edit of a segment, by the function that the button stands for."""
    segment, path = t.segments[i], branch_paths(t.segments)[i]
    if label == "resample from here":
        return edit.cut(t, TOKENIZER, max(0, segment.start - len(t.prompt_ids)))
    if label == "edit this plan":
        return edit.change_plan(t, TOKENIZER, path, text)
    if label == "rewrite this branch":
        return edit.rewrite_branch(t, TOKENIZER, path, text)
    if label == "drop this branch":
        return edit.drop_branch(t, TOKENIZER, path)
    # The block in front of a takeaway, or behind a guideline.
    block, _ = branch_paths(t.segments)[i + (1 if label.startswith("edit plan") else -1)][len(path)]
    if label == "rewrite this takeaway":
        return edit.rewrite_takeaway(t, TOKENIZER, block, text, path)
    return edit.change_plan(t, TOKENIZER, (*path, (block, int(label.split()[-1]) - 1)), text)


def test_every_edit_gives_what_generate_gives(rollouts):
    widget = viz.what_if(ENGINE, rollouts, TOKENIZER, PARAMS)
    tried, seed = Counter(), PARAMS.seed
    for row in range(5):
        t = from_row(rollouts.iloc[row])
        nodes = asked(widget, row, "record")[0]["content"]["segments"]
        for i, label in [(i, label) for i, node in enumerate(nodes) for label, _ in node["edits"]]:
            kind = label.rstrip("012345 ")
            if tried[kind] == 2:
                continue
            tried[kind] += 1
            seed += kind == "resample from here"
            used = seed if kind == "resample from here" else PARAMS.seed
            params = SamplingParams(max_tokens=300, seed=used)
            (expected,) = ENGINE.generate([t.prompt_ids], params, prefix=draft(t, i, label, "7"))
            value = {"row": row, "segment": i, "label": label, "text": "7"}
            table, reply = asked(widget, value)
            made = len(widget.rollouts) - 1
            assert reply == {"reply": "edit", "value": value, "content": {"row": made}}
            assert table["content"]["size"] == made + 1
            last = widget.rollouts.iloc[made]
            assert same(from_row(last), expected)
            assert (last["origin"], last["seed"], last["answer"]) == (row, used, "3")
            assert last["edit"] == f"{nodes[i]['name']}: {label}"
    assert tried.keys() == {
        *("resample from here", "edit this plan", "edit plan", "rewrite this branch"),
        *("drop this branch", "rewrite this takeaway"),
    }
    assert widget.table["columns"]["verdict"][5:7] == ["wrong", None]
    assert set(widget.table["groups"]) == {0}


@pytest.mark.parametrize("style", STYLES)
def test_an_edit_begins_from_the_text_without_its_styles_white_space(writer, style):
    engine = TorchEngine(ENGINE.model, TOKENIZER, EngineConfig(style=style))
    end = "\n</step>" if style == "lines" else "</step>"
    checked = 0
    for t in engine.generate(["A=1+2"], PARAMS, n=4):
        block = t.graph.blocks[0]
        for segment in t.segments[1:]:
            for one in edits(t, TOKENIZER, segment):
                if one.label == "rewrite this branch" and segment.path[0][0] == 0:
                    branch = segment.path[-1][1]
                    assert one.text == block.steps[branch].text
                    drafted = TOKENIZER.decode(one.prefix(one.text)[((0, branch),)])
                    assert drafted == one.text + end
                    checked += 1
                elif one.label == "rewrite this takeaway" and segment is t.segments[-2]:
                    assert one.text == t.graph.blocks[-1].takeaway
    assert checked > 4


def test_a_response_can_be_resampled_from_every_token(rollouts):
    widget = viz.what_if(ENGINE, rollouts, TOKENIZER, PARAMS)
    for row in (1, 5):  # a parallel response, a sequential one
        t = from_row(rollouts.iloc[row])
        nodes = asked(widget, row, "record")[0]["content"]["segments"]
        prompt = len(t.prompt_ids)
        for token in random.Random(row).sample(range(prompt, prompt + t.work), 6):
            segment = next(i for i, n in enumerate(nodes) if n["start"] <= token < n["end"])
            made = widget.attempt(row, segment, "resample from here", token=token)
            last = widget.rollouts.iloc[made]
            params = SamplingParams(max_tokens=300, seed=int(last["seed"]))
            prefix = edit.cut(t, TOKENIZER, token - prompt)
            ids = [t.prompt_ids]
            (expected,) = ENGINE.generate(ids, params, mode=t.mode, prefix=prefix)
            assert same(from_row(last), expected)
            written = nodes[segment]["tokens"][token - nodes[segment]["start"]]
            assert last["edit"] == f"{nodes[segment]['name']}: resample from “{written}”"
    value = {"row": 1, "segment": 1, "label": "resample from here", "text": ""}
    for token in (0, nodes[1]["end"]):
        (reply,) = asked(widget, {**value, "row": 5, "token": token})
        assert "none of it to resample from" in reply["content"]["error"]


def test_an_attempt_is_judged_by_the_problems_verifier(rollouts):
    rows = rollouts.assign(answer=["3", "4", "5", "3", "3", "3"])
    judged = []

    def verify(boxed, row):
        judged.append((boxed, row["answer"]))
        return len(judged) != 2

    widget = viz.what_if(ENGINE, rows, TOKENIZER, PARAMS, verify)
    made = [widget.attempt(row, 1, "resample from here") for row in (0, 2)]
    third = widget.attempt(made[1], 1, "resample from here")
    boxes = [from_row(widget.rollouts.iloc[row]).graph.boxed for row in (*made, third)]
    assert judged == list(zip(boxes, ["3", "5", "5"], strict=True))
    assert widget.table["columns"]["verdict"][6:] == ["right", "wrong", "right"]
    assert widget.table["columns"]["verdict"][:6] == ["right", "wrong"] * 3
    unscored = rollouts.drop(columns="accuracy")
    widget = viz.what_if(ENGINE, unscored, TOKENIZER, PARAMS, lambda boxed, row: False)
    widget.attempt(0, 1, "resample from here")
    assert widget.table["columns"]["verdict"] == [None] * 6 + ["wrong"]


def test_siblings_stay_and_texts_begin_with_what_there_is(rollouts):
    widget = viz.what_if(ENGINE, rollouts, TOKENIZER, PARAMS)
    row = next(i for i in range(5) if from_row(rollouts.iloc[i]).num_branches[0] > 1)
    t = from_row(rollouts.iloc[row])
    nodes = asked(widget, row, "record")[0]["content"]["segments"]
    block = t.graph.blocks[0]
    second = next(i for i, node in enumerate(nodes) if node["path"] == [[0, 1]])
    offered = dict(nodes[second]["edits"])
    assert offered["edit this plan"] == block.plans[1].text
    assert dict(nodes[1]["edits"])["edit plan 2"] == block.plans[1].text
    assert block.steps[1].text.startswith(offered["rewrite this branch"])
    takeaway = next(node for node in nodes if node["kind"] == "takeaway" and not node["path"])
    assert dict(takeaway["edits"])["rewrite this takeaway"] == block.takeaway
    for label in offered:
        made = widget.attempt(row, second, label, "1+1")
        new = from_row(widget.rollouts.iloc[made])
        kept = [step.text for step in new.graph.blocks[0].steps]
        assert kept[0] == block.steps[0].text
        if label != "drop this branch":
            others = [step.text for step in block.steps[2:]]
            assert kept[2:] == others and len(kept) == len(block.steps)
    assert len(widget.rollouts) == 6 + len(offered)


def test_two_resamplings_differ_and_attempts_can_be_edited(rollouts):
    widget = viz.what_if(ENGINE, rollouts, TOKENIZER, PARAMS)
    made = [widget.attempt(0, 1, "resample from here") for _ in range(2)]
    one, two = (widget.rollouts.iloc[row] for row in made)
    assert one["completion_ids"] != two["completion_ids"] and two["seed"] == one["seed"] + 1
    third = widget.attempt(made[0], 1, "resample from here")
    assert widget.rollouts["origin"].tolist()[-3:] == [0, 0, made[0]]
    assert third == len(rollouts) + 2 and len(rollouts) == 6


def test_a_sequential_response_can_be_resampled(rollouts):
    widget = viz.what_if(ENGINE, rollouts, TOKENIZER, PARAMS)
    nodes = asked(widget, 5, "record")[0]["content"]["segments"]
    assert all(node["edits"] == [["resample from here", None]] for node in nodes)
    made = widget.attempt(5, 1, "resample from here")
    assert from_row(widget.rollouts.iloc[made]).mode == "sequential"


def test_a_wrong_edit_is_told_and_changes_nothing(rollouts, monkeypatch):
    widget = viz.what_if(ENGINE, rollouts, TOKENIZER, PARAMS)
    nodes = asked(widget, 0, "record")[0]["content"]["segments"]
    takeaway = next(i for i, node in enumerate(nodes) if node["kind"] == "takeaway")
    value = {"row": 0, "segment": takeaway, "label": "rewrite this takeaway", "text": "<plan>"}
    (reply,) = asked(widget, value)
    assert "ValueError" in reply["content"]["error"] and "prefix" in reply["content"]["error"]
    (reply,) = asked(widget, {**value, "label": "fly"})
    assert "'fly' is none of" in reply["content"]["error"]
    write_with(monkeypatch, lambda response, branch: 1 / 0)
    sent = []
    widget.send = sent.append
    with pytest.raises(ZeroDivisionError):
        widget._edit(value | {"text": "1"})  # ipywidgets logs what a message's handler raises
    assert "ZeroDivisionError" in sent[0]["content"]["error"]
    assert len(widget.rollouts) == 6
    with pytest.raises(ValueError, match="no rollouts"):
        viz.what_if(ENGINE, rollouts.iloc[:0], TOKENIZER, PARAMS)


def test_the_engine_stays_on_its_thread(rollouts, monkeypatch):
    """JupyterLab's messages come on another thread than the kernel's cells."""
    threads = []
    fine = random_policy(TOKENIZER, broken=0)

    def policy(response, branch):
        threads.append(threading.current_thread())
        return fine(response, branch)

    write_with(monkeypatch, policy)

    async def scenario():
        widget = viz.what_if(ENGINE, rollouts, TOKENIZER, PARAMS)
        live = viz.live(ENGINE, "A=1+2", PARAMS)
        value = {"row": 0, "segment": 1, "label": "resample from here", "text": ""}
        await asyncio.to_thread(widget._handle_custom_msg, {"ask": "edit", "value": value}, [])
        await live.task
        return widget, live.trajectory

    widget, trajectory = asyncio.run(scenario())
    assert len(widget.rollouts) == 7 and set(threads) == {threading.main_thread()}
    assert alike(trajectory, ENGINE.generate(["A=1+2"], PARAMS)[0])


def test_other_threads_may_decode_beside_it(writer, drawn):
    params = SamplingParams(max_tokens=120, seed=6)
    expected = ENGINE.generate(["B", "C="], params), ENGINE.generate(["A=1+2"], PARAMS)

    async def scenario():
        calls = [asyncio.to_thread(ENGINE.generate, ["B", "C="], params) for _ in range(3)]
        beside = asyncio.gather(*calls)
        live = viz.live(ENGINE, "A=1+2", PARAMS)
        return await beside, await live.task

    beside, trajectory = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert alike(trajectory, expected[1][0]) and drawn[-1] == (trajectory, False)
    for own in beside:
        assert all(alike(a, b) for a, b in zip(own, expected[0], strict=True))


def test_the_verdict_of_an_unscored_response_is_unknown(rollouts):
    frame = pd.concat([rollouts.iloc[:2], rollouts.iloc[2:3].drop(columns="accuracy")])
    columns = data.table(frame)["columns"]
    assert columns["verdict"] == ["right", "wrong", None]
