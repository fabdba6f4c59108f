"""The rooms of the house: what lies where, and that every import goes down."""

import ast
from pathlib import Path

import npr_lib

PACKAGE = Path(npr_lib.__file__).parent
# From the ground up. A room may import from itself and from the rooms above it in this list; files
# beside the rooms are rooms of their own. `a.b` is a room within `a`, and counted apart from it.
ORDER = (
    *("npr_lib", "files", "identity", "progress", "side_by_side"),
    *("reasoning", "engine", "engine.sglang", "verify", "rewards", "tasks", "tasks.parts"),
    *("profiles", "train", "analysis", "viz", "viz.explorer"),
    *("workbench.pages", "workbench", "bench", "__main__"),
)
# A package's own front door may show what its inner room has.
FRONT_DOORS = {("engine", "engine.sglang"), ("viz", "viz.explorer")}


def room(module: str) -> str:
    """The room of a module, given without `npr_lib.`."""
    return max((r for r in ORDER if f"{module}.".startswith(f"{r}.")), key=len, default="npr_lib")


def imports(path: Path):
    """Every module of npr_lib that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "npr_lib" or (node.module or "").startswith("npr_lib."):
                for alias in node.names:
                    inner = PACKAGE.joinpath(*node.module.split(".")[1:], alias.name)
                    is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                    yield node.module + (f".{alias.name}" if is_module else "")
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "npr_lib")


def arrows():
    """(room, room it imports from, file) for every import of another room."""
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        here = room(own.removesuffix(".__init__"))
        for module in imports(path):
            there = room(module.removeprefix("npr_lib").lstrip("."))
            if there != here and not (path.name == "__init__.py" and (here, there) in FRONT_DOORS):
                yield here, there, path.relative_to(PACKAGE).as_posix()


def test_every_arrow_goes_down():
    up = [arrow for arrow in arrows() if ORDER.index(arrow[1]) > ORDER.index(arrow[0])]
    assert not up


def test_the_test_sees_an_arrow_that_goes_up():
    assert room("engine.sglang.plugin") == "engine.sglang" and room("engine.api") == "engine"
    assert ("train", "engine", "train/trainer.py") in set(arrows())


def test_every_folder_is_a_room_with_a_word_on_what_lives_there():
    for folder in sorted(p for p in PACKAGE.rglob("*") if p.is_dir()):
        name = folder.relative_to(PACKAGE).as_posix().replace("/", ".")
        if "__pycache__" in name or not list(folder.glob("*.py")):
            continue
        assert name in ORDER, f"{name} is no room of the house"
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), name


def test_modules_import_one_another_in_no_circle():
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
        graph[name.removesuffix(".__init__")] = set(imports(path))
    seen, done = [], set()

    def visit(module):
        assert module not in seen, f"a circle: {' -> '.join([*seen[seen.index(module) :], module])}"
        if module in done or module not in graph:
            return
        seen.append(module)
        for other in graph[module]:
            visit(other)
        done.add(seen.pop())

    for module in graph:
        visit(module)
