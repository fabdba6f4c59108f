"""Two models on three sets, with responses that are known: every number found again by hand."""

import itertools
import json
import random
import re
import shutil
from collections import Counter
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from oracles import random_model
from pages import is_local, sources
from scripted import TOKENIZER, block, trajectory

from npr_lib import WorkbenchError, __main__
from npr_lib.analysis import benchmark, benchmark_tables, paper
from npr_lib.analysis.benchmark import Settings, evaluate
from npr_lib.analysis.sets import model_names, read_sets
from npr_lib.engine import Finish, SamplingParams
from npr_lib.engine.checkpoint import save_model
from npr_lib.workbench import benchmarks

K = 4
SKILL = {"npr": 0.6, "sr": 0.3}


class Scripted:
    """Right with a chance of the model's, now and then without a box; finishes in any order."""

    tokenizer, context = TOKENIZER, 10_000

    def __init__(self, name):
        self.name, self.calls = name, []

    def respond(self, prompt, sample, params, mode):
        prompt = prompt if isinstance(prompt, str) else TOKENIZER.decode(prompt)
        draw = random.Random(f"{self.name} {prompt} {sample} {params.seed}")
        value = int(re.match(r"A=(\d+)", prompt)[1])
        answer = value if draw.random() < SKILL[self.name] else draw.choice([1, 2, 90])
        box = f"\\boxed{{{answer}}}" if draw.random() < 0.9 else "A"
        steps = ["A=1" * draw.randint(1, 4) for _ in range(draw.randint(1, 3))]
        forks = mode == "parallel" and draw.random() < 0.8
        text = (block(*steps) if forks else "".join(steps)) + box
        return trajectory(text, prompt, params.temperature, mode)

    def stream(self, prompts, params, n=1, mode="parallel"):
        self.calls.append((list(prompts), params, n, mode))
        order = list(range(len(prompts) * n))
        random.Random(len(order)).shuffle(order)
        for i in order:
            yield Finish(1, i, 0, 0.0, (), self.respond(prompts[i // n], i % n, params, mode))

    def replay_all(self, trajectories, mode):
        return trajectories


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, mode in (("sr", "sequential"), ("npr", "parallel")):
        save_model(random_model(random.Random(1), TOKENIZER), TOKENIZER, root / name, mode)
    return [root / "sr", root / "npr"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name, count, start in (("first", 9, 10), ("second", 5, 40), ("aime25", 6, 70)):
        rows = [{"problem": f"A={start + i};", "answer": start + i} for i in range(count)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return read_sets(["first.json@exact", "second.json@exact", "aime25.json@exact"], base=folder)


@pytest.fixture(scope="module")
def evaluated(folders, sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    engines = {}

    def torch_engine(name, tokenizer, config):
        engines[name] = Scripted(name)
        return engines[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "load_checkpoint", lambda folder: (folder.name, TOKENIZER))
        patch.setattr(benchmark, "TorchEngine", torch_engine)
        settings = Settings(k=K, sampling=SamplingParams(max_tokens=500, seed=3), speed=2, rounds=2)
        result = evaluate(folders, sets, out, settings)
        again = evaluate(folders, sets, out, settings)
    assert again == result and result == json.loads((out / "results.json").read_text())
    return out, result, engines


def recomputed(path):
    """Every metric of a file of responses, from its tokens and texts alone: problem -> values."""
    frame = pd.read_parquet(path)
    found = {}
    for problem, rows in frame.groupby("problem_id", sort=False):
        boxes = [re.findall(r"\\boxed\{(\d+)\}", text)[-1:] for text in rows["text"]]
        right = [box == [answer] for box, answer in zip(boxes, rows["answer"], strict=True)]
        votes = Counter(box[0] for box in boxes if box)
        front = [v for v, n in votes.items() if n == max(votes.values())]
        branches = [
            Counter(block for block, _ in {tuple(p) for _, path, *_ in json.loads(s) for p in path})
            for s in rows["segments"]
        ]
        ends = [int(max(ids)) + 1 for ids in rows["position_ids"]]
        found[problem] = {
            "right": right,
            "maj": front.count(rows["answer"].iloc[0]) / len(front) if front else 0.0,
            "work": [len(ids) for ids in rows["completion_ids"]],
            "span": [e - len(ids) for e, ids in zip(ends, rows["prompt_ids"], strict=True)],
            "branches": [list(counts.values()) for counts in branches],
        }
    return found


def best_of(right, k):
    """The share of all choices of k samples with a right one."""
    choices = list(itertools.combinations(right, k))
    return Fraction(sum(any(choice) for choice in choices), len(choices))


def percentiles(top, bottom=None, draws=6000):
    """A percentile bootstrap over problems of its own."""
    top = np.array(top, float)
    bottom = np.ones(len(top)) if bottom is None else np.array(bottom, float)
    rng = np.random.default_rng(99)
    drawn = rng.integers(len(top), size=(draws, len(top)))
    return np.percentile(top[drawn].sum(1) / bottom[drawn].sum(1), [2.5, 97.5])


def row(rows, **which):
    (found,) = [r for r in rows if all(r[key] == value for key, value in which.items())]
    return found


def test_the_metrics_are_those_of_the_parquet_file(evaluated, sets):
    out, result, _ = evaluated
    for model, one in itertools.product(SKILL, sets):
        own = recomputed(out / "responses" / model / f"{one.name}.parquet")
        assert len(own) == len(one.problems) and {len(p["right"]) for p in own.values()} == {K}
        expected = {f"avg@{K}": [np.mean(p["right"]) for p in own.values()]}
        expected |= {
            f"best@{k}": [float(best_of(p["right"], k)) for p in own.values()] for k in (1, 2, 4)
        }
        expected[f"maj@{K}"] = [p["maj"] for p in own.values()]
        ratios = {metric: (values, [1] * len(values)) for metric, values in expected.items()}
        total = {name: [sum(p[name]) for p in own.values()] for name in ("work", "span")}
        count = [K] * len(own)
        ratios["work"], ratios["span"] = (total["work"], count), (total["span"], count)
        ratios["ideal_speedup"] = (total["work"], total["span"])
        ratios["trigger_rate"] = ([sum(map(bool, p["branches"])) for p in own.values()], count)
        ratios["cut_off"] = ratios["undecided"] = ([0] * len(own), count)
        if model == "npr":
            blocks = [[n for response in p["branches"] for n in response] for p in own.values()]
            sizes = [len(each) for each in blocks]
            ratios["branches_per_block"] = (list(map(sum, blocks)), sizes)
            ratios["wide_block_share"] = ([sum(n > 1 for n in each) for each in blocks], sizes)
        for metric, (top, bottom) in ratios.items():
            told = row(result["numbers"], model=model, set=one.name, metric=metric)
            assert told["value"] == pytest.approx(sum(top) / sum(bottom)), (model, one.name, metric)
            low, high = percentiles(top, bottom)
            slack = 0.04 * max(1, told["value"]) + 0.15 * (high - low)
            assert told["low"] == pytest.approx(low, abs=slack), (model, one.name, metric)
            assert told["high"] == pytest.approx(high, abs=slack), (model, one.name, metric)


def test_means_and_paired_differences_are_those_of_the_parquet_files(evaluated, sets):
    out, result, _ = evaluated
    accuracy = {
        (model, one.name): pd.Series(
            {
                problem: np.mean(own["right"])
                for problem, own in recomputed(
                    out / "responses" / model / f"{one.name}.parquet"
                ).items()
            }
        )
        for model in SKILL
        for one in sets
    }
    names = [one.name for one in sets]
    for model in SKILL:
        told = row(result["numbers"], model=model, set="mean", metric="avg")
        assert told["value"] == pytest.approx(np.mean([accuracy[model, n].mean() for n in names]))
    gains = []
    for name in names:
        gain = accuracy["npr", name] - accuracy["sr", name]
        gains.append(gain.mean())
        told = row(result["differences"], before="sr", after="npr", set=name)
        assert told["value"] == pytest.approx(gain.mean())
        low, high = percentiles(gain)
        assert told["low"] == pytest.approx(low, abs=0.05)
        assert told["high"] == pytest.approx(high, abs=0.05)
    told = row(result["differences"], before="sr", after="npr", set="mean")
    assert told["value"] == pytest.approx(np.mean(gains)) and told["value"] > 0
    apart = np.sqrt(sum(accuracy["npr", n].var() / len(accuracy["npr", n]) for n in names)) / 3
    assert told["low"] < told["value"] < told["high"] < told["value"] + 6 * apart


def test_each_model_is_asked_everything_once_in_its_mode(evaluated, sets):
    out, result, engines = evaluated
    for name, mode in (("sr", "sequential"), ("npr", "parallel")):
        calls = engines[name].calls
        assert [list(map(TOKENIZER.decode, prompts)) for prompts, *_ in calls] == [
            [f"{p.problem}\n" for p in one.problems] for one in sets
        ]
        assert {(n, m) for _, _, n, m in calls} == {(K, mode)}
        assert result["models"][name]["mode"] == mode
        (_, params, *_) = calls[0]
        for _, one in pd.read_parquet(out / "responses" / name / "first.parquet").iterrows():
            said = engines[name].respond(f"{one['problem']}\n", one["sample"], params, mode)
            assert one["text"] == said.text
    assert result["sets"]["aime25"] == {
        "spec": dict(sets[2].spec),
        "problems": 6,
        "whole": 30,
        "k": K,
        "paper": "AIME25",
    }


def test_the_shape_of_lm_evaluation_harness(evaluated):
    out, result, _ = evaluated
    for model in SKILL:
        found = json.loads((out / "lm_eval" / model / "results.json").read_text())
        assert {"results", "configs", "n-samples", "versions", "n-shot"} <= set(found)
        for name in ("first", "second", "aime25"):
            told = row(result["numbers"], model=model, set=name, metric=f"avg@{K}")
            own = recomputed(out / "responses" / model / f"{name}.parquet")
            values = [np.mean(p["right"]) for p in own.values()]
            entry = found["results"][name]
            assert entry[f"avg@{K},none"] == pytest.approx(told["value"])
            expected = np.std(values, ddof=1) / len(values) ** 0.5
            assert entry[f"avg@{K}_stderr,none"] == pytest.approx(expected)
            assert found["configs"][name]["repeats"] == K
        assert found["n-samples"]["first"] == {"original": 9, "effective": 9}


def test_the_papers_rows_stand_beside_ours(evaluated):
    _, result, _ = evaluated
    table = benchmark_tables.accuracy(result)
    told = row(result["numbers"], model="npr", set="aime25", metric="avg@4")
    column = "aime25 (avg@4)"
    expected = "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * told[n] for n in ("value", "low", "high")))
    assert table.loc[("npr", "here"), column] == expected
    assert table.loc[("NPR", "paper"), column] == "50.4"
    assert (table.loc[("NPR", "paper")].drop(column) == "–").all(), "a mean of other sets"
    rates = benchmark_tables.parallel(result)["parallel trigger rate (%)"]
    assert rates["Multiverse-32B", "aime25", "paper"] == "65.0"
    assert rates["sr", "first", "here"] == "0.0 [0.0, 0.0]"
    speed = benchmark_tables.speed(result)
    assert speed.loc[("NPR", "aime25", "paper"), "tokens/s, parallel"] == "2979.8"
    against = benchmark_tables.against(result)
    assert against.loc[("NPR over SR", "aime25", "paper")].iloc[0] == "4.6"
    assert ("npr over sr", "first", "here") in against.index
    notes = " ".join(benchmark_tables.comparability(result))
    assert (
        "up to 500 tokens" in notes
        and "first, second" in notes
        and "aime25 (k = 4, there 8)" in notes
    )
    assert "Not the whole set: aime25 (6 of 30)." in notes


def test_a_second_verdict_stands_beside_the_first(folders, sets, tmp_path, monkeypatch):
    (tmp_path / "lenient.py").write_text("def last(text, problem):\n    return 'A' in text or None")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(benchmark, "load_checkpoint", lambda folder: (folder.name, TOKENIZER))
    monkeypatch.setattr(benchmark, "TorchEngine", lambda name, *_: Scripted(name))
    settings = Settings(k=2, speed=0, protocol="lenient:last")
    result = evaluate(folders, sets[:2], tmp_path / "out", settings)
    table = pd.read_parquet(tmp_path / "out" / "responses" / "sr" / "first.parquet")
    expected = np.mean(["A" in text for text in table["text"]])
    assert table["accuracy_protocol"].mean() == expected != table["accuracy"].mean()
    told = row(result["numbers"], model="sr", set="first", metric="avg_protocol@2")
    assert told["value"] == expected
    shown = benchmark_tables.accuracy(result)["first (avg@2)"]
    assert shown["sr", "here, lenient:last"].startswith(f"{100 * expected:.1f} [")
    assert shown["sr", "here"].startswith(f"{100 * table['accuracy'].mean():.1f} [")
    with pytest.raises(WorkbenchError, match="'lenient:first' can't be found"):
        evaluate(folders, sets, tmp_path, Settings(protocol="lenient:first"))


def test_the_papers_tables_are_whole():
    assert list(paper.ACCURACY) == [*paper.COLUMNS, "mean"]
    assert not paper.ACCURACY.isna().any(axis=None)
    means = paper.ACCURACY[list(paper.COLUMNS)].mean(axis=1)
    assert (means - paper.ACCURACY["mean"]).abs().max() < 0.1  # as the paper rounds
    assert {one.paper for one in benchmark_benchmarks() if one.paper} == set(paper.COLUMNS)


def benchmark_benchmarks():
    from npr_lib.tasks.benchmarks import BENCHMARKS

    return BENCHMARKS


def test_the_page_is_one_that_fetches_nothing(evaluated):
    out, *_ = evaluated
    page = benchmarks.write_page(out).read_text()
    assert all(is_local(source) for source in sources(page))
    for text in ("1. Accuracy", "2. Parallelism", "3. Speed", "Against another model", "Best of k"):
        assert text in page
    assert (out / "plotly.min.js").exists() and 'href="responses/npr/first.parquet"' in page


def test_a_changed_setting_is_refused_before_anything_is_done(
    evaluated, folders, sets, tmp_path, monkeypatch
):
    out, *_ = evaluated
    monkeypatch.setattr(benchmark, "load_checkpoint", lambda folder: pytest.fail("it is loaded"))
    other = Settings(k=K, sampling=SamplingParams(max_tokens=500, seed=4), speed=0)
    fresh = shutil.copytree(folders[1], tmp_path / "fresh")  # would be answered first
    with pytest.raises(WorkbenchError, match=r"sr/first.parquet .*\(seed: 3 there, 4 now\)"):
        evaluate([fresh, *folders], sets, out, other)


# ---------------------------------------------------------------- sets, models, the command


def test_a_chat_template_is_asked_otherwise_and_takes_options(folders, tmp_path, monkeypatch):
    (tmp_path / "one.json").write_text(json.dumps([{"problem": "A=1;", "answer": 1}]))
    chat = shutil.copytree(folders[0], tmp_path / "chat")
    template = "{% for m in messages %}({{ m.role }}){{ m.content }}{% endfor %}{{ more }}"
    (chat / "chat_template.jinja").write_text(template)
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "chat", "--sets", "one.json", "--max-tokens", "2", "--speed", "0"]

    def asked(out, *options):
        assert __main__.main([*command, "--out", out, *options]) == 0
        table = pd.read_parquet(tmp_path / out / "responses" / "chat" / "one.parquet")
        return TOKENIZER.decode(table["prompt_ids"].iloc[0])

    assert asked("plain") == f"(user){benchmark.CHAT_PROMPT.replace('{problem}', 'A=1;')}"
    more = '{template: "{problem}?", system: B, chat: {more: C}}'
    assert asked("more", "--prompt", more) == "(system)B(user)A=1;?C"


def test_sets_by_name(tmp_path):
    rows = [{"problem": f"{i}?", "answer": i} for i in range(30)]
    for place in ("benchmarks/aime25.json", "mine.jsonl"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / place).write_text(json.dumps(rows) if place.endswith("n") else lines)
    found = read_sets("aime25, rg:leg_counting,mine.jsonl@exact", limit=7, base=tmp_path)
    assert [(one.name, len(one.problems), one.whole, one.k, one.paper) for one in found] == [
        ("aime25", 7, 30, 8, "AIME25"),
        ("leg_counting", 7, 7, 1, None),
        ("mine", 7, 30, 1, None),
    ]
    mine = found[2].problems
    assert mine.verify("3", mine[3]) and not mine.verify("3.0", mine[3])
    for named, message in (
        ("aime26", "'aime26' is no file and no set"),
        ("rg:nonsense", "nonsense"),
        ("mine.jsonl,mine.jsonl", "two sets are called 'mine'"),
        ("mine.jsonl@nonsense", "nonsense"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            read_sets(named, base=tmp_path)


def test_models_are_called_by_their_folders(tmp_path):
    assert list(model_names([tmp_path / "a" / "npr", "x/sr"])) == ["npr", "sr"]
    assert list(model_names(["a/npr", "b/npr", "b/sr"])) == ["a-npr", "b-npr", "sr"]
    with pytest.raises(WorkbenchError, match="two models are called 'a-npr'"):
        model_names(["a/npr", "a/npr"])


def test_the_command_evaluates_models_of_any_folder(folders, tmp_path, capsys, monkeypatch):
    rows = [{"question": f"A={i}+1;", "answer": i + 1} for i in range(3)]
    (tmp_path / "aime25.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", *map(str, folders), "--sets", "rg:leg_counting,aime25.json", "--k", "2"]
    command += ["--limit", "3", "--max-tokens", "12", "--out", "out", "--speed", "1"]
    assert __main__.main(command) == 0, capsys.readouterr().err
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "out/benchmarks.html"
    assert "aime25.json: column question as problem" in told.err and "npr aime25" in told.err
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["settings"]["sampling"]["top_p"] == 0.7 and result["machine"]["cores"] >= 1
    speed = row(result["numbers"], model="npr", set="aime25", metric="replay_speedup")
    assert speed["value"] > 0
    assert len(pd.read_parquet(tmp_path / "out" / "responses" / "sr" / "aime25.parquet")) == 6
    assert __main__.main([*command, "--top-p", "0.9"]) == 1
    assert "top_p: 0.7 there, 0.9 now" in capsys.readouterr().err
    assert __main__.main(["evaluate", "nowhere", "--sets", "rg:leg_counting"]) == 1
    assert "is not a model folder" in capsys.readouterr().err
    other = [*command, "--out", "other"]
    assert __main__.main([*other, "--num-slots", "40"]) == 1
    assert "the engine refuses what is asked: " in capsys.readouterr().err
    assert __main__.main([*other, "--prompt", "A" * 600 + "{problem}"]) == 1
    assert "tokens with its prompt, the model's context is 512" in capsys.readouterr().err
    for wrong, message in (
        (["--k", "0"], "k = 0: expected at least 1"),
        (["--limit", "0"], "limit = 0: expected at least 1"),
        (["--prompt", "Solve it"], "the prompt has no {problem}: 'Solve it'"),
    ):
        assert __main__.main([*other, *wrong]) == 1
        assert message in capsys.readouterr().err
    assert __main__.main([*command, "--top-p", "7"]) == 1
    assert "top_p = 7.0: expected in (0, 1]" in capsys.readouterr().err
