"""Values with their 95 % intervals: the one resampling that every interval comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resample(
    statistic: Callable[..., float | tuple[float, ...] | np.ndarray],
    *sizes: int,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Estimate]:
    """The numbers of a statistic with their percentile bootstrap intervals.

    Args:
        statistic: takes int [size] for each of `sizes`, which problems (runs, ...) are drawn, with
            repetition; gives a number or several.

    Resamples in which a number is undefined (nan) carry no information on it and are left out.
    """
    values = np.atleast_1d(statistic(*map(np.arange, sizes))).astype(float)
    rng = np.random.default_rng(seed)
    drawn_B = [
        statistic(*(rng.integers(size, size=size) for size in sizes)) for _ in range(resamples)
    ]
    tail, found = (1 - level) / 2, []
    for value, column in zip(values, np.asarray(drawn_B).reshape(resamples, -1).T, strict=True):
        known = column[~np.isnan(column)]
        defined = known.size > 0 and not np.isnan(value)
        ends = np.quantile(known, [tail, 1 - tail]) if defined else (np.nan, np.nan)
        found.append(Estimate(float(value), *map(float, ends)))
    return found


def interval(
    numerator_P: np.ndarray,
    denominator_P: np.ndarray | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Ratio of sums over problems with its interval; nan where the denominator vanishes.

    Args:
        numerator_P: one number a problem.
        denominator_P: one number a problem, >= 0; ones when absent, which makes the ratio a mean.

    Raises:
        ValueError: no problems, or the two arrays differ in length.
    """
    numerator_P = np.asarray(numerator_P, float)
    ones_P = np.ones_like(numerator_P)
    denominator_P = ones_P if denominator_P is None else np.asarray(denominator_P, float)
    problems = len(numerator_P)
    if problems == 0 or denominator_P.shape != numerator_P.shape:
        raise ValueError(f"{problems} numerators and {len(denominator_P)} denominators")

    def ratio(draws_P: np.ndarray) -> float:
        bottom = denominator_P[draws_P].sum()
        return numerator_P[draws_P].sum() / bottom if bottom > 0 else np.nan

    (estimate,) = resample(ratio, problems, resamples=resamples, seed=seed, level=level)
    return estimate


def resample_frame(
    metric: Callable[[pd.DataFrame], float | Estimate], df: pd.DataFrame, **bootstrap: Any
) -> Estimate:
    """What a function makes of a frame of rollouts: its own `Estimate`, or its number with the
    interval of 200 resamples of problems. In a resample a problem drawn twice is two problems, so
    `problem_id` is the number of the draw there."""
    value = metric(df)
    if isinstance(value, Estimate):
        return value
    rows_P = list(df.groupby("problem_id").indices.values())

    def again(draws_P: np.ndarray) -> float:
        rows = [rows_P[i] for i in draws_P]
        draw = np.repeat(np.arange(len(rows)), list(map(len, rows))).astype(str)
        number = metric(df.iloc[np.concatenate(rows)].assign(problem_id=draw))
        assert not isinstance(number, Estimate)  # as on the frame itself
        return float(number)

    (estimate,) = resample(again, len(rows_P), **(bootstrap | {"resamples": 200}))
    return estimate._replace(value=float(value))
