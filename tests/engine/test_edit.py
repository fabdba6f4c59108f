"""Edit and continue: what an edit keeps, what the engine makes of it, and that it is exact."""

import random
from functools import partial

import pytest
from oracles import random_model
from policies import random_policy
from test_engine_oracle import check_against_dense

from npr_lib.engine import EngineConfig, SamplingParams, TorchEngine, edit
from npr_lib.engine.branch import Response
from npr_lib.reasoning.layout import by_branch, layout, sampled_tokens
from npr_lib.reasoning.schema import parse
from npr_lib.reasoning.style import STYLES
from npr_lib.reasoning.tokens import TagIds, encode
from npr_lib.tasks.parts.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TAGS = TagIds.from_tokenizer(TOKENIZER)
PARAMS = SamplingParams(max_tokens=900)
MODEL = random_model(random.Random(0), TOKENIZER)
ENGINES = {
    style: TorchEngine(MODEL, TOKENIZER, EngineConfig(max_depth=2, style=style)) for style in STYLES
}
ENGINE = ENGINES["compact"]
TEXT = (
    "<guideline><plan>1:A</plan><plan>2:B</plan><plan>3:C</plan></guideline>"
    "<step>1:1+1</step><step>2:2+2=4</step><step>3:3</step><takeaway>1;4</takeaway>"
    "<guideline><plan>1:D</plan></guideline><step>1:5</step><takeaway>6</takeaway>7"
)


@pytest.fixture
def writer(monkeypatch):
    policy = random_policy(TOKENIZER, broken=0)
    monkeypatch.setattr(Response, "forced_token", lambda self, branch: policy(self, branch))


def forced(text):
    """The response `text`, decoded in parallel."""
    prompt, ids = encode("A=1", TOKENIZER), encode(text, TOKENIZER)
    structure = layout(prompt + ids, TAGS, len(prompt))
    chosen = by_branch(structure, ids, sampled_tokens(prompt + ids, structure, TOKENIZER))
    params = SamplingParams(max_tokens=len(ids) + 1)
    (trajectory,) = ENGINE.generate([prompt], params, prefix=chosen)
    assert trajectory.text.startswith(text)
    return trajectory


def texts(draft):
    return {path: TOKENIZER.decode(ids) for path, ids in draft.items()}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_a_cut_continued_with_the_same_seed_is_the_same_response(writer, engine):
    """Every token drawn depends on its branch and index alone, so wherever a response is cut, going
    on gives it back; tokens of the prefix are marked as given."""
    rng = random.Random(3)
    count = 6 if engine is ENGINE else 2
    for i, t in enumerate(engine.generate(["A=1+2"], PARAMS, n=count)):
        for index in sorted(rng.sample(range(t.work), 4)):
            draft = edit.cut(t, TOKENIZER, index)
            given = sum(map(len, draft.values()))
            again = engine.generate(["A=1+2"], PARAMS, n=i + 1, prefix=draft)[i]
            assert again.completion_ids == t.completion_ids and again.layout == t.layout
            assert sum(again.sampled) == sum(t.sampled) - given
            check_against_dense(MODEL, again)


def test_a_cut_keeps_what_did_not_see_the_token():
    t = forced(TEXT)
    index = t.completion_ids.index(TAGS.step) + 4  # "+" of the first branch
    assert texts(edit.cut(t, TOKENIZER, index)) == {
        (): "<guideline><plan>1:A</plan><plan>2:B</plan><plan>3:C</plan></guideline>",
        ((0, 0),): "1",
        ((0, 1),): "2+2=4</step>",
        ((0, 2),): "3</step>",
        ((1, 0),): "",
    }


def test_edits_keep_parallel_branches_and_drop_what_saw_them():
    t = forced(TEXT)
    first = "<guideline><plan>1:A</plan><plan>2:B</plan><plan>3:C</plan></guideline>"
    rewritten = edit.rewrite_branch(t, TOKENIZER, ((0, 1),), "9")
    assert texts(rewritten) == {
        (): first,
        ((0, 0),): "1+1</step>",
        ((0, 1),): "9</step>",
        ((0, 2),): "3</step>",
    }
    changed = edit.change_plan(t, TOKENIZER, ((0, 1),), "C+D")
    assert texts(changed) == {
        (): first.replace("2:B", "2:C+D"),
        ((0, 0),): "1+1</step>",
        ((0, 2),): "3</step>",
    }
    dropped = edit.drop_branch(t, TOKENIZER, ((0, 1),))
    assert texts(dropped) == {
        (): "<guideline><plan>1:A</plan><plan>2:C</plan></guideline>",
        ((0, 0),): "1+1</step>",
        ((0, 1),): "3</step>",
    }
    other = edit.rewrite_takeaway(t, TOKENIZER, 0, "2;4;3")
    assert texts(other) == {
        (): first + "2;4;3</takeaway>",
        ((0, 0),): "1+1</step>",
        ((0, 1),): "2+2=4</step>",
        ((0, 2),): "3</step>",
    }
    with pytest.raises(ValueError, match="only one of its block"):
        edit.drop_branch(t, TOKENIZER, ((1, 0),))
    with pytest.raises(ValueError, match="no branch"):
        edit.rewrite_branch(t, TOKENIZER, ((0, 7),), "9")
    with pytest.raises(IndexError, match="the response has"):
        edit.cut(t, TOKENIZER, 10**6)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("kind", ["rewrite", "change", "drop", "takeaway"])
def test_the_engine_goes_on_from_every_edit(kind, engine, writer):
    """What is kept stands in the new response, and its logprobs pass the dense oracle."""
    for t in engine.generate(["A=1+2"], PARAMS, n=8 if engine is ENGINE else 4):
        if not t.num_branches or t.num_branches[0] < 2:
            continue
        path = ((0, 1),)
        draft = {
            "rewrite": partial(edit.rewrite_branch, path=path, text="8-7"),
            "change": partial(edit.change_plan, path=path, text="D"),
            "drop": partial(edit.drop_branch, path=path),
            "takeaway": partial(edit.rewrite_takeaway, block=0, text="1;2;3"),
        }[kind](t, TOKENIZER)
        (again,) = engine.generate(["A=1+2"], PARAMS, prefix=draft)
        check_against_dense(MODEL, again)
        block = parse(again.text, max_depth=2, style=again.style).blocks[0]
        before = t.graph.blocks[0]
        if kind == "rewrite":
            assert block.steps[1].text == "8-7" and block.plans == before.plans
        if kind == "change":
            assert block.plans[1].text == "D" and block.steps[0] == before.steps[0]
        if kind == "drop":
            assert len(block.plans) == len(before.plans) - 1
        if kind == "takeaway":
            assert block.takeaway == "1;2;3" and block.steps == before.steps
