"""Problems of reasoning-gym's generators, scored by their own scorers."""

from __future__ import annotations

from typing import Any

from npr_lib.tasks.problems import (
    SHARES,
    Problem,
    ProblemSet,
    Split,
    number,
    required,
    split_of,
    text_id,
)

CHUNK = 256  # entries drawn at once from a generator
BARREN_CHUNKS = 20  # chunks without a new problem after which a generator counts as exhausted


def load(
    split: Split,
    seed: int,
    count: int | None,
    name: str,
    config: dict[str, Any] | None = None,
    shares: dict[Split, float] = SHARES,
    min_score: float = 1.0,
) -> ProblemSet:
    """name: the generator; config: its parameters. An answer is right when the generator's scorer
    gives at least `min_score`."""
    import reasoning_gym

    count = required(count, split, "reasoning-gym")
    problems: dict[str, Problem] = {}
    chunk = barren = 0
    while len(problems) < count:
        known = len(problems)
        source = reasoning_gym.create_dataset(
            name, seed=number(seed, chunk) % 2**31, size=CHUNK, **(config or {})
        )
        for entry in source:
            if split_of(entry["question"], shares) == split:
                problem = _problem(name, entry)
                problems.setdefault(problem.id, problem)
        chunk, barren = chunk + 1, barren + 1 if len(problems) == known else 0
        if barren == BARREN_CHUNKS:
            raise ValueError(f"reasoning-gym {name!r}: only {known} of {count} {split} problems")
    score = reasoning_gym.get_score_answer_fn(name)

    def verify(predicted: str, problem: Problem) -> bool:
        return score(predicted, problem.meta["entry"]) >= min_score

    return ProblemSet(list(problems.values())[:count], verify)


def _problem(name: str, entry: dict[str, Any]) -> Problem:
    question = entry["question"]
    return Problem(text_id(name, question), question, str(entry["answer"]), {"entry": entry})
