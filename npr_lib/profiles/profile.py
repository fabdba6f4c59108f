"""Reading a profile: a YAML file of sections, checked before anything is made of it.

Those that come with the package lie beside this file. No code asks for a profile's name. Values
are changed with overrides such as `npr.grpo.learning_rate=3e-4`. The sections are dataclasses
(`sections`); pydantic checks the types, since it takes plain dataclasses as they are and tells
where a value is wrong. A key that doesn't exist fails at once and names the nearest that does.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from npr_lib import WorkbenchError
from npr_lib.files import PACKAGE
from npr_lib.profiles.elsewhere import elsewhere
from npr_lib.profiles.sections import Profile
from npr_lib.tasks.problems import PROMPT_KEYS, fields_of_kind

FOLDER = PACKAGE / "profiles"
# Mappings that are handed on to a class: its fields are their keys, its annotations the types.
HANDED_ON = {"grpo": "trl:GRPOConfig", "trl": "trl:SFTConfig", "lora": "peft:LoraConfig"}


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


def load_profile(
    name_or_path: str | Path, overrides: Iterable[str] = (), smoke: bool = False
) -> Profile:
    """Read a profile and apply overrides.

    Args:
        name_or_path: a name such as `tiny`, or the path of a YAML file.
        overrides: `KEY=VALUE` with dotted keys; the value is read as YAML.
        smoke: with the profile's own changes for its smallest sizes (its section `smoke`).

    Raises:
        ProfileError: the profile or a key does not exist, or a value is not of its type.
    """
    path = _find(name_or_path)
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise ProfileError(f"profile {path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(given, dict):
        raise ProfileError(f"profile {path} is not a mapping of sections")
    if smoke:
        if not given.get("smoke"):
            raise ProfileError(f"profile {name_or_path} has no sizes for --smoke (section smoke)")
        given = _merged(given, given["smoke"])
    return make_profile(given, overrides, f"profile {name_or_path}")


def make_profile(
    given: Mapping[str, Any], overrides: Iterable[str] = (), title: str = "profile"
) -> Profile:
    """A profile from its sections as plain mappings; what is left out has its default.

    Raises:
        ProfileError: as `load_profile`.
    """
    sections = _apart(given)
    _check(sections, title)  # before an override that a misspelt section would swallow
    for override in overrides:
        _apply(sections, override)
    _check(sections, title)
    try:
        return TypeAdapter(Profile).validate_json(json.dumps(sections), strict=True)
    except ValidationError as error:
        raise ProfileError(f"{title}: {_told(error)}") from error
    except (TypeError, ValueError) as error:
        raise ProfileError(f"{title}: {_one_line(error)}") from error


def _apart(value: Any) -> Any:
    """A copy in which nothing stands twice: an override of one place that a YAML anchor fills is
    not one of the others. (`deepcopy` keeps what is shared shared.)"""
    if isinstance(value, Mapping):
        return {key: _apart(inner) for key, inner in value.items()}
    return [_apart(inner) for inner in value] if isinstance(value, list) else value


def _merged(sections: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with those of `changes` in their place, key by key."""
    return {**sections} | {
        key: _merged(sections.get(key) or {}, value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile so that `load_profile(path)` gives it back."""
    plain = json.loads(json.dumps(dataclasses.asdict(profile)))
    path.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


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


def _apply(sections: dict[str, Any], override: str) -> None:
    """Set one dotted key in place."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ProfileError(f"override {override!r} is not of the form KEY=VALUE")
    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ProfileError(f"the value of {key} is not YAML: {_one_line(error)}") from error
    *parents, last = key.split(".")
    section = sections
    for parent in parents:
        inner = section.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ProfileError(_unknown(key, sections))
        section = inner
    whole = isinstance(value, dict) or key == "prompt"  # which may be a text too
    if not whole and (inside := _inside(key, sections)):
        raise ProfileError(f"{key} is a section; set one of its keys: {', '.join(inside)}")
    section[last] = value


def _inside(key: str, sections: dict[str, Any]) -> list[str]:
    """The keys within a dotted key, as far as they are known; none for a value."""
    start = f"{key}."
    inner = (
        known[len(start) :] for known in _known(sections, every=True) if known.startswith(start)
    )
    return [name for name in inner if "." not in name]


def _check(sections: Mapping[str, Any], title: str) -> None:
    """Every key must exist; the mappings that are handed on must hold values of the right type.

    Raises:
        ProfileError: for the first that doesn't.
    """
    try:
        known = _known(sections)
    except ValueError as error:  # no such kind of problems
        raise ProfileError(f"{title}: {error}") from error
    _check_model(sections.get("model"), title)
    whole = {
        key.removesuffix(".*") for key, hint in known.items() if hint is not None or "*" in key
    }
    for key, value in _pairs(sections):
        if any(key.startswith(f"{start}.") for start in whole):
            continue
        if key not in known:
            raise ProfileError(f"{title}: {_unknown(key, sections)}")
        if where := elsewhere(key):
            raise ProfileError(f"{title}: {key} = {value!r} would have no effect: {where}")
        try:
            _fit(known[key], value)
        except ValidationError as error:
            raise ProfileError(f"{title}: {_told(error, key)}") from error


def _check_model(model: Any, title: str) -> None:
    """ProfileError for a model that exists already and is told what it is like."""
    if not isinstance(model, Mapping) or len(model) < 2 or "path" not in model:
        return
    own = importlib.import_module("transformers").Qwen3Config.__annotations__
    if told := [key for key in model if key in own and key not in _MAY_CHANGE]:
        raise ProfileError(
            f"{title}: model.{told[0]} beside model.path: the model there has its own "
            f"{told[0]}. Leave out {', '.join(told)} (they are for a model that is made here), or "
            f"replace the whole section: -p 'model={{path: {model['path']}}}'"
        )


def _fit(hint: Any, value: Any) -> None:
    """ValidationError unless a value fits its annotation, None: any does."""
    try:
        adapter = TypeAdapter(hint if hint is not None else Any)
    except PydanticUserError:  # an annotation of a library that only its type checker understands
        return
    adapter.validate_json(json.dumps(value), strict=True)


def _pairs(section: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of nested mappings, with its value."""
    for name, value in section.items():
        yield f"{start}{name}", value
        if isinstance(value, Mapping):
            yield from _pairs(value, f"{start}{name}.")


def _known(sections: Mapping[str, Any], every: bool = False) -> dict[str, Any]:
    """Every dotted key that may be set. Value: the annotation that it must fit where no dataclass
    says so, else None. `x.*`: anything may stand in x.

    every: also those of mappings that these sections leave empty. Their classes, of TRL and
        transformers, take seconds to import.
    """
    problems, model = sections.get("problems"), sections.get("model")
    found = dict(_of_class(Profile, "", None if every else sections))
    kind = problems.get("kind") if isinstance(problems, Mapping) else None
    if kind is None:
        found["problems.*"] = None
    else:
        found |= {f"problems.{name}": hint for name, hint in fields_of_kind(str(kind)).items()}
    if isinstance(model, Mapping) and "path" in model:  # arguments of from_pretrained
        found["model.*"] = None
    elif model or every:
        found |= {f"model.{name}": hint for name, hint in _annotations(_QWEN).items()}
    found |= {f"prompt.{name}": hint for name, hint in PROMPT_KEYS.items()}
    return found | {"prompt.chat.*": None, "problems.kind": str, "model.path": str}


_QWEN = "transformers:Qwen3Config"
# Fields of a configuration that may be another for weights that exist.
_MAY_CHANGE = ("attention_dropout", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")


def _of_class(cls: type, start: str, given: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """The keys of a section; given: what is set in it, None: look at everything."""
    for name, hint in get_type_hints(cls).items():
        key = f"{start}{name}"
        inside = given if given is None else given.get(name)
        yield key, None
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            inner = inside if given is None or isinstance(inside, Mapping) else {}
            yield from _of_class(hint, f"{key}.", inner)
        elif name in HANDED_ON and (given is None or inside):
            fields = _annotations(HANDED_ON[name]).items()
            yield from ((f"{key}.{inner}", annotation) for inner, annotation in fields)
        elif str(hint).startswith("dict") and key not in ("problems", "model"):
            yield f"{key}.*", None


@cache
def _annotations(named: str) -> dict[str, Any]:
    """The fields of a class, `module:Class`, with their annotations."""
    module, name = named.split(":")
    cls = getattr(importlib.import_module(module), name)
    # transformers annotates with names that it imports for type checkers only
    hints = get_type_hints(cls, localns={"torch": importlib.import_module("torch")})
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _unknown(key: str, sections: Mapping[str, Any]) -> str:
    """Says that a key does not exist; names the closest that does."""

    def likeness(other: str) -> float:
        pairs = [(key, other), (key.split(".")[-1], other.split(".")[-1])]
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    known = (other for other in _known(sections, every=True) if "*" not in other)
    nearest = max(known, key=likeness)
    return f"unknown parameter {key!r}; did you mean {nearest}?"


def _told(error: ValidationError, key: str = "") -> str:
    """The first of pydantic's complaints in a line."""
    first = error.errors(include_url=False)[0]
    place = ".".join(filter(None, [key, *(str(part) for part in first["loc"] if not key)]))
    return f"{place} = {first.get('input')!r}: {first['msg']}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
