"""A rollout: a response with its problem and what it earned. What a reward function is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from npr_lib.reasoning.graph import ReasoningGraph
from npr_lib.reasoning.layout import Layout
from npr_lib.reasoning.trajectory import Trajectory, to_rows
from npr_lib.rewards import format_reward
from npr_lib.tasks.problems import Problem, ProblemSet


@dataclass(slots=True)
class Rollout:
    """A scored response. format_reward: r_f in [-2, 0], 0: no violation. correct: the verifier's
    word on the last box; decided: whether it had one, without which nothing is right. reward: nan
    keeps it out of loss and statistics."""

    trajectory: Trajectory
    problem: Problem
    format_reward: float
    correct: bool
    reward: float = math.nan
    decided: bool = True

    @property
    def text(self) -> str:
        return self.trajectory.text

    @property
    def graph(self) -> ReasoningGraph:
        return self.trajectory.graph

    @property
    def layout(self) -> Layout:
        return self.trajectory.layout


Reward = Callable[[Rollout], float]
# (rewards [B] in runs of the group's size, nan where filtered; the group's size) -> advantages [B]
Advantages = Callable[[np.ndarray, int], Any]


def score(
    trajectories: Sequence[Trajectory],
    asked: Sequence[Problem],
    problems: ProblemSet,
    reward: Reward | None = None,
) -> list[Rollout]:
    """Score each response to the problem it answers. reward None: 1 for a right answer, else -1."""
    rollouts = []
    for trajectory, problem in zip(trajectories, asked, strict=True):
        graph = trajectory.graph
        verdict = problems.verify(graph.boxed, problem)
        correct, decided = bool(verdict), verdict is not None
        rollout = Rollout(trajectory, problem, format_reward(graph), correct, decided=decided)
        rollout.reward = float(reward(rollout)) if reward else (1.0 if correct else -1.0)
        rollouts.append(rollout)
    return rollouts


def to_table(rollouts: Sequence[Rollout], **columns: Sequence[object] | object) -> pd.DataFrame:
    """A rollouts table: one row a response, with its problem and scores, and more columns."""
    return to_rows(
        [rollout.trajectory for rollout in rollouts],
        problem_id=[rollout.problem.id for rollout in rollouts],
        problem=[rollout.problem.problem for rollout in rollouts],
        answer=[rollout.problem.answer for rollout in rollouts],
        reward=[rollout.reward for rollout in rollouts],
        accuracy=[float(rollout.correct) for rollout in rollouts],
        format_reward=[rollout.format_reward for rollout in rollouts],
        **columns,
    )
