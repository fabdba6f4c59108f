"""Problem sets: any sequence of problems that knows how an answer is verified.

    load_problems({"kind": "parts", "train": 1000}, "train", seed=0)            the tiny task family
    load_problems({"kind": "reasoning-gym", "name": "chain_sum", "test": 100}, "test", seed=0)
    load_problems({"kind": "file", "path": {"test": "problems.jsonl"}}, "test", seed=0)
    load_problems({"kind": "benchmark", "name": "aime25"}, "test", seed=0)
    load_problems({"kind": "my_problems:load", "train": 100, "depth": 3}, "train", seed=0)

A kind is a function, by a short name of `KINDS` or as `module:function`:

    def load(split, seed, count, **fields) -> ProblemSet

`count` is how many problems of the split are asked for (None: all there are); every other key of
the specification is a field, and must be one of its parameters. A problem belongs to a split by a
hash of its text ("parts": of every resolved part in it), never by a draw, so train, validation and
test stay disjoint whatever the seeds. As a command this writes a set as JSON lines:

    python -m npr_lib.tasks.problems '{"kind": "parts", "test": 50}' test 0 > out.jsonl
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints, overload

from npr_lib import WorkbenchError, verify
from npr_lib.files import digest
from npr_lib.identity import describe, resolve
from npr_lib.reasoning.graph import last_boxed

if TYPE_CHECKING:  # slow to import, and only build_prompt sees one
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# Shares of all texts (of all sub-expressions for "parts") that a split owns.
SHARES: dict[Split, float] = {"train": 0.65, "validation": 0.15, "test": 0.20}

KINDS = {
    "parts": "npr_lib.tasks.parts.problems:load",
    "stories": "npr_lib.tasks.parts.stories:load",
    "reasoning-gym": "npr_lib.tasks.gym:load",
    "file": "npr_lib.tasks.rows:load_file",
    "hub": "npr_lib.tasks.rows:load_hub",
    "benchmark": "npr_lib.tasks.benchmarks:load",
}
# Kinds that read files: which ones, a function of the specification.
FILES = {"file": "npr_lib.tasks.rows:files", "benchmark": "npr_lib.tasks.benchmarks:files"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its reference answer; `id` depends on the text only, or is the file's own."""

    id: str
    problem: str
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


# (what stands in the response's last box, the problem) -> right, wrong, or None: no telling. More
# keywords are what a specification gives as `verifier: {name: ..., KEYWORD: ...}`.
Verifier = Callable[[str, Problem], bool | None]


def math(predicted: str, problem: Problem, **policy: Any) -> bool | None:
    """Mathematically the same (`verify.verdict`) as one of the answers. policy: of `verify.Policy`,
    such as tolerance=0.01."""
    asked = verify.Policy(**policy) if policy else None
    verdicts = [verify.verdict(predicted, one, policy=asked) for one in answers(problem)]
    return True if True in verdicts else None if None in verdicts else False


def exact(predicted: str, problem: Problem) -> bool:
    """The same text but for white space around it."""
    return any(verify.exact(predicted, one) for one in answers(problem))


def choice(predicted: str, problem: Problem) -> bool:
    """The right letter, or the text of the right one of `meta["options"]`."""
    return verify.choice(predicted, problem.answer, problem.meta.get("options", ()))


def words(predicted: str, problem: Problem, case: bool = False, order: bool = True) -> bool:
    """The same words (`verify.words`)."""
    return any(verify.words(predicted, one, case, order) for one in answers(problem))


def grid(predicted: str, problem: Problem) -> bool:
    """Every cell of a table is right (`verify.grid`)."""
    return verify.grid(predicted, problem.answer)


def as_in_the_paper(text: str, problem: Problem) -> bool | None:
    """How the paper's release finds an answer (`--protocol paper`): the last box wherever it
    stands, else what follows "answer is", else the last number. Compared mathematically."""
    found = last_boxed(text) or verify.last_number(text)
    return found is not None and math(found, problem)


def answers(problem: Problem) -> Sequence[str]:
    """All that are right: the answer, or those in `meta["answers"]`."""
    return problem.meta.get("answers") or (problem.answer,)


VERIFIERS = {name: f"{__name__}:{name}" for name in ("math", "exact", "choice", "words", "grid")}


def verifier(named: str | Mapping[str, Any] | Verifier) -> Verifier:
    """A verifier by its name, or as {"name": ..., keyword: value}. WorkbenchError: there is none of
    that name; ValueError: it has no such keyword or value."""
    if not isinstance(named, Mapping):
        return resolve(named, VERIFIERS)
    keywords = {key: value for key, value in named.items() if key != "name"}
    function = resolve(named.get("name", "math"), VERIFIERS)
    if function is math:
        verify.Policy(**keywords)  # wrong ones are said now
    else:
        try:
            inspect.signature(function).bind("", None, **keywords)
        except TypeError as error:
            raise ValueError(f"verifier {named.get('name')!r}: {error}") from error
    return functools.partial(function, **keywords)


class ProblemSet(Sequence[Problem]):
    """An immutable sequence of problems with their verifier (a function, or how it is named)."""

    def __init__(
        self, problems: Iterable[Problem], verified: str | Mapping[str, Any] | Verifier = math
    ) -> None:
        self._problems = tuple(problems)
        self.verifier = verifier(verified)

    def __len__(self) -> int:
        return len(self._problems)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> ProblemSet: ...
    def __getitem__(self, index: int | slice) -> Problem | ProblemSet:
        if isinstance(index, slice):
            return ProblemSet(self._problems[index], self.verifier)
        return self._problems[index]

    def verify(self, predicted: str | None, problem: Problem) -> bool | None:
        r"""Whether `predicted`, the content of the last `\boxed{}` or None, answers `problem`; None
        where the verifier can't tell, which counts as wrong."""
        return predicted is not None and self.verifier(predicted, problem)


def load_problems(spec: Mapping[str, Any], split: Split, seed: int) -> ProblemSet:
    """The problems of one split, a function of (spec, split, seed).

    spec: `kind`; `train`, `validation`, `test` (how many; needed by generators, while files and
    hub sets give all of theirs without it); `verifier`, to use another than the kind's own; the
    fields of the kind.

    Raises:
        ValueError: an unknown kind, split or field, or a source with too few problems.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; splits are {', '.join(SPLITS)}")
    load, known = kind(spec), fields_of_kind(str(spec.get("kind")))
    if unknown := sorted(set(spec) - set(known) - {"kind"}):
        raise ValueError(f"problems of kind {spec['kind']!r} have no {', '.join(unknown)}")
    fields = {key: value for key, value in spec.items() if key not in _COMMON}
    found = load(split, seed, spec.get(split), **fields)
    found = ProblemSet(found, spec["verifier"]) if "verifier" in spec else found
    _say_unreadable(found)
    return found


def _say_unreadable(problems: ProblemSet) -> None:
    """Answers that a mathematical verifier can't read are right only when written the same."""
    if getattr(problems.verifier, "func", problems.verifier) is not math:
        return
    told = [(p.id, why) for p in problems for a in answers(p) if (why := verify.unreadable(a))]
    if told:
        first, why = told[0]
        print(
            f"{len(told)} answers can't be read as mathematics and are right only where they are "
            f"written the same; the first is of problem {first} ({why})",
            file=sys.stderr,
        )


_COMMON = {
    "kind": str,
    "verifier": str | dict[str, Any],
    "train": int,
    "validation": int,
    "test": int,
}


def kind(spec: Mapping[str, Any]) -> Callable[..., ProblemSet]:
    """The function that loads this kind of problems. ValueError if there is none."""
    try:
        return resolve(str(spec.get("kind")), KINDS)
    except WorkbenchError as error:
        raise ValueError(f"unknown kind of problem set: {error}") from error


def fields_of_kind(name: str) -> dict[str, Any]:
    """The keys of a specification of this kind, with their types. ValueError: no such kind."""
    load = kind({"kind": name})
    hints = get_type_hints(load)
    own = [p for p in inspect.signature(load).parameters if p not in ("split", "seed", "count")]
    return {**_COMMON, **{name: hints.get(name, Any) for name in own}}


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a set depends on beside its specification: the source of its kind and verifier, and the
    content of its files."""
    functions: list[Callable[..., Any]] = [kind(spec)]
    if "verifier" in spec:
        functions.append(verifier(spec["verifier"]))
    files = {str(path): digest(path) for path in local_files(spec)}
    return {"functions": [describe(function) for function in functions], "files": files}


def contents(problems: ProblemSet) -> dict[str, Any]:
    """What a set that was made by hand is: every problem, and the source of its verifier."""
    every = json.dumps([asdict(problem) for problem in problems], sort_keys=True, default=str)
    found = hashlib.sha256(every.encode()).hexdigest()
    return {"problems": found, "verifier": describe(problems.verifier)}


def local_files(spec: Mapping[str, Any]) -> list[Path]:
    """The files here that a problem set is read from, as far as its kind reads any (`FILES`)."""
    return resolve(FILES[spec["kind"]])(spec) if spec.get("kind") in FILES else []


# A template; or a mapping with more to say: `template`; `turns`, problems answered before this one,
# to show how (each a mapping of `problem` and `response`); and to a chat template a `system`
# message and its own options (`chat`, such as enable_thinking).
Prompt = str | Mapping[str, Any]
PROMPT_KEYS = {"template": str, "turns": list[dict[str, str]], "system": str, "chat": dict}


def build_prompt(
    problem: Problem, prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    r"""The prompt text: the template with `{problem}` replaced, through the chat template if any;
    without one, after the turns as they stand.

    Only `{problem}` is replaced: other braces, as in `\boxed{}`, are meant literally. ValueError
    for a template without it, for a turn that lacks one of its two, and for what a tokenizer
    without a chat template has no place for.
    """
    given: Mapping[str, Any] = {"template": prompt} if isinstance(prompt, str) else prompt
    template = given.get("template", "")
    if "{problem}" not in template:
        raise ValueError(f"the prompt template has no {{problem}}: {template!r}")
    messages = []
    for turn in given.get("turns", ()):
        if set(turn) != {"problem", "response"}:
            raise ValueError(f"prompt.turns: each has `problem` and `response`, not {sorted(turn)}")
        messages.append(("user", template.replace("{problem}", turn["problem"])))
        messages.append(("assistant", turn["response"]))
    messages.append(("user", template.replace("{problem}", problem.problem)))
    if tokenizer is None or not tokenizer.chat_template:
        if more := sorted(given.keys() & {"system", "chat"}):
            raise ValueError(f"prompt.{more[0]} is for a chat template, which the tokenizer lacks")
        return "".join(text + ("\n\n" if role == "assistant" else "") for role, text in messages)
    if "system" in given:
        messages.insert(0, ("system", given["system"]))
    return tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in messages],
        tokenize=False,
        add_generation_prompt=True,
        **given.get("chat", {}),
    )


def split_of(text: str, shares: Mapping[Split, float] = SHARES) -> Split:
    """The split that owns `text`: the SHA-256 of the text as a fraction, cut at the shares."""
    if abs(sum(shares.values()) - 1) > 1e-9 or not set(shares) <= set(SPLITS):
        raise ValueError(f"shares must be of {', '.join(SPLITS)} and sum to 1: {dict(shares)}")
    fraction = number(text) / 2**256
    for split, share in shares.items():
        fraction -= share
        if fraction < 0:
            return split
    return split  # the shares summed to a rounding error less than 1


def number(*parts: object) -> int:
    """A number of 256 bits that depends on these only."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def text_id(prefix: str, text: str) -> str:
    """A problem's id, made of its text."""
    return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def required(count: int | None, split: Split, kind: str) -> int:
    """How many problems a generator is asked for. ValueError: nobody said."""
    if count is None:
        raise ValueError(f"problems of kind {kind!r} need a number of problems: {split}: N")
    return count


def main(arguments: Sequence[str]) -> None:
    """Print the problems of `SPEC SPLIT SEED` (SPEC in JSON) as JSON lines."""
    spec, split, seed = arguments
    # load_problems says so where the split is none
    for problem in load_problems(json.loads(spec), split, int(seed)):  # type: ignore[arg-type]
        print(json.dumps(asdict(problem), sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1:])
