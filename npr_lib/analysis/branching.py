"""What the divisions of responses (`npr_lib.tasks.parts.divisions`) come to, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from npr_lib.analysis.bootstrap import Estimate, interval, resample
from npr_lib.analysis.quantities import QUANTITIES, share
from npr_lib.tasks.parts.divisions import KINDS


def wrong_part_rate(divided: pd.DataFrame, **bootstrap: Any) -> Estimate:
    """Share of branches that work on something else than their plan names."""
    sums = divided.groupby("problem_id")[["wrong_parts", "branches"]].sum()
    return interval(sums["wrong_parts"].to_numpy(), sums["branches"].to_numpy(), **bootstrap)


def kind_shares(divided: pd.DataFrame) -> pd.DataFrame:
    """Share and accuracy of each kind, rows `KINDS`."""
    groups = divided.groupby("kind")["accuracy"]
    table = pd.DataFrame({"share": groups.size() / len(divided), "accuracy": groups.mean()})
    return table.reindex(KINDS).fillna({"share": 0.0})


def span_ratio(
    parallel: pd.DataFrame, sequential: pd.DataFrame, independent: int = 3, **bootstrap: Any
) -> Estimate:
    """Total span of `parallel` over that of `sequential`, on the problems with at least so many
    independent parts (nan if there is none); both hold the same problems and as many samples."""
    spans = [
        frame[frame["independent"] >= independent].groupby("problem_id")["span"].sum()
        for frame in (parallel, sequential)
    ]
    if not spans[0].index.equals(spans[1].index) or len(parallel) != len(sequential):
        raise ValueError("span_ratio compares responses to the same problems")
    if spans[0].empty:
        return Estimate(np.nan, np.nan, np.nan)
    return interval(spans[0].to_numpy(), spans[1].to_numpy(), **bootstrap)


def split_gain(before: pd.DataFrame, after: pd.DataFrame, **bootstrap: Any) -> dict[str, Estimate]:
    """The gain in accuracy from `before` to `after`, in two parts (Kitagawa's decomposition).

    With the share p_k and the accuracy a_k of each kind k of division, Σ (p'_k - p_k) mean(a_k) is
    what better decompositions bring ("decomposes better") and Σ mean(p_k) (a'_k - a_k) is what
    is gained "within the same decomposition". 95 % intervals resample problems in both at once.
    Both frames, from `divisions`, hold the same problems.

    A kind that one side (or a resample of it) never shows has no accuracy there; it gets the other
    side's, so that all of its contribution counts as decomposition.
    """
    problems = sorted(set(before["problem_id"]))
    if problems != sorted(set(after["problem_id"])):
        raise ValueError("split_gain compares responses to the same problems")
    counts_SPKC = np.stack([_counts(frame, problems) for frame in (before, after)])

    def parts(draws_P: np.ndarray) -> np.ndarray:
        times_P = np.bincount(draws_P, minlength=len(problems))
        return _kitagawa(np.einsum("p,spkc->skc", times_P, counts_SPKC))

    found = resample(parts, len(problems), **bootstrap)
    names = ("decomposes better", "better within the same decomposition")
    return dict(zip(names, found, strict=True))


def _counts(frame: pd.DataFrame, problems: list[str]) -> np.ndarray:
    """(responses, right ones) of every problem and kind: float [P, K, 2]."""
    counts = np.zeros((len(problems), len(KINDS), 2))
    rows = frame["problem_id"].map({problem: i for i, problem in enumerate(problems)})
    kinds = frame["kind"].map(KINDS.index)
    np.add.at(counts, (rows, kinds, 0), 1)
    np.add.at(counts, (rows, kinds, 1), frame["accuracy"])
    return counts


def _kitagawa(counts_SKC: np.ndarray) -> np.ndarray:
    """Both parts of the gain, [2], from the counts of the two sides S."""
    number_SK, right_SK = counts_SKC[..., 0], counts_SKC[..., 1]
    share_SK = number_SK / number_SK.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        rate_SK = right_SK / number_SK
    rate_SK = np.where(np.isnan(rate_SK), rate_SK[::-1], rate_SK)
    rate_SK = np.nan_to_num(rate_SK)  # a kind on neither side has no share either
    better = (share_SK[1] - share_SK[0]) * rate_SK.mean(axis=0)
    within = (rate_SK[1] - rate_SK[0]) * share_SK.mean(axis=0)
    return np.stack([better.sum(), within.sum()])


def division_table(divided: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How checkpoints divide their problems: for each kind "share (accuracy)" in %, and the share
    of branches that work on something their plan doesn't name.

    Args:
        divided: checkpoint -> what `divisions` returns.
    """
    rows: dict[str, dict[str, str]] = {}
    for name, frame in divided.items():
        rows[name] = {}
        for kind, row in kind_shares(frame).iterrows():
            shown = share(f"{kind}: share (accuracy)")
            right = "" if pd.isna(row.accuracy) else f" ({shown.number(row.accuracy)})"
            rows[name][shown.title()] = shown.number(row.share) + right
        wrong = QUANTITIES["wrong_parts"]
        rows[name][wrong.title()] = wrong.text(wrong_part_rate(frame))
    return pd.DataFrame.from_dict(rows, orient="index")
