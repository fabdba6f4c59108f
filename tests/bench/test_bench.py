"""The benchmark at its smallest: what it writes, that both arms do the same, what is drawn."""

import json
import random

import pytest
import torch
from figures import assert_inert
from pages import is_local, sources
from transformers import AutoModelForCausalLM

from npr_lib import WorkbenchError
from npr_lib.__main__ import main
from npr_lib.bench import benchmark, measurements
from npr_lib.bench.figures import benchmark as draw
from npr_lib.bench.peers import SHAPES, bare_step, build, continuous_batching, generate
from npr_lib.bench.workload import PROMPT, QUICK, STUB, trajectory, words
from npr_lib.reasoning.layout import layout
from npr_lib.reasoning.tokens import TagIds


@pytest.fixture(scope="module")
def subject():
    return build("tiny", "cpu", torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line leaves."""
    out = tmp_path_factory.mktemp("bench")
    assert main(["bench", "--quick", "--models", "tiny", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def result(folder):
    return json.loads((folder / "bench.json").read_text())


def rows(result, part):
    return result["results"][part]


# ------------------------------------------------------------------ the work


@pytest.mark.parametrize("branches", [1, 3, 16])
def test_trajectory_is_well_formed_and_of_the_size_asked_for(subject, branches):
    made = trajectory(branches, 24, subject.tokenizer)
    assert made.branch_lengths == [[24] * branches]
    assert made.layout == layout(
        made.prompt_ids + made.completion_ids, TagIds.from_tokenizer(subject.tokenizer), PROMPT
    )
    assert made.work - made.span == 24 * (branches - 1)
    with pytest.raises(ValueError, match="a branch of 4 tokens: expected at least 5"):
        trajectory(branches, 4, subject.tokenizer)


def test_both_ways_of_decoding_forward_the_same_tokens(subject):
    whole = trajectory(3, 24, subject.tokenizer)
    engine = measurements.engine_for(subject, PROMPT + whole.work, 3)
    forwarded, done = [], []
    for mode in ("sequential", "parallel"):
        before = engine.stats.forwarded
        done.append(engine.replay(whole, mode).completion_ids)
        forwarded.append(engine.stats.forwarded - before)
    assert done == [whole.completion_ids] * 2
    assert forwarded == [PROMPT + whole.work - 1] * 2
    assert engine.kv.num_used == 0


def test_engine_and_peers_share_their_weights(subject):
    own, peer = subject.model.parameters(), subject.peer.parameters()
    assert all(a is b for a, b in zip(own, peer, strict=True))
    measurements.engine_for(subject, 64)
    assert subject.model.config._attn_implementation == "npr"
    assert subject.peer.config._attn_implementation == "sdpa"


def test_peers_make_the_tokens_asked_for_and_the_same(subject):
    prompts = [words(n, subject.tokenizer, random.Random(n)) for n in (9, 14, 20)]
    padded = generate(subject.peer, prompts, 6)()
    with continuous_batching(subject.peer, prompts, 6) as batched:
        seconds, continuous = batched()
        assert batched()[1] == continuous
    assert seconds > 0 and continuous == padded and [len(ids) for ids in padded] == [6] * 3
    assert subject.peer.config._attn_implementation == "sdpa"


def test_bare_step_is_the_same_forward_every_time(subject):
    seen = []
    hook = subject.peer.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(output.logits), with_kwargs=True
    )
    step = bare_step(subject.peer, rows=3, context=20)
    seen.clear()
    step(), step()
    hook.remove()
    assert [logits.shape[:2] for logits in seen] == [(3, 1), (3, 1)]
    assert torch.equal(*seen)


def test_unequal_work_is_no_comparison():
    made = {"engine": [[1, 2], [3, 4]], "generate": [[1, 2], [3]]}
    with pytest.raises(WorkbenchError, match="generate made 3 tokens in 2 responses, expected 2"):
        measurements.check_equal_work(made, 2, 2)


def test_arms_take_turns():
    order = []
    arms = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    assert measurements.take_turns(arms, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert order == list("ababab")
    assert measurements.spread("q", [3, 1, 5]) == {"q": 3, "q_min": 1, "q_max": 5}


# ------------------------------------------------------------------ what is measured


def test_result_says_on_what_it_was_measured(result):
    machine = result["machine"]
    assert machine["device"] == "cpu" and machine["dtype"] == "float32" and machine["cpu"]
    assert set(machine["packages"]) == {"torch", "transformers"}
    assert machine["date"] and "commit" in machine["git"] and machine["cores"] >= 1
    assert result["quick"] and result["pairs"] == QUICK.pairs
    assert result["models"]["tiny"]["parameters"] == 351_696
    assert set(result["results"]) == set(benchmark.TABLES)
    assert all(measured for measured in result["results"].values())


def test_decoding_rows(result):
    cells = [(row["branches"], row["length"]) for row in rows(result, "decoding")]
    assert cells == [(k, n) for n in QUICK.lengths for k in QUICK.branches]
    for row in rows(result, "decoding"):
        for name in ("speedup", "cap", "efficiency", "overhead", "step_ms"):
            assert row[f"{name}_min"] <= row[name] <= row[f"{name}_max"]
        assert row["efficiency"] == pytest.approx(row["speedup"] / row["ideal"])
        assert row["cap"] > 0 and row["length"] > STUB
    one, three = rows(result, "decoding")
    assert one["ideal"] == 1 and three["ideal"] == three["tokens"] / (three["tokens"] - 2 * 24)


def test_throughput_rows(result):
    measured = rows(result, "throughput")
    assert [(row["responses"], row["tokens"]) for row in measured] == [(1, 8), (4, 32)]
    for row in measured:
        low, high = (row["engine_tps_" + end] for end in ("min", "max"))
        assert 0 < low <= row["engine_tps"] <= high
        assert row["generate_tps"] > 0 and row["over_generate_batch"] > 0
        assert row["same_tokens"] > 0.9


def test_slots_are_those_of_distinct_tokens_and_nothing_is_recomputed_at_a_join(result):
    *shared, resumed = rows(result, "slots")
    for row in shared:
        assert row["peak"] == row["distinct"] and row["again"] == row["preemptions"] == 0
    assert [row["saved"] > 1 for row in shared] == [False, True, True]
    assert resumed["preemptions"] > 0 and resumed["again"] >= resumed["recomputed"] > 0


def test_layout_rows(result):
    measured = rows(result, "layout")
    assert [row["tokens"] for row in measured] == list(QUICK.layouts)
    for row in measured:
        assert row["ms"] > 0 and 16 < row["bytes_per_token"] < 200
        assert row["mask_mb"] == row["tokens"] ** 2 / 1e6


def test_marginal_rows(result):
    measured = rows(result, "marginal")
    assert [row["more"] for row in measured] == ["branch", "response", "1000 tokens of prefix"]
    for row, counts in zip(
        measured, (QUICK.more_branches, QUICK.more_responses, QUICK.more_prefix), strict=True
    ):
        assert row["counts"] == list(counts)
        assert len(row["engine_ms_at"]) == len(row["bare_ms_at"]) == len(counts)
        assert row["engine_ms_min"] <= row["engine_ms"] <= row["engine_ms_max"]


def test_slope_is_that_of_the_line_through_the_times(subject, monkeypatch):
    monkeypatch.setattr(
        measurements, "_bare_seconds", lambda subject, rows, *_: lambda: rows * 2e-3
    )
    arms = {1: 0.011, 2: 0.014, 3: 0.017}

    def make(subject, sizes, count):
        return lambda: arms[count], count, 0

    row = measurements._slope(subject, QUICK, "x", 10, (1, 2, 3), make)
    assert row["engine_ms"] == pytest.approx(30) and row["bare_ms"] == pytest.approx(20)
    assert row["engine_ms_at"] == pytest.approx([11, 14, 17])


# ------------------------------------------------------------------ what is shown


def test_figures_show_the_rows(result):
    figures = draw(result)
    assert set(figures) == set(benchmark.TABLES)
    speedups, overhead = figures["decoding"]
    ideal, cap, measured = speedups.data
    own = rows(result, "decoding")
    assert list(ideal.x) == [1, 3] and list(ideal.y) == [row["ideal"] for row in own]
    assert list(cap.y) == [row["cap"] for row in own]
    assert list(measured.y) == [row["speedup"] for row in own]
    tops = [y + up for y, up in zip(measured.y, measured.error_y.array, strict=True)]
    assert tops == pytest.approx([row["speedup_max"] for row in own])
    assert list(overhead.data[0].y) == [row["overhead"] for row in own]
    engine, padded, continuous = figures["throughput"][0].data
    for trace, arm in ((engine, "engine"), (padded, "generate"), (continuous, "generate_batch")):
        assert list(trace.y) == [row[f"{arm}_tps"] for row in rows(result, "throughput")]
    copies, peak = figures["slots"][0].data
    assert list(peak.x) == [row["peak"] for row in rows(result, "slots")]
    assert list(copies.x) == [row["copies"] for row in rows(result, "slots")]
    time, memory = figures["layout"][0].data
    assert list(time.y) == [row["ms"] for row in rows(result, "layout")]
    assert list(memory.y) == [row["mb"] for row in rows(result, "layout")]
    first = figures["marginal"][0].data[0]
    assert list(first.y) == rows(result, "marginal")[0]["engine_ms_at"]
    assert_inert({f"{part} {i}": f for part, fs in figures.items() for i, f in enumerate(fs)})


def test_figures_of_two_models_are_two(result):
    twice = [row | {"model": name} for name in ("a", "b") for row in rows(result, "throughput")]
    figures = draw({"results": {"throughput": twice, "slots": []}})
    assert [len(drawn) for drawn in figures.values()] == [2, 0]
    assert [f.layout.title.text.count(", b<") for f in figures["throughput"]] == [0, 1]


def test_page_stands_alone(folder):
    page = (folder / "bench.html").read_text()
    assert all(map(is_local, sources(page)))
    assert "Plotly.newPlot" in page and "351,696" in page and "sizes too small" in page
    for title, _ in benchmark.TABLES.values():
        assert f"<h2>{title}</h2>" in page


def test_result_is_found_in_a_run_or_beside_it(folder, result, tmp_path):
    run = tmp_path / "tiny"
    run.mkdir()
    assert benchmark.find(run) is None
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench.json").write_text(json.dumps(result))
    assert benchmark.find(run) == result
    (run / "bench.json").write_text(json.dumps(result | {"pairs": 99}))
    assert benchmark.find(run)["pairs"] == 99
    with pytest.raises(WorkbenchError, match="make it with: python -m npr_lib bench --out"):
        benchmark.write_page(tmp_path)


# ------------------------------------------------------------------ the command line


def test_mistakes_are_told_in_a_line(capsys, tmp_path):
    out = ["--out", str(tmp_path)]
    assert main(["bench", "--models", "tiny,nonsense", *out]) == 1
    assert "unknown model 'nonsense'; there are: tiny, llama25m" in capsys.readouterr().err
    assert main(["bench", "--pairs", "0", *out]) == 1
    assert "--pairs 0: expected at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_only_some_parts(capsys, tmp_path):
    arguments = ["bench", "--quick", "--only", "layout", "--models", "tiny", "--out", str(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Construction of a layout" in shown and "in flight" not in shown
    assert list(benchmark.read(tmp_path)["results"]) == ["layout"]
    assert list(benchmark.tables(benchmark.read(tmp_path))) == ["Construction of a layout"]


def test_help_lists_the_parts_and_models(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"of {', '.join(SHAPES)}" in shown
    assert f"of {', '.join(benchmark.TABLES)}" in shown


def test_shapes_are_of_the_size_they_are_named_for():
    for name, millions in (("llama25m", 25), ("llama135m", 135), ("qwen3-1.7b", 1720)):
        kind, fields = SHAPES[name]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(kind(**fields))
        count = sum(p.numel() for p in model.parameters())
        assert count / 1e6 == pytest.approx(millions, rel=0.03), name
