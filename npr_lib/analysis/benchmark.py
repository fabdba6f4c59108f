"""Models on benchmarks: responses, verdicts, and the numbers of the paper's three tables.

    result = evaluate(["runs/npr", "runs/sr"], read_sets("aime25,rg:leg_counting"), Path("out"))

Everything lies in the folder `out`: `responses/MODEL/SET.parquet`, `speed/MODEL.json`, and
`results.json` with every number; `lm_eval/MODEL/results.json` has the accuracies in the shape that
lm-evaluation-harness writes. docs/evaluation.md describes them.
"""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from transformers import AutoTokenizer

from npr_lib import WorkbenchError, __version__
from npr_lib.analysis import lm_eval, metrics, responses
from npr_lib.analysis.bootstrap import Estimate, resample
from npr_lib.analysis.sets import Asked, model_names
from npr_lib.analysis.speed import Timing, speed_numbers, speed_ratios, time_replays
from npr_lib.engine import EngineConfig, SamplingParams, SGLangEngine, TorchEngine
from npr_lib.engine.checkpoint import check_model, checkpoint_mode, load_checkpoint
from npr_lib.files import model_digest, write_json
from npr_lib.identity import closure, fingerprint, resolve
from npr_lib.reasoning.trajectory import Mode, Trajectory
from npr_lib.tasks.problems import Prompt
from npr_lib.train.rollout import to_table

PAPER_SAMPLING = SamplingParams(max_tokens=40_000, temperature=1.0, top_p=0.7)
"""How the paper samples its evaluation."""

PLAIN_PROMPT = "{problem}\n"
CHAT_PROMPT = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
"""What is asked where nobody says otherwise: of a tokenizer without, and with, a chat template."""

PROTOCOLS: dict[str, str] = {"paper": "npr_lib.tasks.problems:as_in_the_paper"}
"""Other ways to grade, beside the set's own verifier: short name -> `module:function` of a
response's text and its problem; True, False, or None: no verdict."""

SIZES = ("num_slots", "max_running", "max_step_tokens", "persistent_prefix", "backend")
"""What of an engine's configuration decides no response."""

MEAN = "mean"
"""The name of the mean over sets, in the place of a set's."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How models are evaluated.

    k: samples a problem; None: each set's own. mode: how to decode; auto: as each checkpoint says.
    engine: torch, sglang, or the url of a `python -m npr_lib serve`. prompt: None: `PLAIN_PROMPT`
    or `CHAT_PROMPT`. speed: of how many problems a set the first response is decoded again to time
    it; 0: of none. rounds: how often. protocol: of `PROTOCOLS`, or `module:function`: a second
    verdict on every response.
    """

    k: int | None = None
    mode: Literal["auto"] | Mode = "auto"
    engine: str = "torch"
    sampling: SamplingParams = PAPER_SAMPLING
    config: EngineConfig = field(default_factory=EngineConfig)
    prompt: Prompt | None = None
    speed: int = 4
    rounds: int = 3
    protocol: str | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("k", self.k, 1), ("speed", self.speed, 0)):
            if value is not None and value < least:
                raise WorkbenchError(f"{name} = {value}: expected at least {least}")
        template = (
            self.prompt if isinstance(self.prompt, str) else (self.prompt or {}).get("template")
        )
        if self.prompt is not None and "{problem}" not in str(template):
            raise WorkbenchError(f"the prompt has no {{problem}}: {self.prompt!r}")


@dataclass(slots=True)
class Answered:
    """How a model answers, and what it did: set -> rollouts table, set -> timing."""

    folder: Path
    mode: Mode
    prompt: Prompt
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)


def evaluate(
    models: Sequence[str | Path],
    sets: Sequence[Asked],
    out: Path,
    settings: Settings = Settings(),
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Every model on every set; what is in `out` already, of the same, is not made again.

    about: goes into the result as it is (the machine, say). Returns what `results.json` holds.

    Raises:
        WorkbenchError: `out` holds responses that were made otherwise; a model that is none.
    """
    if settings.protocol:
        resolve(settings.protocol, PROTOCOLS)  # is there, before anything is done
    answered = {name: _begin(folder, settings) for name, folder in model_names(models).items()}
    for name, own in answered.items():  # before hours of work on those that come first
        for one in sets:
            responses.check(_path(out, name, one), _made_of(own, settings, one))
    for name, own in answered.items():
        with _engine(own.folder, settings) as engine:
            for one in sets:
                _answer(name, own, one, out, settings, engine)
    result = {
        "npr_lib": __version__,
        **(about or {}),
        "settings": json.loads(json.dumps(asdict(settings))),
        "models": {
            name: {
                "path": str(folder),
                "mode": answered[name].mode,
                "prompt": answered[name].prompt,
            }
            for name, folder in model_names(models).items()
        },
        "sets": {one.name: _described(one, settings) for one in sets},
        "numbers": _rows(numbers(answered, sets, settings)),
        "differences": _rows(differences(answered, sets)),
        "speed_ratios": _rows(ratios(answered, sets)),
        "not_timed": _not_timed(answered),
    }
    write_json(out / "results.json", result)
    for name in answered:
        lm_eval.write(out / "lm_eval" / name, name, result, answered[name].tables)
    return result


def _described(one: Asked, settings: Settings) -> dict[str, Any]:
    return {
        "spec": dict(one.spec),
        "problems": len(one.problems),
        "whole": one.whole,
        "k": settings.k or one.k,
        "paper": one.paper,
    }


@contextmanager
def _engine(folder: Path, settings: Settings) -> Iterator[Callable[[], TorchEngine | SGLangEngine]]:
    """A function that makes a model's engine when it is first called; gone when the block ends."""

    @cache
    def made() -> TorchEngine | SGLangEngine:
        if settings.engine == "torch":
            return TorchEngine(*load_checkpoint(folder), settings.config)
        if settings.engine == "sglang":
            return SGLangEngine(folder, settings.config)
        engine = SGLangEngine(url=settings.engine, config=settings.config)
        serves = engine.tokenizer.name_or_path
        if Path(serves).resolve() != folder.resolve():
            raise WorkbenchError(f"{settings.engine} serves {serves}, not {folder}")
        return engine

    try:
        yield made
    finally:
        if made.cache_info().currsize and isinstance(engine := made(), SGLangEngine):
            engine.shutdown()
        made.cache_clear()
        gc.collect()  # the next model wants the memory


def _begin(folder: Path, settings: Settings) -> Answered:
    """How a model decodes, and what it is asked."""
    check_model(folder)
    mode = checkpoint_mode(folder) if settings.mode == "auto" else settings.mode
    chat = AutoTokenizer.from_pretrained(folder).chat_template
    return Answered(folder, mode, settings.prompt or (CHAT_PROMPT if chat else PLAIN_PROMPT))


def _path(out: Path, name: str, one: Asked) -> Path:
    return out / "responses" / name / f"{one.name}.parquet"


def _answer(
    name: str,
    own: Answered,
    one: Asked,
    out: Path,
    settings: Settings,
    engine: Callable[[], TorchEngine | SGLangEngine],
) -> None:
    """A model's responses to a set, scored, and how fast it decodes them."""
    k, path, made_of = settings.k or one.k, _path(out, name, one), _made_of(own, settings, one)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = responses.answers(
        engine,
        one.problems,
        path,
        made_of,
        template=own.prompt,
        sampling=settings.sampling,
        k=k,
        mode=own.mode,
        at_once=_at_once(settings, len(one.problems), k),
        title=f"{name} {one.name}",
    )
    samples = [sample for each in found for sample in range(len(each))]
    rollouts, decided = responses.scored(found, one.problems)
    table = to_table(rollouts, stage=name, checkpoint=name, sample=samples, decided=decided)
    if settings.protocol:
        verdict = resolve(settings.protocol, PROTOCOLS)
        table["accuracy_protocol"] = [float(bool(verdict(r.text, r.problem))) for r in rollouts]
    own.tables[one.name] = table
    responses.write_scored(path, table)
    if settings.speed:
        firsts = {p.id: each[0] for p, each in zip(one.problems, found, strict=True)}
        timed = out / "speed" / name / f"{one.name}.json"
        own.timings[one.name] = _timing(timed, made_of, firsts, own.mode, settings, engine)


def _made_of(own: Answered, settings: Settings, one: Asked) -> dict[str, Any]:
    """Everything that decides a response, by name."""
    decoding = "torch" if settings.engine == "torch" else "sglang"
    module = {"torch": "npr_lib.engine.torch_engine", "sglang": "npr_lib.engine.sglang.engine"}
    made_of = {
        "model": model_digest(own.folder),
        "prompt": own.prompt,
        "mode": own.mode,
        "k": settings.k or one.k,
        **asdict(settings.sampling),
        **{name: v for name, v in asdict(settings.config).items() if name not in SIZES},
        "engine": decoding,
        "code of the engine": fingerprint(closure(module[decoding])),
    }
    return json.loads(json.dumps(made_of))


def _at_once(settings: Settings, problems: int, k: int) -> int:
    """Problems in one call: all, where the engine queues what it can't run yet; else as many as it
    runs, since a client keeps a connection for each response."""
    return problems if settings.engine == "torch" else max(1, settings.config.max_running // k)


def _timing(
    path: Path,
    made_of: Mapping[str, Any],
    firsts: Mapping[str, Trajectory],
    mode: Mode,
    settings: Settings,
    engine: Callable[[], TorchEngine | SGLangEngine],
) -> Timing:
    """The timing in `path` if it is of the same, else a new one, which is written there."""
    of = {**made_of, "problems": list(firsts), "speed": settings.speed, "rounds": settings.rounds}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if before.get("made_of") == of:
        return Timing(**before["timing"])
    title = " ".join((*path.parts[-2:-1], path.stem, "speed"))
    timing = time_replays(engine(), firsts, mode, settings.speed, settings.rounds, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"made_of": of, "timing": asdict(timing)})
    return timing


def numbers(
    answered: Mapping[str, Answered], sets: Sequence[Asked], settings: Settings
) -> list[dict[str, Any]]:
    """Every number of every model on every set: model, set, metric, value, low, high."""
    rows = []
    for model, own in answered.items():
        for one in sets:
            table, k = own.tables[one.name], settings.k or one.k
            found = {n: Estimate(**e) for n, e in metrics.summary(table, k).items()}
            found |= {f"best@{i}": metrics.best_at_k(table, i) for i in _curve(k)}
            if settings.protocol:
                found[f"avg_protocol@{k}"] = metrics.avg_at_k(_by_protocol(table))
            found["undecided"] = metrics.share(table, ~table["decided"])
            found["cut_off"] = metrics.share(table, table["finish_reason"] == "length")
            if one.name in own.timings:
                found |= speed_numbers(own.timings[one.name], own.mode)
            rows += [
                {"model": model, "set": one.name, "metric": metric, **estimate._asdict()}
                for metric, estimate in found.items()
            ]
        tables = {"avg": [own.tables[one.name] for one in sets]}
        if settings.protocol:
            tables["avg_protocol"] = list(map(_by_protocol, tables["avg"]))
        for metric, each in tables.items():
            values = [metrics.avg_values(table).to_numpy() for table in each]
            rows.append({"model": model, "set": MEAN, "metric": metric, **mean(values)._asdict()})
    return rows


def _by_protocol(table: pd.DataFrame) -> pd.DataFrame:
    """Responses with the second verdict in the place of the first."""
    return table.assign(accuracy=table["accuracy_protocol"])


def _curve(k: int) -> list[int]:
    """1, 2, 4, ... below k (which `metrics.summary` has): where best@k is told."""
    return [2**i for i in range(k.bit_length()) if 2**i < k]


def mean(values: Sequence[np.ndarray]) -> Estimate:
    """The mean over sets of the mean over each set's problems; each set is resampled by itself."""

    def of(*draws_P: np.ndarray) -> float:
        return float(np.mean([v[d].mean() for v, d in zip(values, draws_P, strict=True)]))

    (estimate,) = resample(of, *map(len, values))
    return estimate


def differences(answered: Mapping[str, Answered], sets: Sequence[Asked]) -> list[dict[str, Any]]:
    """Accuracy of each model minus that of each before it, on the same problems."""
    rows = []
    for before, after in itertools.combinations(answered, 2):
        head = {"before": before, "after": after, "metric": "avg"}
        series = []
        for one in sets:
            old, new = (answered[model].tables[one.name] for model in (before, after))
            estimate = metrics.paired_difference(old, new)
            rows.append({**head, "set": one.name, **estimate._asdict()})
            series.append((metrics.avg_values(new) - metrics.avg_values(old)).to_numpy())
        rows.append({**head, "set": MEAN, **mean(series)._asdict()})
    return rows


def ratios(answered: Mapping[str, Answered], sets: Sequence[Asked]) -> list[dict[str, Any]]:
    """Decoding speed of each model over that of each before it, on the same problems."""
    rows = []
    for before, after in itertools.combinations(answered, 2):
        old, new = answered[before], answered[after]
        for one in sets:
            if one.name in old.timings:
                pair = (new.timings[one.name], new.mode, old.timings[one.name], old.mode)
                for metric, estimate in speed_ratios(*pair).items():
                    head = {"before": before, "after": after, "set": one.name, "metric": metric}
                    rows.append({**head, **estimate._asdict()})
    return rows


def _not_timed(answered: Mapping[str, Answered]) -> list[dict[str, Any]]:
    return [
        {"model": name, "set": of, "responses": timing.too_long}
        for name, own in answered.items()
        for of, timing in own.timings.items()
        if timing.too_long
    ]


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as JSON keeps them: what is undefined is null."""
    return [
        {key: None if isinstance(v, float) and np.isnan(v) else v for key, v in row.items()}
        for row in rows
    ]
