"""Numbers of a report (design section 9): functions over a frame of rollouts, one row a response.

Every number comes with a 95 % interval from a bootstrap over *problems*: samples of one problem
are correlated, so problems, not responses, are the independent draws. It is the plain percentile
interval, which says nothing about values that never varied (500 valid of 500 give [1, 1]).

Three rules hold everywhere:

- One population a call. A frame that mixes checkpoints, modes or temperatures is refused, as is
  the same (problem_id, sample) twice. (`ladder` splits by temperature itself.)
- `avg@k`, `best@k` and `maj@k` weigh problems equally; shares of responses or blocks are pooled.
- A ratio of two lengths is a ratio of sums, never a mean of ratios: work / span summed over
  responses is what a clock would show and may be compared with a measured tokens/s ratio, whereas
  in a mean of ratios the shortest responses speak loudest.

Where a number is undefined (the balance of blocks that do not exist) the estimate is nan, not 0.

`**bootstrap` is `resamples` (2000), `seed` (0) and `level` (0.95) of `bootstrap.interval`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np
import pandas as pd

from npr_lib.analysis.bootstrap import Estimate, interval, resample, resample_frame
from npr_lib.analysis.quantities import QUANTITIES
from npr_lib.identity import resolve
from npr_lib.reasoning.schema import parse


def _check(df: pd.DataFrame, *columns: str) -> None:
    """One population, one row a sample, no holes in the columns about to be read."""
    columns = ("problem_id", "sample", *columns)
    missing = [column for column in columns if column not in df.columns]
    if missing:
        raise ValueError(f"rollouts lack the columns {missing}; they have {list(df.columns)}")
    if df.empty:
        raise ValueError("no rollouts")
    for column in ("checkpoint", "mode", "temperature"):
        if column in df.columns and df[column].nunique(dropna=False) > 1:
            values = sorted(map(str, df[column].unique()))
            raise ValueError(f"rollouts mix several values of {column!r}: {values}; split them")
    twice = df.duplicated(["problem_id", "sample"])
    if twice.any():
        first = df.loc[twice, ["problem_id", "sample"]].iloc[0].to_dict()
        raise ValueError(f"{twice.sum()} duplicated rollouts, the first is {first}")
    for column in columns:
        if df[column].isna().any():
            raise ValueError(f"column {column!r} has {df[column].isna().sum()} missing values")


def samples_per_problem(df: pd.DataFrame) -> int:
    """The number of samples every problem has. Raises ValueError where problems differ."""
    _check(df)
    counts = df.groupby("problem_id").size()
    if counts.nunique() > 1:
        raise ValueError(
            f"problems have between {counts.min()} and {counts.max()} samples: name a k"
        )
    return int(counts.iloc[0])


def _resolve_k(df: pd.DataFrame, k: int | None) -> int:
    if k is None:
        return samples_per_problem(df)
    _check(df)
    fewest = int(df.groupby("problem_id").size().min())
    if not 1 <= k <= fewest:
        raise ValueError(f"k = {k}, but a problem has only {fewest} samples")
    return k


def avg_values(df: pd.DataFrame, k: int | None = None) -> pd.Series:
    """Mean accuracy of each problem, indexed by problem_id."""
    _check(df, "accuracy")
    _resolve_k(df, k)
    return df.groupby("problem_id")["accuracy"].mean().astype(float)


def best_values(df: pd.DataFrame, k: int | None = None) -> pd.Series:
    """Probability that k of a problem's n samples, drawn without replacement, hold a right one.

    The unbiased 1 - C(n - c, k) / C(n, k) with c right samples of n.
    """
    _check(df, "accuracy")
    _check_binary(df)
    k = _resolve_k(df, k)
    counts = df.groupby("problem_id")["accuracy"].agg(["size", "sum"]).astype(int)
    return pd.Series(
        [1 - comb(n - c, k) / comb(n, k) for n, c in counts.itertuples(index=False)], counts.index
    )


def maj_values(df: pd.DataFrame, k: int | None = None) -> pd.Series:
    r"""Probability that a majority vote among k of a problem's n samples is right.

    The exact mean over all C(n, k) subsets. A vote is what the verifier judged, the `\boxed{}` of
    the answer, without whitespace; two spellings of one value are two answers, as for a voter who
    does not know the solution. A response without a box abstains. **Ties** are broken uniformly at
    random, in expectation: with t answers in front, r of them right, the vote counts r / t. Nobody
    voting counts 0.

    Raises:
        ValueError: one answer of one problem is marked both right and wrong.
    """
    _check(df, "accuracy", "text", "max_branches", "max_depth", "spelled")
    _check_binary(df)
    k = _resolve_k(df, k)
    votes: dict[Any, dict[str, list[int]]] = {}
    for row in df.itertuples():
        answers = votes.setdefault(row.problem_id, {})
        graph = parse(row.text, row.max_branches, row.max_depth, spelled=tuple(row.spelled))
        if vote := "".join((graph.boxed or "").split()):
            answers.setdefault(vote, []).append(int(row.accuracy))
    counts = df.groupby("problem_id").size()
    scores = [_majority(_pattern(problem, votes[problem]), n, k) for problem, n in counts.items()]
    return pd.Series(scores, counts.index)


def _pattern(problem: Any, answers: dict[str, list[int]]) -> tuple[tuple[int, int], ...]:
    """(votes, right) of each answer, sorted: all that the score of a majority depends on."""
    for answer, rights in answers.items():
        if len(set(rights)) > 1:
            raise ValueError(f"problem {problem!r}: the answer {answer!r} is both right and wrong")
    return tuple(sorted((len(rights), rights[0]) for rights in answers.values()))


def _check_binary(df: pd.DataFrame) -> None:
    if not df["accuracy"].isin((0, 1)).all():
        raise ValueError("best@k and maj@k need accuracies that are 0 or 1")


@lru_cache(maxsize=4096)
def _majority(answers: tuple[tuple[int, int], ...], n: int, k: int) -> float:
    """Mean majority score over all k-subsets of n samples; answers: (votes, right) of each answer.

    For every height s of the winning pile, ways[size, tied, right] counts the choices of votes in
    which `tied` answers, `right` of them right, have exactly s votes and all others fewer.

    Why that is every subset, once: a subset in which anybody votes has one winning height s, and
    is a choice of 0...s of each answer's votes, at least one answer reaching s (tied > 0), with
    abstentions for the rest of its k. So the s part the subsets among them, the answers' choices
    are independent (a product of binomials, built up answer by answer), and subsets without a vote
    score 0.
    """
    abstentions = n - sum(votes for votes, _ in answers)
    total = 0.0
    for s in range(1, min(k, max((votes for votes, _ in answers), default=0)) + 1):
        piles = min(k // s, len(answers))
        ways = np.zeros((k + 1, piles + 1, piles + 1))
        ways[0, 0, 0] = 1
        for votes, right in answers:
            grown = np.zeros_like(ways)
            for taken in range(min(votes, s - 1) + 1):
                grown[taken:] += comb(votes, taken) * ways[: k + 1 - taken]
            if votes >= s:
                source = ways[: k + 1 - s, :-1, : piles + 1 - right]
                grown[s:, 1:, right:] += comb(votes, s) * source
            ways = grown
        chosen = np.array([comb(abstentions, k - size) for size in range(k + 1)], dtype=float)
        ways_TR = np.tensordot(chosen, ways, axes=1)
        share_TR = np.arange(piles + 1) / np.maximum(np.arange(piles + 1), 1)[:, None]
        total += float((ways_TR * share_TR)[1:].sum())
    return total / comb(n, k)


def avg_at_k(df: pd.DataFrame, k: int | None = None, **bootstrap: Any) -> Estimate:
    """avg@k: mean accuracy of a problem's samples, averaged over problems.

    All n >= k samples are used, which estimates the same quantity as any k of them with less noise.
    k None: as many as every problem has (they must agree).
    """
    return interval(avg_values(df, k).to_numpy(), **bootstrap)


def best_at_k(df: pd.DataFrame, k: int | None = None, **bootstrap: Any) -> Estimate:
    """best@k (pass@k), the unbiased estimator; see `best_values`."""
    return interval(best_values(df, k).to_numpy(), **bootstrap)


def maj_at_k(df: pd.DataFrame, k: int | None = None, **bootstrap: Any) -> Estimate:
    """maj@k, ties broken uniformly at random in expectation; see `maj_values`."""
    return interval(maj_values(df, k).to_numpy(), **bootstrap)


def paired_difference(
    before: pd.DataFrame,
    after: pd.DataFrame,
    metric: str = "avg",
    k: int | None = None,
    **bootstrap: Any,
) -> Estimate:
    """`after` minus `before` on the same problems, resampling problems in both at once.

    Args:
        metric: "avg", "best", "maj", or a numeric column whose mean over a problem is compared
            ("span", "valid", ...).
        k: for "best" and "maj" both frames must have it; None: the sample count they share.

    Raises:
        ValueError: the frames hold different problems, or "best"/"maj" over different counts.
    """
    if k is None and metric in ("best", "maj"):
        k, other = samples_per_problem(before), samples_per_problem(after)
        if k != other:
            raise ValueError(f"{metric}@k of {k} and of {other} samples: name a common k")
    old, new = _values(before, metric, k), _values(after, metric, k)
    only_old, only_new = old.index.difference(new.index), new.index.difference(old.index)
    if len(only_old) or len(only_new):
        raise ValueError(
            f"different problems: {len(only_old)} only before {list(only_old[:3])}, "
            f"{len(only_new)} only after {list(only_new[:3])}"
        )
    return interval((new - old).to_numpy(), **bootstrap)


def pooled_difference(
    pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]],
    metric: str = "avg",
    **bootstrap: Any,
) -> Estimate:
    """Mean of `after` minus `before` over several training runs with as many problems each, the
    same ones or others.

    The interval resamples runs and problems, each as a whole: it holds for another run on other
    problems of the kind, as far as so few runs can tell. (Simulated, 500 problems: where gains
    differ between runs with a standard deviation of 2, 5, 10 points, it covers the truth in 97, 93,
    90 % of the cases with five runs, and in 98, 92, 83 % with three.) ValueError where the two
    sides of a pair hold different problems, or the runs different numbers of them.
    """
    if not pairs:
        raise ValueError("no runs")
    series = [_values(new, metric, None) - _values(old, metric, None) for old, new in pairs]
    if any(s.isna().any() for s in series) or len({len(s) for s in series}) > 1:
        raise ValueError("different problems in a pair, or different numbers of them in the runs")
    difference_PR = np.stack([s.sort_index().to_numpy() for s in series], axis=1)
    (estimate,) = resample(
        lambda draws_P, draws_R: difference_PR[draws_P][:, draws_R].mean(),
        *difference_PR.shape,
        **bootstrap,
    )
    return estimate


def _values(df: pd.DataFrame, metric: str, k: int | None) -> pd.Series:
    if metric in ("avg", "best", "maj"):
        return {"avg": avg_values, "best": best_values, "maj": maj_values}[metric](df, k)
    _check(df, metric)
    return df.groupby("problem_id")[metric].mean().astype(float)


def _pooled(
    df: pd.DataFrame,
    top: Sequence[float] | np.ndarray,
    bottom: Sequence[float] | np.ndarray,
    **bootstrap: Any,
) -> Estimate:
    """Ratio of sums over the rows of df, which the bootstrap draws problem by problem."""
    rows = pd.DataFrame({"top": top, "bottom": bottom}, dtype=float)
    sums = rows.groupby(df["problem_id"].to_numpy()).sum()
    return interval(sums["top"].to_numpy(), sums["bottom"].to_numpy(), **bootstrap)


def _mean(df: pd.DataFrame, column: str, **bootstrap: Any) -> Estimate:
    _check(df, column)
    return _pooled(df, df[column].to_numpy(), np.ones(len(df)), **bootstrap)


def share(df: pd.DataFrame, chosen: Sequence[bool] | pd.Series, **bootstrap: Any) -> Estimate:
    """Share of responses that are chosen, a verdict a row."""
    _check(df)
    return _pooled(df, np.asarray(chosen, float), np.ones(len(df)), **bootstrap)


def format_pass(df: pd.DataFrame, **bootstrap: Any) -> Estimate:
    """Share of responses without a format violation."""
    return _mean(df, "valid", **bootstrap)


def trigger_rate(df: pd.DataFrame, **bootstrap: Any) -> Estimate:
    """Share of responses with at least one executed block."""
    return _mean(df, "triggered", **bootstrap)


def wide_block_share(df: pd.DataFrame, **bootstrap: Any) -> Estimate:
    """Share of executed blocks with two branches or more."""
    _check(df, "num_branches")
    wide = [sum(branches >= 2 for branches in row) for row in df["num_branches"]]
    return _pooled(df, wide, [len(row) for row in df["num_branches"]], **bootstrap)


def branches_per_block(df: pd.DataFrame, **bootstrap: Any) -> Estimate:
    """Mean number of branches of an executed block."""
    _check(df, "num_branches")
    blocks = [len(row) for row in df["num_branches"]]
    return _pooled(df, [sum(row) for row in df["num_branches"]], blocks, **bootstrap)


def balance(df: pd.DataFrame, **bootstrap: Any) -> Estimate:
    """Mean over blocks of (mean branch length / longest branch): 1 when all branches are as long.

    Over blocks with two branches or more (a single one is balanced trivially) that hold a token
    (a response may be cut off right at the fork).
    """
    _check(df, "branch_lengths")
    balances = [
        [np.mean(block) / np.max(block) for block in row if len(block) >= 2 and np.max(block) > 0]
        for row in df["branch_lengths"]
    ]
    return _pooled(df, [sum(row) for row in balances], [len(row) for row in balances], **bootstrap)


def work(df: pd.DataFrame, **bootstrap: Any) -> Estimate:
    """Mean completion tokens of a response."""
    return _mean(df, "work", **bootstrap)


def span(df: pd.DataFrame, **bootstrap: Any) -> Estimate:
    """Mean critical path of a response, in tokens."""
    return _mean(df, "span", **bootstrap)


def ideal_speedup(df: pd.DataFrame, **bootstrap: Any) -> Estimate:
    """Total work / total span: decoding steps saved if a step cost the same at any width.

    A ratio of sums (see the module's third rule); responses that never forked pull it towards 1.
    """
    _check(df, "work", "span")
    return _pooled(df, df["work"].to_numpy(), df["span"].to_numpy(), **bootstrap)


def efficiency(measured: float, ideal: float) -> float:
    """Measured speed-up over the ideal one; both relative to the same sequential decoding.

    Raises:
        ValueError: one of them is not positive.
    """
    if not (measured > 0 and ideal > 0):
        raise ValueError(f"speed-ups must be positive: measured {measured}, ideal {ideal}")
    return measured / ideal


def summary(
    df: pd.DataFrame, k: int | None = None, **bootstrap: Any
) -> dict[str, dict[str, float]]:
    """All metrics of one checkpoint at one temperature: {name: {"value", "low", "high"}}.

    best@k and maj@k are left out at k = 1, where they repeat avg@1.
    """
    k = _resolve_k(df, k)
    estimates = {f"avg@{k}": avg_at_k(df, k, **bootstrap)}
    if k > 1:
        estimates[f"best@{k}"] = best_at_k(df, k, **bootstrap)
        estimates[f"maj@{k}"] = maj_at_k(df, k, **bootstrap)
    pooled = (format_pass, trigger_rate, wide_block_share, branches_per_block, balance)
    for metric in (*pooled, work, span, ideal_speedup):
        estimates[metric.__name__] = metric(df, **bootstrap)
    return {name: estimate._asdict() for name, estimate in estimates.items()}


def ladder(
    frames: Mapping[str, pd.DataFrame],
    metrics: Mapping[str, str | Callable[[pd.DataFrame], Any]] | None = None,
    **bootstrap: Any,
) -> pd.DataFrame:
    """Every checkpoint beside the others, sampled and greedy apart.

    Args:
        frames: checkpoint name -> its evaluation rollouts, in the order of the report.
        metrics: more of them: name -> a function of the rollouts of one checkpoint at one
            temperature (`bootstrap.resample_frame`), or `module:function`.

    Returns:
        Tidy, one row a number: checkpoint, temperature (falling), problems, samples (a problem),
        metric, value, low, high.
    """
    own = {name: resolve(metric) for name, metric in (metrics or {}).items()}
    if taken := [name for name in own if name.split("@")[0] in QUANTITIES]:
        raise ValueError(f"metrics of one's own need other names than {', '.join(taken)}")
    rows = []
    for name, df in frames.items():
        if "temperature" not in df.columns:
            raise ValueError(f"rollouts of {name!r} lack the column 'temperature'")
        for temperature in sorted(df["temperature"].unique(), reverse=True):
            group = df[df["temperature"] == temperature]
            head = {
                "checkpoint": name,
                "temperature": float(temperature),
                "problems": group["problem_id"].nunique(),
                "samples": samples_per_problem(group),
            }
            found = summary(group, **bootstrap)
            found |= {n: resample_frame(f, group, **bootstrap)._asdict() for n, f in own.items()}
            rows += [{**head, "metric": metric, **numbers} for metric, numbers in found.items()]
    return pd.DataFrame(rows)
