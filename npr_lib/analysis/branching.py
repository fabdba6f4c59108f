"""What the divisions of responses (`npr_lib.tasks.parts.divisions`) come to, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from npr_lib.analysis.metrics import Estimate, interval
from npr_lib.analysis.tables import interval_text
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


def split_gain(
    before: pd.DataFrame, after: pd.DataFrame, resamples: int = 2000, seed: int = 0
) -> dict[str, Estimate]:
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
    rng = np.random.default_rng(seed)
    draws_BP = rng.multinomial(len(problems), np.full(len(problems), 1 / len(problems)), resamples)
    drawn_B2 = _kitagawa(np.einsum("bp,spkc->bskc", draws_BP, counts_SPKC))
    low, high = np.quantile(drawn_B2, [0.025, 0.975], axis=0)
    (value,) = _kitagawa(counts_SPKC.sum(axis=1)[None])
    names = ("decomposes better", "better within the same decomposition")
    return {
        name: Estimate(*map(float, x)) for name, *x in zip(names, value, low, high, strict=True)
    }


def _counts(frame: pd.DataFrame, problems: list[str]) -> np.ndarray:
    """(responses, right ones) of every problem and kind: float [P, K, 2]."""
    counts = np.zeros((len(problems), len(KINDS), 2))
    rows = frame["problem_id"].map({problem: i for i, problem in enumerate(problems)})
    kinds = frame["kind"].map(KINDS.index)
    np.add.at(counts, (rows, kinds, 0), 1)
    np.add.at(counts, (rows, kinds, 1), frame["accuracy"])
    return counts


def _kitagawa(counts_BSKC: np.ndarray) -> np.ndarray:
    """Both parts of the gain, [B, 2], from the counts of the two sides S."""
    number_BSK, right_BSK = counts_BSKC[..., 0], counts_BSKC[..., 1]
    share_BSK = number_BSK / number_BSK.sum(axis=2, keepdims=True)
    with np.errstate(invalid="ignore"):
        rate_BSK = right_BSK / number_BSK
    rate_BSK = np.where(np.isnan(rate_BSK), rate_BSK[:, ::-1], rate_BSK)
    rate_BSK = np.nan_to_num(rate_BSK)  # a kind on neither side has no share either
    better = (share_BSK[:, 1] - share_BSK[:, 0]) * rate_BSK.mean(axis=1)
    within = (rate_BSK[:, 1] - rate_BSK[:, 0]) * share_BSK.mean(axis=1)
    return np.stack([better.sum(axis=1), within.sum(axis=1)], axis=1)


def division_table(divided: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How checkpoints divide their problems: for each kind "share (accuracy)" in %, and the share
    of branches that work on something their plan doesn't name.

    Args:
        divided: checkpoint -> what `divisions` returns.
    """
    rows = {}
    for name, frame in divided.items():
        kinds = kind_shares(frame)
        rows[name] = {
            f"{kind}: share (accuracy), %": f"{100 * row.share:.1f}"
            + ("" if pd.isna(row.accuracy) else f" ({100 * row.accuracy:.1f})")
            for kind, row in kinds.iterrows()
        }
        rate = wrong_part_rate(frame)
        rows[name]["branches on a wrong part (%)"] = interval_text(rate, 100, 1)
    return pd.DataFrame.from_dict(rows, orient="index")
