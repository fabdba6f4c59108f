"""Profiles: what a run is made of, as data.

A profile is a YAML file of sections (`problems`, `model`, `npr_zero`, …); those that come with
the package lie in `npr_lib/profiles`. No code asks for a profile's name. Values are changed with
overrides such as `npr.grpo.learning_rate=3e-4`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from npr_lib import WorkbenchError
from npr_lib.files import PACKAGE

FOLDER = PACKAGE / "profiles"

# Every profile has these; a file may set them.
DEFAULTS: dict[str, Any] = {"random_seed": 0}

# Sections handed on as they are: the fields of these classes are legal keys though not written.
PASSED_ON = {
    "grpo": ("trl", "GRPOConfig"),
    "trl": ("trl", "SFTConfig"),
    "sampling": ("npr_lib.engine", "SamplingParams"),
    "engine": ("npr_lib.engine", "EngineConfig"),
}


class ProfileError(WorkbenchError):
    """An unknown profile, an unknown key, or a value that can't be read."""


class Loader(yaml.SafeLoader):
    """YAML in which `3e-4` is a number, as everywhere else."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_profile(name_or_path: str | Path, overrides: Iterable[str] = ()) -> dict:
    """Read a profile and apply overrides.

    Args:
        name_or_path: a name such as `tiny`, or the path of a YAML file.
        overrides: `KEY=VALUE` with dotted keys; the value is read as YAML.

    Raises:
        ProfileError: the profile or a key does not exist, or the file is no mapping.
    """
    path = _find(name_or_path)
    try:
        profile = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise ProfileError(f"profile {path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(profile, dict):
        raise ProfileError(f"profile {path} is not a mapping of sections")
    profile = DEFAULTS | profile
    for override in overrides:
        _apply(profile, override)
    return profile


def save_profile(profile: dict, path: Path) -> None:
    """Write a profile so that `load_profile(path)` gives it back."""
    path.write_text(yaml.safe_dump(profile, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ProfileError(f"profile file {path} does not exist")
    if str(name_or_path) in names():
        return FOLDER / f"{name_or_path}.yaml"
    known = ", ".join(names())
    raise ProfileError(
        f"unknown profile {str(name_or_path)!r}; there are: {known} (or give the path of a .yaml)"
    )


def _apply(profile: dict, override: str) -> None:
    """Set one dotted key of `profile` in place."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ProfileError(f"override {override!r} is not of the form KEY=VALUE")
    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ProfileError(f"the value of {key} is not YAML: {_one_line(error)}") from error
    *parents, last = key.split(".")
    section: Any = profile
    for depth, parent in enumerate(parents):
        if not isinstance(section, dict) or not isinstance(section.get(parent), dict):
            raise _unknown(key, profile)
        section = section[parent]
        if depth == len(parents) - 1 and last not in section and last not in _fields(parent):
            raise _unknown(key, profile)
    if not parents and key not in profile:
        raise _unknown(key, profile)
    if isinstance(section.get(last), dict) and not isinstance(value, dict):
        raise ProfileError(f"{key} is a section; set one of its keys: {', '.join(section[last])}")
    section[last] = value


def _fields(section: str) -> set[str]:
    """The fields of the class a passed-on section is made for (imported only when asked)."""
    if section not in PASSED_ON:
        return set()
    module, name = PASSED_ON[section]
    cls = getattr(importlib.import_module(module), name)
    return {field.name for field in dataclasses.fields(cls) if field.init}


def _keys(section: dict, prefix: str = "") -> list[str]:
    """Every dotted key of a nested mapping."""
    keys = []
    for name, value in section.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, dict):
            keys += _keys(value, f"{prefix}{name}.")
    return keys


def _unknown(key: str, profile: dict) -> ProfileError:
    """The error for a key that does not exist; names the closest that does."""

    def likeness(other: str) -> float:
        pairs = [(key, other), (key.split(".")[-1], other.split(".")[-1])]
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    keys = _keys(profile)
    section = key.rpartition(".")[0]
    keys += [f"{section}.{field}" for field in sorted(_fields(section.split(".")[-1]))]
    return ProfileError(f"unknown parameter {key!r}; did you mean {max(keys, key=likeness)}?")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
