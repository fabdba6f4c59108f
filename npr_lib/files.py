"""Files: where the package lies, whether something is what it was, writing without a half."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
REPOSITORY = PACKAGE.parent
ADAPTER = "adapter_config.json"  # in a model folder that is an adapter of peft's
TRAINING = "training.json"  # in a training folder: what is trained there


def relative(path: Path, base: Path | None = None) -> str:
    """A path as short as it can be typed from `base` (None: from here): relative where it lies
    inside, so that no page tells where."""
    path, base = path.resolve(), (base or Path.cwd()).resolve()
    return str(path.relative_to(base) if path.is_relative_to(base) else path)


def digest(path: Path) -> str | None:
    """sha256 of a file's content, or of all files of a folder with their names; None: missing."""
    if not path.exists():
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return _digest_files(files, path)


def _digest_files(files: Sequence[Path], base: Path) -> str:
    total = hashlib.sha256()
    for path in files:
        status = path.stat()
        content = _digest_file(path, status.st_size, status.st_mtime_ns)
        total.update(f"{path.relative_to(base).as_posix()} {content}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _digest_file(path: Path, size: int, changed: int) -> str:
    """sha256 of a file, read once while its size and time of change stay: weights are large."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_of(folder: Path | str) -> Path | str | None:
    """The model that an adapter folder stands on: a folder, by the way to it that is written there,
    or a hub id; None for a folder that is no adapter."""
    path = Path(folder) / ADAPTER
    if not path.is_file():
        return None
    named = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    return Path(folder) / named if (Path(folder) / named).is_dir() else named


def model_digest(folder: Path) -> str | None:
    """sha256 of what a model folder decodes with: weights, configuration, tokenizer, mode; of an
    adapter also those of its base, wherever that lies. How it was made (its log, its rollouts, its
    card, the record of its training) is no part of it."""
    apart = {TRAINING, "log.jsonl", "README.md"}
    if not folder.is_dir():
        return None
    base = base_of(folder)
    own = _digest_files(
        sorted(
            f
            for f in folder.iterdir()
            if f.is_file() and f.name not in apart and (base is None or f.name != ADAPTER)
        ),
        folder,
    )
    if base is None:
        return own
    said = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    said["base_model_name_or_path"] = model_digest(base) if isinstance(base, Path) else base
    return hashlib.sha256(json.dumps([own, said], sort_keys=True).encode()).hexdigest()


def set_aside(path: Path) -> Path:
    """Move a file or folder into `aside` beside it, named by date; returns where it is now."""
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = path.parent / "aside"
    folder.mkdir(exist_ok=True)
    target = folder / f"{path.stem}-{moment}{path.suffix}"
    for number in itertools.count(2):
        if not target.exists():
            return path.rename(target)
        target = folder / f"{path.stem}-{moment}-{number}{path.suffix}"
    raise AssertionError("there is always a free name")


def write_text(path: Path, text: str) -> None:
    """Write atomically: a reader, or a run that was killed, sees the old file or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
