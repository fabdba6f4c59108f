"""The benchmark at its smallest: what it writes, that both arms do the same, what is drawn."""

import json
import random
from dataclasses import replace
from statistics import median

import pytest
import torch
from figures import assert_inert
from pages import is_local, sources
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from npr_lib import WorkbenchError
from npr_lib.__main__ import main
from npr_lib.bench import benchmark, measurements, sections, training
from npr_lib.bench.figures import benchmark as draw
from npr_lib.bench.peers import (
    SHAPES,
    bare_step,
    build,
    configuration,
    continuous_batching,
    generate,
    timed,
)
from npr_lib.bench.sections import SECTIONS
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


def rounds(result, section, **sizes):
    """Arm -> its values by round, of what was measured at these sizes, found without the tables."""
    found = {}
    for row in result["rows"]:
        if row["section"] == section and sizes.items() <= row.items():
            found.setdefault(row["arm"], []).append(row["value"])
    return found


@pytest.fixture(scope="module")
def shown(result):
    """Section -> its table."""
    tables = benchmark.tables(result)
    return {name: tables[section.title] for name, section in SECTIONS.items()}


def cells(texts):
    """The medians of cells such as "1.87 [1.83, 1.90]"."""
    return [float(text.split()[0]) for text in texts]


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
    taken = measurements.take_turns(arms, 3, {"tokens": 7})
    assert order == list("ababab")
    assert [(row["arm"], row["round"], row["value"]) for row in taken] == [
        *(("a", 0, 1), ("b", 0, 2), ("a", 1, 3), ("b", 1, 4), ("a", 2, 5), ("b", 2, 6))
    ]
    assert all(row["tokens"] == 7 and row["unit"] == "s" for row in taken)


def test_a_timer_calls_once_and_takes_as_long():
    calls = []
    timer = timed(torch.device("cpu"), lambda *args, **named: calls.append((args, named)), 1, a=2)
    assert calls == [] and 0 < timer() < 1 and calls == [((1,), {"a": 2})]


# ------------------------------------------------------------------ what is measured


def test_result_says_on_what_it_was_measured(result):
    machine = result["machine"]
    assert machine["device"] == "cpu" and machine["dtype"] == "float32" and machine["cpu"]
    assert set(machine["packages"]) == {"torch", "transformers"}
    assert machine["date"] and "commit" in machine["git"] and machine["cores"] >= 1
    assert result["quick"] and result["pairs"] == QUICK.pairs
    assert result["models"]["tiny"]["parameters"] == 351_696
    assert result["models"]["tiny"]["shape"]["num_hidden_layers"] == 3


def test_every_measurement_is_a_row_of_one_frame(result):
    frame = sections.frame(result["rows"])
    assert len(frame) == len(result["rows"]) and set(frame["section"]) == set(SECTIONS)
    assert not frame[["section", "arm", "round", "value", "unit"]].isna().any(axis=None)
    assert (frame["model"].isna() == (frame["section"] == "layout")).all()
    timed_by_all = frame[(frame["unit"] == "s") & (frame["section"] != "layout")]
    assert set(timed_by_all["round"]) == set(range(QUICK.pairs))
    assert not frame.duplicated(list(frame.columns.drop("value"))).any()


def test_decoding(result, shown):
    table = shown["decoding"]
    assert list(zip(table["branches"], table["length"], strict=True)) == [
        (k, n) for n in QUICK.lengths for k in QUICK.branches
    ]
    for _, line in table.iterrows():
        arms = rounds(result, "decoding", branches=line["branches"], length=line["length"])
        sequential, parallel, stub = (arms[arm] for arm in ("sequential", "parallel", "stub"))
        one, many = arms["one_row"], arms["k_rows"]
        assert min(*sequential, *parallel, *stub, *one, *many) > 0 and line["length"] > STUB
        ideal = float(line["ideal"])
        steps = [(p - s) / (24 - STUB) for p, s in zip(parallel, stub, strict=True)]
        ratios = [s / p for s, p in zip(sequential, parallel, strict=True)]
        for heading, values in {
            "speed-up": ratios,
            "cap": [line["branches"] * a / b for a, b in zip(one, many, strict=True)],
            "efficiency": [ratio / ideal for ratio in ratios],
            "step / bare step": [a / b for a, b in zip(steps, many, strict=True)],
            "step ms": [1e3 * step for step in steps],
        }.items():
            middle, low, high = line[heading].replace("[", "").replace("]", "").split()
            found = [float(text.strip(",")) for text in (low, middle, high)]
            expected = [min(values), median(values), max(values)]
            assert found == pytest.approx(expected, rel=0.01, abs=0.006), heading
    one, three = table["ideal"]
    tokens = rounds(result, "decoding", branches=3, work=102, span=102 - 2 * 24)
    assert one == "1" and tokens and float(three) == pytest.approx(102 / 54, abs=0.005)


def test_throughput(result, shown):
    table = shown["throughput"]
    assert table[["in flight", "tokens"]].to_numpy().tolist() == [[1, 8], [4, 32]]
    for _, line in table.iterrows():
        arms = rounds(result, "throughput", **{"in flight": line["in flight"]})
        engine, padded = arms["engine"], arms["generate"]
        assert min(*engine, *padded, *arms["generate_batch"]) > 0
        rate, ratio = cells(line[["engine", "/ generate"]])
        assert rate == pytest.approx(median(line["tokens"] / t for t in engine), rel=0.01)
        ratios = [b / a for a, b in zip(engine, padded, strict=True)]
        assert ratio == pytest.approx(median(ratios), rel=0.01)
        assert float(line["same tokens (%)"]) > 90


def test_slots_are_those_of_distinct_tokens_and_nothing_is_recomputed_at_a_join(shown):
    table = shown["slots"].set_index("case").drop(columns="model").astype(float)
    shared, resumed = table.iloc[:-1], table.iloc[-1]
    assert (shared["peak"] == shared["distinct"]).all()
    assert (shared[["again", "preempted"]] == 0).all(axis=None)
    assert (shared["copies / peak"] > 1).tolist() == [True, False, True]
    assert resumed.name.startswith("4 x 3 branches of 24") and resumed["preempted"] > 0
    assert resumed["again"] >= resumed["recomputed"] > 0


def test_layout(shown):
    table = shown["layout"]
    assert table["tokens"].tolist() == list(QUICK.layouts) and "model" not in table
    assert [float(text) for text in table["dense mask MB"]] == pytest.approx(
        [n * n / 1e6 for n in QUICK.layouts], rel=0.01
    )
    assert min(cells(table["ms"])) > 0
    assert all(16 < size < 200 for size in cells(table["bytes/token"]))


def test_marginal(result, shown):
    table = shown["marginal"]
    names = ["1 branch", "1 response", "1000 tokens of prefix"]
    assert table["with more"].tolist() == names
    measured = (QUICK.more_branches, QUICK.more_responses, QUICK.more_prefix)
    for name, counts, cell in zip(names, measured, table["engine"], strict=True):
        at = [rounds(result, "marginal", **{"with more": name, "count": n}) for n in counts]
        assert all(len(arms["engine"]) == len(arms["bare"]) == QUICK.pairs for arms in at)
        few, many = (arms["engine"] for arms in at)
        per = [1e3 * (b - a) / (counts[1] - counts[0]) for a, b in zip(few, many, strict=True)]
        assert cells([cell]) == pytest.approx([median(per)], rel=0.01, abs=0.002)


def test_training(result, shown):
    table = shown["training"]
    sizes = table[["prompt", "response", "group", "tokens"]]
    assert sizes.to_numpy().tolist() == [[24, 120, 3, 432]]
    arms = rounds(result, "training", tokens=432)
    assert min(*arms["packed"], *arms["alone"], *arms["trl"]) > 0
    ratios = [a / b for a, b in zip(arms["packed"], arms["trl"], strict=True)]
    assert cells(table["packed / TRL"]) == pytest.approx([median(ratios)], rel=0.01, abs=0.006)
    assert all(len(arms[f"{arm}_peak"]) == 1 for arm in ("packed", "alone", "trl"))


def test_a_group_to_train_on_is_of_the_size_its_line_says(subject):
    layouts, ids, mask, width = training._group(subject.tokenizer, 24, 120, 3)
    assert [len(layout) - 24 for layout in layouts] == [60, 120, 180] and width == 180
    assert mask.sum(dim=1).tolist() == [84, 144, 204]
    assert len(ids[:, :24].unique(dim=0)) == 1 and len(ids[:, 24:].unique(dim=0)) == 3
    for item in layouts:
        assert len({s.path for s in item.segments if s.path}) == training.BRANCHES


def test_a_packed_step_needs_little_more_than_half_of_the_products(subject):
    """G = 8 and a prompt as long as the responses: (1 + 8) / 16, and a token more a response."""
    list(training.training(subject, replace(QUICK, groups=((24, 120, 2),), pairs=1)))
    products = {}
    for name, step in training._steps(subject, 120, 120, 8).items():
        with FlopCounterMode(display=False) as counter:
            step()
        products[name] = counter.get_total_flops()
    assert products["packed"] / products["alone"] == pytest.approx(9 / 16 + 1 / 240, abs=0.01)
    assert products["packed"] < 0.5 * products["trl"]


def test_slope_is_that_of_the_line_through_the_times():
    times = {("engine", 0.1): 0.011, ("engine", 0.2): 0.014, ("engine", 0.3): 0.017}
    times |= {("bare", 0.1): 0.002, ("bare", 0.2): 0.003, ("bare", 0.3): 0.007}
    rows = [
        {"arm": arm, "count": n, "round": i, "value": i + t, "unit": "s", "model": "m"}
        for (arm, n), t in times.items()
        for i in range(2)
    ]
    found = sections.slopes(sections.frame(rows), "count")
    assert found[["arm", "round"]].to_numpy().tolist() == [
        [arm, i] for arm in ("engine", "bare") for i in range(2)
    ]
    assert found["value"].tolist() == pytest.approx([0.03, 0.03, 0.025, 0.025])


def test_ratios_are_taken_within_a_round():
    times = {"above": [1.0, 8.0, 6.0], "below": [2.0, 2.0, 12.0], "once": [4.0]}
    rows = [
        {"section": "s", "arm": arm, "length": 7, "round": i, "value": value, "unit": "s"}
        for arm, values in times.items()
        for i, value in enumerate(values)
    ]
    wanted = {"ratio": "above / below", "length": "length", "once": "once"}
    found = sections.summary(sections.frame(rows), wanted).set_index("quantity")
    assert found.loc["ratio", ["median", "min", "max"]].tolist() == [0.5, 0.5, 4]
    assert found.loc["length", "median"] == 7 and found.loc["once", "max"] == 4


def test_lines_stand_as_they_were_measured_where_sizes_are_ragged():
    measured = [(n, k) for n in (32, 128, 512) for k in (1, 5, *((8, 16) if n == 128 else ()))]
    arms = {"sequential": 8.0, "parallel": 2.0, "stub": 1.0, "one_row": 0.5, "k_rows": 0.25}
    rows = [
        {"section": "decoding", "model": model, "branches": k, "length": n, "steps": n - STUB}
        | {"work": k * n, "span": n, "arm": arm, "round": i, "value": value * n * k, "unit": "s"}
        for model in ("b", "a")
        for n, k in measured
        for i in range(2)
        for arm, value in arms.items()
    ]
    ((_, table),) = benchmark.tables({"rows": rows}).items()
    assert list(table[["model", "length", "branches"]].itertuples(index=False, name=None)) == [
        (model, *sizes) for model in ("b", "a") for sizes in measured
    ]
    assert cells(table["ideal"]) == [k for _, k in measured] * 2
    assert (
        set(table["speed-up"]) == {"4"} and cells(table["cap"]) == [2 * k for _, k in measured] * 2
    )
    ((_, (speedups, *_)),) = draw({"rows": rows}).items()
    panels = [[*trace.x] for trace in speedups.data if trace.name == "ideal"]
    assert panels == [[1, 5], [1, 5, 8, 16], [1, 5]]


def test_cells_have_three_digits_of_the_median():
    shown = [(1.868, 1.8, 1.9), (332.1, 90, 400), (0.0312, -0.01, 1), (73, 73, 73), (0, -1, 1)]
    assert [sections.cell(*map(float, values)) for values in shown] == [
        *("1.87 [1.80, 1.90]", "332 [90, 400]", "0.031 [-0.010, 1.000]", "73", "0.00 [-1.00, 1.00]")
    ]


# ------------------------------------------------------------------ what is shown


def test_figures_show_the_medians(result, shown):
    figures = draw(result)
    assert list(figures) == [section.title for section in SECTIONS.values()]
    drawn = {name: figures[section.title] for name, section in SECTIONS.items()}

    def shows(values, section, heading):
        expected = cells(shown[section][heading])
        return list(values) == pytest.approx(expected, rel=0.01, abs=0.001)

    speedups, overhead = drawn["decoding"]
    assert [trace.name for trace in speedups.data] == ["ideal", "cap", "speed-up"]
    for trace in speedups.data:
        assert list(trace.x) == [1, 3] and shows(trace.y, "decoding", trace.name)
    whiskers = speedups.data[2].error_y
    arms = [rounds(result, "decoding", branches=k) for k in QUICK.branches]
    pairs = [zip(arm["sequential"], arm["parallel"], strict=True) for arm in arms]
    ratios = [[s / p for s, p in pair] for pair in pairs]
    tops = [y + up for y, up in zip(speedups.data[2].y, whiskers.array, strict=True)]
    lows = [y - down for y, down in zip(speedups.data[2].y, whiskers.arrayminus, strict=True)]
    assert tops == pytest.approx([max(r) for r in ratios])
    assert lows == pytest.approx([min(r) for r in ratios])
    assert shows(overhead.data[0].y, "decoding", "step / bare step")
    for trace, arm in zip(
        drawn["throughput"][0].data, ("engine", "generate", "generate_batch"), strict=True
    ):
        assert trace.name == arm and shows(trace.y, "throughput", arm)
    for trace, heading in zip(drawn["slots"][0].data, ("copies", "peak"), strict=True):
        assert trace.name == heading and shows(trace.x, "slots", heading)
    for trace, heading in zip(drawn["layout"][0].data, ("ms", "MB"), strict=True):
        assert shows(trace.y, "layout", heading)
    first = drawn["marginal"][0].data[0]
    at = [rounds(result, "marginal", **{"with more": "1 branch", "count": n}) for n in (1, 2)]
    assert list(first.y) == pytest.approx([1e3 * median(arms["engine"]) for arms in at])
    assert_inert({f"{title} {i}": f for title, fs in figures.items() for i, f in enumerate(fs)})


def test_figures_of_two_models_are_two(result):
    twice = [
        row | {"model": name}
        for name in ("b", "a")
        for row in result["rows"]
        if row["section"] == "throughput"
    ]
    (drawn,) = draw({"rows": twice}).values()
    titles = [figure.layout.title.text for figure in drawn]
    assert len(titles) == 2 and ", b<" in titles[0] and ", a<" in titles[1]
    (table,) = benchmark.tables({"rows": twice}).values()
    assert table["model"].tolist() == ["b", "b", "a", "a"]


def test_page_stands_alone(folder):
    page = (folder / "bench.html").read_text()
    assert all(map(is_local, sources(page)))
    assert "Plotly.newPlot" in page and "351,696" in page and "sizes too small" in page
    for section in SECTIONS.values():
        assert f"<h2>{section.title}</h2>" in page
        assert all(f"<th>{heading}</th>" in page for heading in section.quantities)


def test_result_is_found_in_a_run_or_beside_it(folder, result, tmp_path):
    run = tmp_path / "tiny"
    run.mkdir()
    assert benchmark.find(run) is None
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench.json").write_text(json.dumps(result))
    assert benchmark.find(run) == result
    (run / "bench.json").write_text(json.dumps(result | {"pairs": 99}))
    assert benchmark.find(run)["pairs"] == 99
    earlier = {"pairs": 5, "results": {"decoding": []}}  # before every measurement was a row
    (run / "bench.json").write_text(json.dumps(earlier))
    assert benchmark.read(run) is None and benchmark.find(run) == result
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


def test_only_some_sections(capsys, tmp_path):
    arguments = ["bench", "--quick", "--only", "layout", "--models", "tiny", "--out", str(tmp_path)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "Construction of a layout" in told and "in flight" not in told
    assert {row["section"] for row in benchmark.read(tmp_path)["rows"]} == {"layout"}
    assert list(benchmark.tables(benchmark.read(tmp_path))) == ["Construction of a layout"]


def test_help_lists_the_sections_and_models(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"of {', '.join(SHAPES)}" in shown
    assert f"of {', '.join(SECTIONS)}" in shown


def test_shapes_are_of_the_size_they_are_named_for():
    for name, millions in (("llama25m", 25), ("llama135m", 135), ("qwen3-1.7b", 1720)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(configuration(name))
        count = sum(p.numel() for p in model.parameters())
        assert count / 1e6 == pytest.approx(millions, rel=0.03), name
