"""What a result depends on: settings, functions, and the source that was imported to make it.

A result is made again when its identity has changed, and only then. A function is known by its
source and by the values it uses, a module by its source and by that of every module it imports (of
npr_lib, or of one's own beside it): a change in what is never imported, a figure or a style sheet,
changes nothing.

    resolve("my_rewards:brevity")        the function that a profile names
    describe(function)                   what it is, as JSON
    closure("npr_lib.train.papo")        module -> digest of its source, for all that it imports
"""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from npr_lib import WorkbenchError
from npr_lib.files import PACKAGE, digest, set_aside

RESOURCES = (".c", ".js", ".css", ".html")  # source too, where it lies beside a module


def fingerprint(identity: Any) -> str:
    """An identity in 64 characters."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def made_before(path: Path, identity: Any, without: Sequence[str] = ()) -> pd.DataFrame | None:
    """The table at `path` if it was made with this identity, else None. without: columns that are
    not read."""
    if not path.exists():
        return None
    columns = [name for name in pq.read_schema(path).names if name not in without]
    frame = pd.read_parquet(path, columns=columns)
    return frame if frame.attrs.get("identity") == fingerprint(identity) else None


def write_made(frame: pd.DataFrame, path: Path, identity: Any) -> None:
    """Write a table with its identity, whole or not at all; another one there is set aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.attrs["identity"] = fingerprint(identity)
    part = path.with_name(f"{path.name}.part")
    frame.to_parquet(part, index=False)
    if path.exists():
        set_aside(path)
    part.rename(path)


def resolve(named: str | Callable[..., Any], known: Mapping[str, str] | None = None) -> Callable:
    """The function that a profile names, as `module:function` or by a short name of `known`
    (short name -> `module:function`). A function is given back as it is.

    Raises:
        WorkbenchError: there is no such name, module or function.
    """
    if callable(named):
        return named
    full = (known or {}).get(named, named)
    module, colon, name = str(full).partition(":")
    if not colon:
        short = f"{', '.join(known)} or " if known else ""
        raise WorkbenchError(f"{named!r} names no function: expected {short}MODULE:FUNCTION")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise WorkbenchError(f"{named!r} can't be found: {error}") from error
    if not callable(found):
        raise WorkbenchError(f"{named!r} is no function")
    return found


def describe(function: Callable[..., Any], within: tuple[Any, ...] = ()) -> dict[str, Any]:
    """What a function is, as JSON: of a module, its name and the module's closure; of a notebook,
    its source and what it uses from around it, in turn.

    within: functions that are being described already, and may be used again by those they use.

    Raises:
        WorkbenchError: it uses something from its notebook that can't be described.
    """
    if isinstance(function, functools.partial):
        given = {"args": list(function.args), "keywords": function.keywords}
        told = _plain(given, "a partial's arguments", within)
        return {"partial": describe(function.func, within), **told}
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        raise WorkbenchError(f"{function!r} is no plain function: write it with def")
    if function.__module__ != "__main__" and "<locals>" not in function.__qualname__:
        name = f"{function.__module__}:{function.__qualname__}"
        return {"function": name, "source": closure(function.__module__)}
    if function in within:
        return {"again": function.__qualname__}
    return {"source": _source(function), "uses": _uses(function, (*within, function))}


def _source(function: FunctionType) -> str:
    """The text of a function without its indentation, comments and empty lines."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
        return ast.unparse(ast.parse(text))
    except (OSError, SyntaxError):  # a lambda in the middle of a line, or typed at a prompt
        return function.__code__.co_code.hex() + repr(function.__code__.co_consts)


def _uses(function: FunctionType, within: tuple[Any, ...]) -> dict[str, Any]:
    """Every value that a function takes from around it: globals, closure, defaults."""
    around = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    values = {name: cell.cell_contents for name, cell in around.items()}
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            values[name] = function.__globals__[name]
    values |= {"(defaults)": function.__defaults__, "(keywords)": function.__kwdefaults__}
    return {n: _value(value, n, within) for n, value in values.items() if value is not None}


def _global_names(code: CodeType) -> set[str]:
    """Not `co_names`, in which the names of attributes stand too."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return own.union(*map(_global_names, inner))


def _value(value: Any, name: str, within: tuple[Any, ...]) -> Any:
    if isinstance(value, ModuleType):
        return closure(value.__name__)
    if isinstance(value, type):
        return closure(value.__module__) if value.__module__ != "__main__" else _class(value)
    if isinstance(value, FunctionType | functools.partial):
        return describe(value, within)
    if callable(value):  # a builtin, a method of an installed package
        return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', type(value))}"
    return _plain(value, name, within)


def _class(value: type) -> str:
    return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(value))))


def _plain(value: Any, name: str, within: tuple[Any, ...]) -> Any:
    """A value as JSON keeps it."""
    if isinstance(value, Mapping):
        return {str(k): _value(inner, f"{name}[{k!r}]", within) for k, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [_value(inner, f"an item of {name}", within) for inner in ordered]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if hasattr(value, "tobytes"):  # an array
        return hashlib.sha256(value.tobytes()).hexdigest()
    raise WorkbenchError(
        f"a function of the recipe uses {name}, a {type(value).__name__}: whether that has changed "
        "can't be told. Give it what it needs as numbers, texts, lists or functions"
    )


def imported(tree: ast.AST, door: bool = False) -> Iterator[str]:
    """The modules that a piece of source imports when it runs (and names that may be modules), in
    its functions too; not what is there for type checkers only, but for a package's front door,
    which hands that out when it is asked for."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test) and not door:
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom) and tree.module and not tree.level:
        yield tree.module
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from imported(child, door)


def closure(*modules: str) -> dict[str, str]:
    """Module -> digest of its source (comments and layout apart): these modules and all that they
    import, of npr_lib or of one's own; what is installed is known by its version. C, JavaScript,
    CSS and HTML that lie beside a module of npr_lib are counted with it."""
    found: dict[str, str] = {}
    queue = list(modules)
    while queue:
        name = queue.pop()
        if name in found or (path := _file(name)) is None:
            continue
        found[name], more = _read(path, path.stat().st_mtime_ns)
        queue += more
        if path.is_relative_to(PACKAGE):
            found |= {f.name: digest(f) or "" for f in _resources(path)}
            queue += [name.rpartition(".")[0]] if "." in name else []  # a package runs first
    return dict(sorted(found.items()))


@lru_cache(maxsize=256)
def _read(path: Path, _changed: int) -> tuple[str, tuple[str, ...]]:
    """Digest of a module, and what it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(
        imported(tree, door=path.name == "__init__.py")
    )


def _resources(path: Path) -> Iterable[Path]:
    """What belongs to a module of npr_lib and is no Python: X.c of X.py, and a folder of scripts
    without a module of its own."""
    same = (path.with_suffix(suffix) for suffix in RESOURCES)
    folders = (f for f in path.parent.iterdir() if f.is_dir() and not (f / "__init__.py").exists())
    inside = (f for folder in folders for f in folder.iterdir() if f.suffix in RESOURCES)
    return [*(f for f in same if f.exists()), *sorted(inside)]


def _file(name: str) -> Path | None:
    """The source of a module of npr_lib or of one's own; None for anything else."""
    top, *inner = name.split(".")
    root = _own(top)
    if root is None or not inner:
        return root
    base = root.parent.joinpath(*inner)
    found = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in found if root.name == "__init__.py" and path.exists()), None)


@lru_cache(maxsize=1024)
def _own(top: str) -> Path | None:
    """The file of a top-level module that is neither installed nor of Python itself."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # `__main__` has none
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    standard = path.is_relative_to(Path(ast.__file__).parent)
    return None if installed or standard else path
