"""Metrics against enumeration, closed forms and simulation."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from scripted import block, trajectory

from npr_lib import WorkbenchError
from npr_lib.analysis import metrics, tables
from npr_lib.analysis.bootstrap import Estimate, resample_frame
from npr_lib.reasoning.trajectory import to_rows


def rollouts(answers: dict[str, str], right: str = "r", **columns: object) -> pd.DataFrame:
    r"""One row a sample: problem -> a letter a sample, "-" for no \boxed{}."""
    rows = [
        {
            "problem_id": problem,
            "sample": sample,
            "text": "no box" if letter == "-" else f"so \\boxed{{{letter}}}",
            "accuracy": float(letter in right),
            "max_branches": 5,
            "max_depth": 1,
            "spelled": (),
        }
        for problem, letters in answers.items()
        for sample, letter in enumerate(letters)
    ]
    return pd.DataFrame(rows).assign(**columns)


def executed(**columns: list) -> pd.DataFrame:
    """One response a problem with the columns of the parallelism metrics."""
    n = len(next(iter(columns.values())))
    return pd.DataFrame({"problem_id": [f"p{i}" for i in range(n)], "sample": 0, **columns})


def enumerate_best(letters: str, k: int) -> float:
    return float(np.mean(["r" in subset for subset in combinations(letters, k)]))


def enumerate_maj(letters: str, k: int, right: str = "r") -> float:
    scores = []
    for subset in combinations(letters, k):
        votes = {letter: subset.count(letter) for letter in set(subset) - {"-"}}
        front = [letter for letter in votes if votes[letter] == max(votes.values())]
        scores.append(sum(letter in right for letter in front) / len(front) if front else 0.0)
    return float(np.mean(scores))


# ------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("k", range(1, 7))
def test_best_at_k_is_the_mean_over_all_subsets(k: int) -> None:
    letters = {f"p{c}": "r" * c + "w" * (6 - c) for c in range(7)}
    values = metrics.best_values(rollouts(letters), k)
    for problem, pattern in letters.items():
        assert values[problem] == pytest.approx(enumerate_best(pattern, k), abs=1e-12)
    assert metrics.best_at_k(rollouts(letters), k).value == pytest.approx(values.mean())


@pytest.mark.parametrize("k", range(1, 6))
def test_maj_at_k_is_the_mean_over_all_subsets(k: int) -> None:
    # every multiset of five samples over two right spellings, two wrong answers and no box
    patterns = sorted({"".join(sorted(p)) for p in product("rsab-", repeat=5)})
    letters = {f"p{i:03d}": pattern for i, pattern in enumerate(patterns)}
    assert len(letters) == 126
    values = metrics.maj_values(rollouts(letters, right="rs"), k)
    expected = [enumerate_maj(pattern, k, right="rs") for pattern in patterns]
    np.testing.assert_allclose(values.to_numpy(), expected, atol=1e-12)


def test_maj_at_k_breaks_ties_in_expectation() -> None:
    assert metrics.maj_at_k(rollouts({"p": "rrww"})).value == 0.5
    assert metrics.maj_at_k(rollouts({"p": "rwx-"})).value == pytest.approx(1 / 3)
    assert metrics.maj_at_k(rollouts({"p": "r---"})).value == 1.0
    assert metrics.maj_at_k(rollouts({"p": "----"})).value == 0.0


def test_maj_votes_ignore_whitespace_in_the_box() -> None:
    df = rollouts({"p": "rrwww"})
    df["text"] = [r"\boxed{1}", r"\boxed{ 1 }", r"\boxed{2}", r"\boxed{3}", r"\boxed{}"]
    assert metrics.maj_at_k(df).value == 1.0


def test_maj_votes_are_what_the_verifier_judged_the_box_of_the_answer() -> None:
    cut_off = r"<guideline><plan>1:a</plan></guideline><step>1:\boxed{r}</step><takeaway>"
    df = rollouts({"p": "rrw"})
    df.loc[1, ["text", "accuracy"]] = [cut_off, 0.0]  # a box in a step is no answer: no vote
    assert metrics.maj_at_k(df).value == 0.5


def test_maj_at_many_samples_stays_exact_in_the_limit() -> None:
    df = rollouts({"p": "r" * 40 + "w" * 24})
    odds = [metrics.maj_at_k(df, k).value for k in (1, 15, 33, 64)]
    assert odds[0] == pytest.approx(40 / 64)
    assert odds == sorted(odds)
    assert odds[-1] == pytest.approx(1.0)


def test_avg_weighs_problems_not_responses() -> None:
    df = rollouts({"p": "rrrr", "q": "ww"})
    assert metrics.avg_at_k(df, k=2).value == 0.5
    assert metrics.avg_at_k(df, k=2).value != df["accuracy"].mean()


# ------------------------------------------------------------------ intervals


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    covered = []
    for trial in range(200):
        ability_P = rng.beta(0.8, 0.8, size=80)
        right_P = rng.binomial(4, ability_P)
        estimate = metrics.interval(right_P / 4, resamples=500, seed=trial)
        covered.append(estimate.low <= 0.5 <= estimate.high)
    # binomial standard error of 300 trials at 0.95: 0.0126
    assert 0.90 < np.mean(covered) < 0.985


def test_interval_of_a_ratio_covers_and_samples_of_one_problem_are_not_independent() -> None:
    rng = np.random.default_rng(8)
    covered, naive = [], []
    for trial in range(200):
        size_P = rng.integers(5, 40, size=60)
        span_P = size_P * 10.0
        work_P = span_P * rng.uniform(1, 3, size=60)  # true ratio of means: 2
        df = pd.DataFrame(
            {
                "problem_id": np.repeat(np.arange(60), 4),
                "sample": np.tile(np.arange(4), 60),
                "work": np.repeat(work_P, 4),
                "span": np.repeat(span_P, 4),
            }
        )
        by_problem = metrics.ideal_speedup(df, resamples=300, seed=trial)
        by_row = metrics.interval(df["work"], df["span"], resamples=300, seed=trial)
        covered.append(by_problem.low <= 2 <= by_problem.high)
        naive.append(by_row.low <= 2 <= by_row.high)
    assert 0.89 < np.mean(covered) < 0.985
    assert np.mean(naive) < 0.8


def test_interval_is_seeded_and_ordered() -> None:
    values = np.random.default_rng(0).random(50)
    first = metrics.interval(values, seed=3)
    assert first == metrics.interval(values, seed=3) != metrics.interval(values, seed=4)
    assert first.low < first.value < first.high
    wide = metrics.interval(values, seed=3, level=0.99)
    assert wide.low < first.low and wide.high > first.high


def test_interval_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(1).random(400)
    estimate = metrics.interval(values, resamples=8000)
    half = 1.96 * values.std(ddof=1) / 20
    assert estimate.high - estimate.value == pytest.approx(half, rel=0.06)
    assert estimate.value - estimate.low == pytest.approx(half, rel=0.06)


# ------------------------------------------------------------------ paired


def test_paired_difference_is_narrower_than_two_separate_intervals() -> None:
    rng = np.random.default_rng(2)
    ability = rng.beta(0.5, 0.5, size=200)
    frames = []
    for shift in (0.0, 0.05):
        right = rng.random((200, 4)) < np.clip(ability + shift, 0, 1)[:, None]
        frames.append(
            rollouts({f"p{i:03d}": "".join("wr"[int(x)] for x in r) for i, r in enumerate(right)})
        )
    before, after = frames
    paired = metrics.paired_difference(before, after)
    separate = [metrics.avg_at_k(frame) for frame in frames]
    assert paired.value == pytest.approx(separate[1].value - separate[0].value)
    assert paired.high - paired.low < 0.7 * sum(s.high - s.low for s in separate) / np.sqrt(2)


def test_paired_difference_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    covered = []
    for trial in range(120):
        base = rng.uniform(0.1, 0.7, size=60)
        before, after = (
            pd.DataFrame(
                {
                    "problem_id": np.arange(60),
                    "sample": 0,
                    "accuracy": (rng.random(60) < base + shift).astype(float),
                }
            )
            for shift in (0.0, 0.2)
        )
        estimate = metrics.paired_difference(before, after, resamples=300, seed=trial)
        covered.append(estimate.low <= 0.2 <= estimate.high)
    assert 0.88 < np.mean(covered) <= 1


def test_pooled_difference_over_runs_covers_the_truth() -> None:
    """A gain that differs by run (0.2 +- 0.1): the interval covers it, unlike that of one run."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        pairs = []
        for gain in rng.normal(0.2, 0.1, size=6):
            rows = [{"problem_id": f"p{i}", "sample": 0} for i in range(80)]
            before = pd.DataFrame(rows).assign(accuracy=rng.normal(0.4, 0.3, 80))
            pairs.append((before, before.assign(accuracy=before.accuracy + gain)))
        estimate = metrics.pooled_difference(pairs, resamples=300, seed=trial)
        means = [(b.accuracy - a.accuracy).mean() for a, b in pairs]
        assert estimate.value == pytest.approx(np.mean(means))
        covered += estimate.low <= 0.2 <= estimate.high
    assert 0.75 * 60 <= covered <= 60  # six runs: the percentile interval is a little short
    other = pairs[0][1].assign(problem_id=lambda d: "q" + d.problem_id)
    with pytest.raises(ValueError, match="different problems"):
        metrics.pooled_difference([(pairs[0][0], other)])
    with pytest.raises(ValueError, match="different numbers"):
        metrics.pooled_difference([pairs[0], tuple(side[:40] for side in pairs[1])])
    with pytest.raises(ValueError, match="no runs"):
        metrics.pooled_difference([])


def test_pooled_difference_of_runs_on_other_problems() -> None:
    """Runs that share no problem, without any difference between runs: the interval is about that
    of all their problems together."""
    rng = np.random.default_rng(0)
    pairs = []
    for run in range(4):
        before = pd.DataFrame({"problem_id": [f"{run}-{i}" for i in range(300)], "sample": 0})
        gain = rng.normal(0.1, 0.5, 300)
        pairs.append((before.assign(accuracy=0.0), before.assign(accuracy=gain)))
    gains = np.concatenate([after.accuracy for _, after in pairs])
    estimate = metrics.pooled_difference(pairs)
    assert estimate.value == pytest.approx(gains.mean())
    width = 2 * 1.96 * gains.std() / len(gains) ** 0.5
    assert width < estimate.high - estimate.low < 1.8 * width  # runs are resampled as well


def test_paired_difference_of_a_checkpoint_with_itself_is_exactly_zero() -> None:
    df = rollouts({"p": "rrww", "q": "rwww"})
    shuffled = df.sample(frac=1, random_state=0)
    for metric in ("avg", "best", "maj"):
        assert metrics.paired_difference(df, shuffled, metric) == Estimate(0, 0, 0)


def test_paired_difference_of_a_column() -> None:
    before, after = executed(span=[10, 20]), executed(span=[8, 20])
    assert metrics.paired_difference(before, after, "span").value == -1


def test_paired_difference_refuses_other_problems_and_other_counts() -> None:
    df = rollouts({"p": "rw", "q": "ww"})
    with pytest.raises(ValueError, match=r"1 only before \['q'\], 1 only after \['x'\]"):
        metrics.paired_difference(df, rollouts({"p": "rw", "x": "ww"}))
    with pytest.raises(ValueError, match="name a common k"):
        metrics.paired_difference(df, rollouts({"p": "r", "q": "w"}), "best")
    assert metrics.paired_difference(df, rollouts({"p": "r", "q": "w"}), "best", k=1).value == 0.25


# ------------------------------------------------------------------ parallelism


def test_parallelism_by_hand() -> None:
    df = executed(
        valid=[True, True, False, True],
        triggered=[True, True, False, True],
        num_branches=[[3, 1], [2], [], [1]],
        branch_lengths=[[[4, 8, 6], [5]], [[10, 5]], [], [[7]]],
        work=[60, 40, 30, 20],
        span=[30, 30, 30, 20],
    )
    assert metrics.format_pass(df).value == 0.75
    assert metrics.trigger_rate(df).value == 0.75
    assert metrics.wide_block_share(df).value == 2 / 4
    assert metrics.branches_per_block(df).value == 7 / 4
    assert metrics.balance(df).value == pytest.approx((6 / 8 + 7.5 / 10) / 2)
    assert metrics.work(df).value == 37.5
    assert metrics.span(df).value == 27.5
    assert metrics.ideal_speedup(df).value == pytest.approx(150 / 110)
    assert metrics.ideal_speedup(df).value != pytest.approx(np.mean(df["work"] / df["span"]))


def test_parallelism_of_parquet_columns(tmp_path) -> None:
    df = executed(num_branches=[[3, 1], []], branch_lengths=[[[4, 8, 6], [5]], []])
    df.to_parquet(tmp_path / "rollouts.parquet")
    back = pd.read_parquet(tmp_path / "rollouts.parquet")
    for metric in (metrics.wide_block_share, metrics.branches_per_block, metrics.balance):
        assert metric(back) == metric(df)


def test_a_number_without_blocks_is_undefined_not_zero() -> None:
    df = executed(num_branches=[[], []], branch_lengths=[[], []])
    for metric in (metrics.wide_block_share, metrics.branches_per_block, metrics.balance):
        assert np.isnan(metric(df)).all()
    cut_off = executed(branch_lengths=[[[0, 0]], [[3, 6]]])
    assert metrics.balance(cut_off).value == 0.75


def test_efficiency() -> None:
    assert metrics.efficiency(1.2, 1.6) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="positive"):
        metrics.efficiency(0.0, 1.6)


# ------------------------------------------------------------------ refusals


def test_missing_columns_are_named() -> None:
    df = rollouts({"p": "rw"})
    with pytest.raises(ValueError, match=r"lack the columns \['accuracy'\]"):
        metrics.avg_at_k(df.drop(columns="accuracy"))
    with pytest.raises(ValueError, match=r"lack the columns \['work', 'span'\]"):
        metrics.ideal_speedup(df)
    with pytest.raises(ValueError, match="no rollouts"):
        metrics.avg_at_k(df.iloc[:0])


def test_k_and_sample_counts() -> None:
    df = rollouts({"p": "rrw", "q": "ww"})
    for metric in (metrics.avg_at_k, metrics.best_at_k, metrics.maj_at_k):
        with pytest.raises(ValueError, match="between 2 and 3 samples"):
            metric(df)
        with pytest.raises(ValueError, match="k = 3, but a problem has only 2"):
            metric(df, 3)
        with pytest.raises(ValueError, match="k = 0"):
            metric(df, 0)
        assert 0 <= metric(df, 2).value <= 1


def test_mixed_or_duplicated_rollouts_are_refused() -> None:
    df = rollouts({"p": "rw"}, temperature=1.0, checkpoint="npr")
    twice = pd.concat([df, df])
    with pytest.raises(ValueError, match="2 duplicated rollouts"):
        metrics.avg_at_k(twice)
    for column, other in {"temperature": 0.0, "checkpoint": "sr"}.items():
        mixed = pd.concat([df, df.assign(**{column: other, "sample": df["sample"] + 2})])
        with pytest.raises(ValueError, match=f"mix several values of '{column}'"):
            metrics.avg_at_k(mixed)


def test_holes_partial_scores_and_torn_answers_are_refused() -> None:
    df = rollouts({"p": "rw"})
    with pytest.raises(ValueError, match="1 missing values"):
        metrics.avg_at_k(df.assign(accuracy=[1.0, np.nan]))
    half = df.assign(accuracy=[1.0, 0.5])
    assert metrics.avg_at_k(half).value == 0.75
    with pytest.raises(ValueError, match="0 or 1"):
        metrics.best_at_k(half)
    with pytest.raises(ValueError, match="both right and wrong"):
        metrics.maj_at_k(df.assign(text=r"\boxed{1}"))


# ------------------------------------------------------------------ tables


def evaluation(right: str) -> pd.DataFrame:
    """Two sampled responses and a greedy one a problem, as evaluation writes them."""
    parts = [
        rollouts({"p": right, "q": "ww"}, temperature=1.0),
        rollouts({"p": "r", "q": "r"}, temperature=0.0),
    ]
    df = pd.concat(parts, ignore_index=True)
    return df.assign(
        valid=True,
        triggered=[i > 0 for i in range(len(df))],
        num_branches=[[2]] * len(df),
        branch_lengths=[[[3, 6]]] * len(df),
        work=30,
        span=20,
    )


def test_summary_holds_every_metric() -> None:
    df = evaluation("rr")
    numbers = metrics.summary(df[df["temperature"] == 1])
    assert list(numbers) == [
        *("avg@2", "best@2", "maj@2", "format_pass", "trigger_rate", "wide_block_share"),
        *("branches_per_block", "balance", "work", "span", "ideal_speedup"),
    ]
    assert set(numbers["avg@2"]) == {"value", "low", "high"}
    assert numbers["ideal_speedup"]["value"] == 1.5
    assert numbers["trigger_rate"]["value"] == 0.75
    assert "best@1" not in metrics.summary(df[df["temperature"] == 0])


def test_ladder_keeps_order_and_separates_greedy() -> None:
    table = metrics.ladder({"npr_zero": evaluation("rw"), "npr": evaluation("rr")})
    assert list(table["checkpoint"].unique()) == ["npr_zero", "npr"]
    accuracy = table[table["metric"].str.startswith("avg@")]
    assert accuracy[["checkpoint", "temperature", "metric", "value"]].values.tolist() == [
        ["npr_zero", 1.0, "avg@2", 0.25],
        ["npr_zero", 0.0, "avg@1", 1.0],
        ["npr", 1.0, "avg@2", 0.5],
        ["npr", 0.0, "avg@1", 1.0],
    ]
    assert set(table["problems"]) == {2}
    with pytest.raises(ValueError, match="'npr' lack the column 'temperature'"):
        metrics.ladder({"npr": evaluation("rr").drop(columns="temperature")})


# ------------------------------------------------------------------ metrics of one's own


def solved_often(df: pd.DataFrame) -> float:
    """Share of problems with more right samples than wrong ones; a problem drawn twice counts
    twice only if it is two problems."""
    return (df.groupby("problem_id")["accuracy"].mean() > 0.5).mean()


def test_a_metric_of_ones_own_stands_in_the_ladder_and_in_its_table() -> None:
    frames = {"NPR": evaluation("rr"), "SR": evaluation("ww")}
    own = {
        "solved often": solved_often,
        "rate@x": lambda df: Estimate(0.25, 0.125, 0.5),
        "mean": f"{__name__}:solved_often",
    }
    table = metrics.ladder(frames, metrics=own)
    rows = table[table["temperature"] == 1].set_index(["metric", "checkpoint"])
    assert rows.loc[("solved often", "NPR"), ["value", "low", "high"]].tolist() == [0.5, 0, 1]
    assert rows.loc[("solved often", "SR"), "value"] == 0
    assert rows.loc[("mean", "NPR"), "value"] == 0.5
    headline = tables.headline(table)
    assert list(headline.columns)[-3:] == list(own)
    assert headline.loc["NPR", "rate@x"] == "0.25 [0.12, 0.50]"
    assert headline.loc["NPR", "solved often"] == "0.50 [0.00, 1.00]"
    assert metrics.ladder(frames).equals(table[~table["metric"].isin(own)].reset_index(drop=True))
    with pytest.raises(ValueError, match="need other names than avg@9, work"):
        metrics.ladder(frames, metrics={"avg@9": solved_often, "work": solved_often})
    with pytest.raises(WorkbenchError, match="can't be found"):
        metrics.ladder(frames, metrics={"mine": "no_such_module:f"})


def test_the_interval_of_a_metric_of_ones_own_is_that_of_resampled_problems() -> None:
    letters = ["".join(x) for x in product("rw", repeat=4)] * 4
    df = rollouts({f"p{i:02d}": pattern for i, pattern in enumerate(letters)})
    estimate = resample_frame(solved_often, df)
    often = [pattern.count("r") > 2 for pattern in letters]
    assert estimate == metrics.interval(np.array(often), resamples=200)
    assert resample_frame(lambda d: metrics.avg_at_k(d, resamples=1).value, df) == (
        metrics.avg_at_k(df, resamples=200)
    )


# ------------------------------------------------------------------ one step beside


def test_paired_differences_are_of_the_same_problem_whatever_the_order() -> None:
    """Two frames that differ by exactly 1 on every problem, their rows in other orders: any other
    pairing of problems has an interval of some width."""
    spans = np.arange(40) ** 2
    before, after = executed(span=list(spans)), executed(span=list(spans + 1))
    again = after.sample(frac=1, random_state=3)
    assert metrics.paired_difference(before, again, "span") == Estimate(1, 1, 1)
    assert metrics.pooled_difference([(before, again)], "span") == Estimate(1, 1, 1)


def test_numbers_of_blocks_are_not_those_of_responses() -> None:
    """A response of two blocks with five branches, one that never forked, and one that was decoded
    sequentially and has its blocks on paper only."""
    text = block("A", "A=1", "A=1+1") + block("A", "A=1")
    answers = [trajectory(text), trajectory("1"), trajectory(text, mode="sequential")]
    df = to_rows(answers, problem_id=["p", "q", "r"], sample=0).drop(columns="mode")
    assert metrics.trigger_rate(df).value == pytest.approx(1 / 3)
    assert metrics.format_pass(df).value == 0  # no box anywhere
    assert metrics.branches_per_block(df).value == 5 / 2
    assert metrics.wide_block_share(df).value == 1
    # steps of 5, 7, 9 and of 5, 7 tokens
    assert metrics.balance(df).value == pytest.approx((7 / 9 + 6 / 7) / 2)
    assert metrics.work(df).value == pytest.approx((2 * answers[0].work + 1) / 3)
    # the branches beside the longest one are what work has more than span
    assert answers[0].work - answers[0].span == 5 + 7 + 5
    assert answers[2].work == answers[2].span == answers[0].work
