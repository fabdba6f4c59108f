"""Which stages of a run show results that no longer hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

ENDED_BADLY = {
    "failed": "failed",
    "interrupted": "was interrupted",
    "running": "is running, or was killed",
}


def out_of_date(stages: Mapping[str, Mapping]) -> dict[str, str]:
    """Stage -> why what it shows is of an earlier run, in words (`it failed`).

    Args:
        stages: the manifest's entries. `status`; `inputs` and `outputs`, paths or patterns in the
            run's folder, tell what depends on what; `stale` and `reason` say that a stage has to
            run again.

    A stage is out of date when its last run didn't succeed, when it is stale, or when it builds,
    directly or not, on one that is.
    """
    own = {name: why for name, stage in stages.items() if (why := _trouble(stage))}
    found = {}
    for name, stage in stages.items():
        causes = [f"{cause}, which {own[cause]}" for cause in _builds_on(name, stages, own)]
        if name in own:
            reason = None if stage["status"] in ENDED_BADLY else stage.get("reason")
            found[name] = reason or f"it {own[name]}"
        elif causes:
            found[name] = f"it depends on {', and on '.join(causes)}"
    return found


def touch(one: Iterable[str], other: Iterable[str]) -> bool:
    """Whether a path or pattern of one side is, or lies in, one of the other."""
    return any(
        fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")
        for a in one
        for b in other
        for path, pattern in ((a, b), (b, a))
    )


def _trouble(stage: Mapping) -> str | None:
    """What is wrong with a stage itself, as the end of a sentence about it."""
    return ENDED_BADLY.get(stage["status"]) or ("is out of date" if stage.get("stale") else None)


def _builds_on(name: str, stages: Mapping[str, Mapping], wanted: Iterable[str]) -> list[str]:
    """Those of `wanted` that a stage depends on, directly or not, in the order of the stages."""
    reached, waiting = set(), [name]
    while waiting:
        inputs = stages[waiting.pop()].get("inputs", ())
        for maker, stage in stages.items():
            if maker not in reached and touch(inputs, stage.get("outputs", ())):
                reached.add(maker)
                waiting.append(maker)
    return [maker for maker in stages if maker in reached - {name} and maker in wanted]
