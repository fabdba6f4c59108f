"""How responses divide their problems ("parts" problems only), and what that has to do with
their accuracy.

A response is put into one of `KINDS` by its plans alone, whatever its steps come to:

- *divided*: every part is in exactly one plan, alone, and no part is begun before its parent's
  value can be seen (from an earlier block);
- *shared*: the same, but some plan holds several parts;
- *blind*: some part stands in a branch that can't see its parent's value: in parallel it lies in
  a sibling branch, or is not worked out yet. (Decoded one token after the other, a step does see
  its earlier siblings; the kind is named by what parallel decoding would show.)
- *broken*: no valid response, or parts are missing, repeated or made up.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from npr_lib.graph import ReasoningGraph
from npr_lib.metrics import Estimate, interval
from npr_lib.parts import Parts, levels, parent, read, ready
from npr_lib.schema import parse

KINDS = ("divided", "shared", "blind", "broken")


def applies(profile: dict[str, Any]) -> bool:
    """Whether a profile's problems can be read this way."""
    return profile["problems"]["kind"] == "parts"


class Division(NamedTuple):
    """One response: its kind, its branches and how many of them work on other parts than their
    plan names, and, block by block, (parts that could be begun, branches)."""

    kind: str
    branches: int
    wrong_parts: int
    blocks: tuple[tuple[int, int], ...]


def divide(parts: Parts, graph: ReasoningGraph) -> Division:
    """How a response divides these parts."""
    done: set[str] = set()
    planned: list[str] = []
    blind = shared = False
    branches, wrong, blocks = 0, 0, []
    for block in graph.blocks:
        plans = [plan.text.split(",") for plan in block.plans]
        blocks.append((len(ready(parts, done)), len(plans)))
        for labels in plans:
            seen = set(done)
            shared |= len(labels) > 1
            for label in labels:
                blind |= label in parts and parent(parts[label]) not in seen | {None}
                seen.add(label)
        named = {plan.index: labels for plan, labels in zip(block.plans, plans, strict=True)}
        for step in block.steps:
            worked = re.findall(r"(?:^|,)([A-Z])=", step.text)
            branches += 1
            wrong += sorted(worked) != sorted(named.get(step.index, []))
        planned += [label for labels in plans for label in labels]
        done |= {label for labels in plans for label in labels}
    whole = graph.valid and sorted(planned) == sorted(parts)
    kind = "broken" if not whole else "blind" if blind else "shared" if shared else "divided"
    return Division(kind, branches, wrong, tuple(blocks))


def divisions(frame: pd.DataFrame) -> pd.DataFrame:
    """The rollouts with the columns of `Division`, and `parts`, `independent` and `depth` (blocks
    that a response needs at least) of their problems. ValueError for other kinds of problems."""
    tasks = {problem: read(problem) for problem in frame["problem"].unique()}
    found = []
    for row in frame.itertuples():
        graph = parse(row.text, row.max_branches, row.max_depth, spelled=tuple(row.spelled))
        above = levels(tasks[row.problem]).values()
        division = divide(tasks[row.problem], graph)
        independent = sum(level == 0 for level in above)
        found.append((*division, len(above), independent, max(above) + 1))
    columns = [*Division._fields, "parts", "independent", "depth"]
    return frame.reset_index(drop=True).join(pd.DataFrame(found, columns=columns))


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
