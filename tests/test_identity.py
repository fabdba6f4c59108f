"""What a result depends on, and only that."""

import functools
import textwrap
import types

import numpy as np
import pandas as pd
import pytest

from npr_lib import WorkbenchError, identity
from npr_lib.files import PACKAGE
from npr_lib.identity import closure, describe, made_before, resolve, write_made


def in_a_notebook(source, **around):
    """The last function of a cell, as Jupyter would hold it."""
    names = {"__name__": "__main__", **around}
    lines = textwrap.dedent(source)
    code = compile(lines, "<cell>", "exec")
    import linecache

    linecache.cache["<cell>"] = (len(lines), None, lines.splitlines(keepends=True), "<cell>")
    exec(code, names)
    return [value for value in names.values() if isinstance(value, types.FunctionType)][-1]


REWARD = """
    SHARE = 0.5
    def brevity(rollout):
        return SHARE * rollout.span
    def reward(rollout):
        return rollout.correct - brevity(rollout)
"""


def test_a_function_of_a_notebook_is_its_source_and_what_it_uses():
    one = describe(in_a_notebook(REWARD))
    assert one == describe(in_a_notebook(REWARD))
    spaced = REWARD.replace(
        "        return rollout.correct", "        # why\n        return rollout.correct"
    )
    assert one == describe(in_a_notebook(spaced))
    for before, after in (("SHARE = 0.5", "SHARE = 0.6"), ("* rollout.span", "* rollout.work")):
        assert one != describe(in_a_notebook(REWARD.replace(before, after))), after
    assert one != describe(in_a_notebook(REWARD.replace("rollout.correct -", "rollout.correct +")))


def test_what_a_partial_function_or_a_closure_holds_counts():
    def scaled(scale):
        return lambda rewards, size: rewards * scale

    assert describe(scaled(1)) == describe(scaled(1)) != describe(scaled(2))
    reward = in_a_notebook(REWARD)
    one, other = (describe(functools.partial(reward, weight=w)) for w in (1, 2))
    assert one != other
    arrays = [describe(functools.partial(reward, table=np.arange(n))) for n in (3, 4)]
    assert arrays[0] != arrays[1]


def test_what_can_not_be_told_is_refused():
    for use in ("model(rollout)", "model[rollout]"):
        reward = in_a_notebook(f"def reward(rollout):\n    return {use}\n", model=object())
        with pytest.raises(WorkbenchError, match="uses model, a object"):
            describe(reward)


def test_functions_may_use_one_another():
    source = """
        def even(n):
            return n == 0 or odd(n - 1)
        def odd(n):
            return n != 0 and even(n - 1)
    """
    assert describe(in_a_notebook(source)) == describe(in_a_notebook(source))


def test_an_attribute_is_no_global_of_the_same_name():
    source = "def reward(rollout):\n    return rollout.problem.answer\n"
    assert describe(in_a_notebook(source, problem=object())) == describe(in_a_notebook(source))


def test_a_function_of_a_module_is_its_name_and_all_that_is_imported():
    found = describe(resolve("npr_lib.rewards:stage3_reward"))
    assert found["function"] == "npr_lib.rewards:stage3_reward"
    assert {"npr_lib.rewards", "npr_lib.verify"} <= set(found["source"])


@pytest.mark.parametrize(
    "training", ["npr_lib.train.papo", "npr_lib.train.sft", "npr_lib.train.rejection"]
)
def test_a_training_depends_on_the_core_and_on_no_picture(training):
    found = closure(training)
    core = ("engine.torch_engine", "engine.scheduler", "engine.kv", "reasoning.layout")
    assert {"paged.c", *(f"npr_lib.{name}" for name in core)} <= set(found)
    assert not [name for name in found if ".viz" in name or "workbench" in name or "bench" in name]
    assert not [name for name in found if name.endswith((".css", ".js", ".html"))]


def test_pictures_depend_on_their_front_end():
    assert {"explorer.css", "graph.js"} <= set(closure("npr_lib.viz"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one's own: a imports b in a function; c is imported by nobody."""
    folder = tmp_path / "mine_for_identity"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text("def f():\n    from mine_for_identity import b\n    return b.x\n")
    (folder / "b.py").write_text("x = 1\n")
    (folder / "c.py").write_text("y = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    identity._own.cache_clear()
    yield folder
    identity._own.cache_clear()


def test_a_change_counts_where_it_is_imported_and_only_there(package):
    before = closure("mine_for_identity.a")
    assert {"mine_for_identity.a", "mine_for_identity.b"} == set(before) - {"mine_for_identity"}
    (package / "c.py").write_text("y = 2\n")
    (package / "b.py").write_text("x = 1  # a comment\n\n")
    assert closure("mine_for_identity.a") == before
    (package / "b.py").write_text("x = 2\n")
    assert closure("mine_for_identity.a") != before


def test_nothing_installed_is_read():
    assert closure("numpy", "torch.nn", "json", "__main__", "no.such.module") == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reward", "names no function: expected MODULE:FUNCTION"),
        ("no_such:reward", "can't be found"),
        ("npr_lib.rewards:no_such", "can't be found"),
        ("npr_lib.rewards:PENALTIES", "is no function"),
    ],
)
def test_a_name_without_a_function_is_told(name, message):
    with pytest.raises(WorkbenchError, match=message):
        resolve(name)


def test_a_table_is_made_again_when_its_identity_changed_and_the_old_one_is_kept(tmp_path):
    path = tmp_path / "rollouts" / "x.parquet"
    assert made_before(path, {"seed": 0}) is None
    write_made(pd.DataFrame({"a": [1]}), path, {"seed": 0})
    assert made_before(path, {"seed": 0})["a"].tolist() == [1]
    assert made_before(path, {"seed": 1}) is None
    write_made(pd.DataFrame({"a": [2]}), path, {"seed": 1})
    (aside,) = (path.parent / "aside").iterdir()
    assert pd.read_parquet(aside)["a"].tolist() == [1]
    assert made_before(path, {"seed": 1})["a"].tolist() == [2]


def test_the_package_lies_where_it_is_read():
    assert (PACKAGE / "identity.py").samefile(identity.__file__)
