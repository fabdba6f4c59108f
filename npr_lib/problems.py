"""Problem sets: generators, local files and hub benchmarks behind one sequence type.

    load_problems({"kind": "parts", "train": 1000}, "train", seed=0)            the tiny task family
    load_problems({"kind": "reasoning-gym", "name": "chain_sum", "test": 100}, "test", seed=0)
    load_problems({"kind": "file", "path": {"test": "problems.jsonl"}}, "test", seed=0)
    load_problems({"kind": "hub", "name": "math-ai/aime25"}, "test", seed=0)

A problem belongs to a split by a hash of its text ("parts": of every resolved part in it), never
by a draw, so train, validation and test stay disjoint whatever the seeds. As a command it writes
a set as JSON lines:  python -m npr_lib.problems '{"kind": "parts", "test": 50}' test 0 > out.jsonl
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from npr_lib import parts as parts_task
from npr_lib.verify import math_equal

if TYPE_CHECKING:  # slow to import, and only build_prompt sees one
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# Shares of all texts (of all sub-expressions for "parts") that a split owns.
SHARES: dict[Split, float] = {"train": 0.65, "validation": 0.15, "test": 0.20}
CHUNK = 256  # entries drawn at once from a reasoning-gym generator
BARREN_CHUNKS = 20  # chunks without a new problem after which a generator counts as exhausted


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its reference answer; `id` depends on the text only, or is the file's own."""

    id: str
    problem: str
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


Verifier = Callable[[str, Problem], bool]


class ProblemSet(Sequence[Problem]):
    """An immutable sequence of problems that knows how its answers are verified."""

    def __init__(self, problems: Iterable[Problem], verifier: Verifier) -> None:
        self._problems = tuple(problems)
        self._verifier = verifier

    def __len__(self) -> int:
        return len(self._problems)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return ProblemSet(self._problems[index], self._verifier)
        return self._problems[index]

    def verify(self, predicted: str | None, problem: Problem) -> bool:
        """Whether `predicted`, the content of the last `\\boxed{}` or None, answers `problem`."""
        return predicted is not None and self._verifier(predicted, problem)


def load_problems(spec: Mapping[str, Any], split: Split, seed: int) -> ProblemSet:
    """The problems of one split, a function of (spec, split, seed).

    `spec["kind"]` is one of "parts", "reasoning-gym", "file", "hub"; `spec[split]` is how many
    problems (needed by generators; files and hub sets give all of theirs without it, else a
    seeded sample in the source's order); `spec["shares"]` overrides `SHARES`. Raises ValueError
    for an unknown kind or split, a missing column, or a source with too few problems.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; splits are {', '.join(SPLITS)}")
    loaders = {"parts": _parts, "reasoning-gym": _reasoning_gym, "file": _file, "hub": _hub}
    kind = spec.get("kind")
    if kind not in loaders:
        raise ValueError(f"unknown kind of problem set {kind!r}; kinds are {', '.join(loaders)}")
    return loaders[kind](spec, split, seed)


def local_files(spec: Mapping[str, Any]) -> list[Path]:
    """The files that a problem set of kind "file" is read from; none for other kinds."""
    if spec.get("kind") != "file":
        return []
    source = spec["path"]
    return [Path(path) for path in ([source] if isinstance(source, str) else source.values())]


def build_prompt(
    problem: Problem, template: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """The prompt text: `template` with `{problem}` replaced, through the chat template if any.

    Only `{problem}` is replaced: other braces, as in `\\boxed{}`, are meant literally.
    """
    if "{problem}" not in template:
        raise ValueError(f"the prompt template has no {{problem}}: {template!r}")
    text = template.replace("{problem}", problem.problem)
    if tokenizer is None or not tokenizer.chat_template:
        return text
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )


def split_of(text: str, shares: Mapping[Split, float] = SHARES) -> Split:
    """The split that owns `text`: the SHA-256 of the text as a fraction, cut at the shares."""
    if abs(sum(shares.values()) - 1) > 1e-9 or not set(shares) <= set(SPLITS):
        raise ValueError(f"shares must be of {', '.join(SPLITS)} and sum to 1: {dict(shares)}")
    fraction = _digest(text) / 2**256
    for split, share in shares.items():
        fraction -= share
        if fraction < 0:
            return split
    return split  # the shares summed to a rounding error less than 1


def _digest(*parts: object) -> int:
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _text_id(prefix: str, text: str) -> str:
    return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _count(spec: Mapping[str, Any], split: Split) -> int:
    if split not in spec:
        raise ValueError(f"problems of kind {spec['kind']!r} need a number of problems: {split}: N")
    return int(spec[split])


# ---------------------------------------------------------------- "parts", the tiny task family


def parts_problem(parts: parts_task.Parts) -> Problem:
    """The problem with these parts, e.g. "A=7-2+3+1;B=A+1-2-3;values?"."""
    text = parts_task.write(parts)
    meta = {"parts": dict(parts)}
    return Problem(_text_id("parts", text), text, parts_task.answer(parts), meta)


def _parts(spec: Mapping[str, Any], split: Split, seed: int) -> ProblemSet:
    """`spec["parts"]`: [fewest, most] parts of a problem (default [2, 4]), drawn uniformly;
    `spec["terms"]`: operands of a part (4); `spec["linked"]`: the share of problems in which parts
    may depend on each other (1); `spec["dependent"]` (0.5), `spec["shuffled"]` (0.5): chances of
    `parts.draw_parts` there.
    """
    fewest, most = spec.get("parts", (2, 4))
    if not 1 <= fewest <= most <= len(parts_task.LABELS):
        limit = len(parts_task.LABELS)
        raise ValueError(f"parts: [fewest, most] must lie in 1..{limit}: {[fewest, most]}")
    shares = spec.get("shares", SHARES)
    linked, dependent = spec.get("linked", 1.0), spec.get("dependent", 0.5)
    shuffled = spec.get("shuffled", 0.5)
    pool = _pool(spec.get("terms", parts_task.TERMS), split, tuple(shares.items()))
    count, room = _count(spec, split), sum(len(pool) ** n for n in range(fewest, most + 1))
    if 2 * count > room:
        raise ValueError(f"{count} distinct problems asked of the {split} split, which has {room}")
    draw = random.Random(_digest("parts", split, seed))
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        chance = dependent if draw.random() < linked else 0.0
        parts = parts_task.draw_parts(pool, draw.randint(fewest, most), chance, shuffled, draw)
        problem = parts_problem(parts)
        problems.setdefault(problem.id, problem)
    return ProblemSet(problems.values(), _same_text)


@lru_cache
def _pool(terms: int, split: Split, shares: tuple[tuple[Split, float], ...]) -> tuple[str, ...]:
    """The expressions that a split owns."""
    return tuple(e for e in parts_task.expressions(terms) if split_of(e, dict(shares)) == split)


def _same_text(predicted: str, problem: Problem) -> bool:
    return predicted.strip() == problem.answer


# ---------------------------------------------------------------- reasoning-gym


def _reasoning_gym(spec: Mapping[str, Any], split: Split, seed: int) -> ProblemSet:
    """`spec["name"]`: the generator; `spec["config"]`: its parameters; scored by its own scorer.

    A predicted answer is right when the scorer gives at least `spec["min_score"]` (default 1.0).
    """
    import reasoning_gym

    name, config = spec["name"], spec.get("config", {})
    count, shares = _count(spec, split), spec.get("shares", SHARES)
    problems: dict[str, Problem] = {}
    chunk = barren = 0
    while len(problems) < count:
        known = len(problems)
        source = reasoning_gym.create_dataset(
            name, seed=_digest(seed, chunk) % 2**31, size=CHUNK, **config
        )
        for entry in source:
            if split_of(entry["question"], shares) == split:
                problem = _gym_problem(name, entry)
                problems.setdefault(problem.id, problem)
        chunk, barren = chunk + 1, barren + 1 if len(problems) == known else 0
        if barren == BARREN_CHUNKS:
            raise ValueError(f"reasoning-gym {name!r}: only {known} of {count} {split} problems")
    score = reasoning_gym.get_score_answer_fn(name)
    least = spec.get("min_score", 1.0)

    def verify(predicted: str, problem: Problem) -> bool:
        return score(predicted, problem.meta["entry"]) >= least

    return ProblemSet(list(problems.values())[:count], verify)


def _gym_problem(name: str, entry: dict[str, Any]) -> Problem:
    question = entry["question"]
    return Problem(_text_id(name, question), question, str(entry["answer"]), {"entry": entry})


# ---------------------------------------------------------------- local files and the hub


def _file(spec: Mapping[str, Any], split: Split, seed: int) -> ProblemSet:
    """`spec["path"]`: a .jsonl or .parquet file cut by `shares`, or a mapping split -> file."""
    source, shared = _source(spec["path"], split, "path")
    path = Path(source)
    rows = _read_rows(path)
    return _from_rows(rows, path.stem, str(path), spec, split, seed, shared)


def _hub(spec: Mapping[str, Any], split: Split, seed: int) -> ProblemSet:
    """`spec["name"]`: a data set of the hub or a local folder, read by `datasets.load_dataset`.

    `spec["splits"]`: the hub's split for each of ours, or one name to be cut by `shares`
    (default: the same names); `spec["config"]` and `spec["revision"]` are passed on.
    """
    import datasets

    name = spec["name"]
    source, shared = _source(spec.get("splits", {s: s for s in SPLITS}), split, "splits")
    rows = datasets.load_dataset(
        name, spec.get("config"), split=source, revision=spec.get("revision")
    )
    title = f"{name} (split {source})"
    return _from_rows(rows, Path(name).name, title, spec, split, seed, shared)


def _source(sources: str | Mapping[str, str], split: Split, key: str) -> tuple[str, bool]:
    """(where the split's rows are, whether other splits share them and a hash must cut)."""
    if isinstance(sources, str):
        return sources, True
    if split not in sources:
        raise ValueError(f"{key} names no source for the split {split!r}, only {list(sources)}")
    if list(sources.values()).count(sources[split]) > 1:
        raise ValueError(f"{key} gives {sources[split]!r} to several splits: write {key}: NAME")
    return sources[split], False


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(path).to_dict("records")
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: problems are read from .jsonl or .parquet files")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _from_rows(
    rows: Iterable[Mapping[str, Any]],
    prefix: str,
    title: str,
    spec: Mapping[str, Any],
    split: Split,
    seed: int,
    shared: bool,
) -> ProblemSet:
    """Problems of the rows, their columns named by `spec["columns"]`, checked by math-verify."""
    problems = list(_row_problems(rows, prefix, title, spec.get("columns", {})))
    if shared:
        shares = spec.get("shares", SHARES)
        problems = [p for p in problems if split_of(p.problem, shares) == split]
    count = int(spec.get(split, len(problems)))
    if count > len(problems):
        raise ValueError(f"{title}: {count} {split} problems asked, it has {len(problems)}")
    draw = random.Random(_digest(title, split, seed))
    chosen = sorted(draw.sample(range(len(problems)), count))
    return ProblemSet([problems[i] for i in chosen], _math_equal)


def _row_problems(
    rows: Iterable[Mapping[str, Any]], prefix: str, title: str, columns: Mapping[str, str]
) -> Iterator[Problem]:
    question, answer = columns.get("problem", "problem"), columns.get("answer", "answer")
    seen: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        for column in (question, answer):
            if row.get(column) is None:
                has = ", ".join(row) or "none"
                raise ValueError(f"{title}: row {number} lacks column {column!r}; it has {has}")
        text = str(row[question])
        id = str(row["id"]) if row.get("id") is not None else _text_id(prefix, text)
        seen[id] += 1
        if seen[id] > 1:  # a set may hold a problem twice: ids must still tell rows apart
            id = f"{id}-{seen[id]}"
        rest = {k: v for k, v in row.items() if k not in (question, answer, "id")}
        yield Problem(id, text, str(row[answer]), rest)


def _math_equal(predicted: str, problem: Problem) -> bool:
    return math_equal(predicted, problem.answer)


def main(arguments: Sequence[str]) -> None:
    """Print the problems of `SPEC SPLIT SEED` (SPEC in JSON) as JSON lines."""
    spec, split, seed = arguments
    for problem in load_problems(json.loads(spec), split, int(seed)):
        print(json.dumps(asdict(problem), sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1:])
