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
            run's folder, tell what depends on what.

    A stage is out of date when its last run didn't succeed, or when it builds, directly or not, on
    one whose didn't.
    """
    ended = {name: ENDED_BADLY.get(stage["status"]) for name, stage in stages.items()}
    own = {name: why for name, why in ended.items() if why}
    found = {}
    for name in stages:
        causes = [f"{cause}, which {own[cause]}" for cause in _builds_on(name, stages, own)]
        if name in own:
            found[name] = f"it {own[name]}"
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
