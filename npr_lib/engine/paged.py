"""Decode attention on a CPU that reads the pool in place: paged.c, compiled at first use.

Where there is no C compiler attention.py gathers what a row sees, which gives the same numbers and
costs a copy of all visible KV in every layer of every step.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

_SOURCE = Path(__file__).with_suffix(".c")
_COMPILE = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-c"]
# Not linked with -ffast-math: that would switch off denormal numbers in the whole process.
_LINK = ["-shared", "-fopenmp"]


@cache
def kernel() -> Callable[..., int] | None:
    """The compiled function, or None (with a warning, once) if it can't be had."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        warnings.warn("no C compiler: decoding on the CPU copies the KV cache", stacklevel=2)
        return None
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache_home / "npr_lib" / f"paged-{_fingerprint(compiler)}.so"
    try:
        if not target.exists():
            _build(compiler, target)
        function = ctypes.CDLL(str(target)).npr_paged_attention
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or error
        warnings.warn(f"decoding on the CPU copies the KV cache: {detail}", stacklevel=2)
        return None
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [pointer, size, size, pointer, pointer, pointer, size, pointer, pointer]
    function.argtypes += [size, size, size, size, size, ctypes.c_float, pointer]
    return function


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: np.ndarray,
    rows: np.ndarray,
    lengths: np.ndarray,
    fresh: int,
    scale: float,
    output: torch.Tensor,
) -> None:
    """Attention of `fresh` new tokens for each of R slot tables, on the CPU in float32.

    query: [heads, R * fresh, d], of any strides but that of d. keys, values: [num_slots, kv_heads,
    d]. tables: int64 [*, width]; rows, lengths: int64 [R], whose table, and how many of its slots
    the row's last token sees. output: [R * fresh, heads, d]. All but the query contiguous.
    """
    heads, tokens, dim = query.shape
    # The kernel sees addresses: what lies otherwise in memory would be silently wrong.
    assert query.stride(2) == 1 and output.is_contiguous(), "not as the kernel reads and writes"
    assert output.shape == (tokens, heads, dim) and tokens == len(rows) * fresh
    assert keys.is_contiguous() and values.is_contiguous()
    assert keys.shape == values.shape and keys.shape[2] == dim
    attend = kernel()
    assert attend is not None, "to be called only where there is a kernel"
    failed = attend(
        query.data_ptr(),
        query.stride(1),
        query.stride(0),
        keys.data_ptr(),
        values.data_ptr(),
        tables.ctypes.data,
        tables.shape[1],
        rows.ctypes.data,
        lengths.ctypes.data,
        len(rows),
        fresh,
        heads,
        keys.shape[1],
        dim,
        scale,
        output.data_ptr(),
    )
    if failed:
        raise MemoryError(f"attention of {len(rows)} rows, up to {lengths.max()} tokens each")


def _fingerprint(compiler: str) -> str:
    """Changes with the source, the compiler and the processor that -march=native means."""
    cpu = Path("/proc/cpuinfo")
    flags = (
        next((s for s in cpu.read_text().splitlines() if s.startswith("flags")), "")
        if (cpu.exists())
        else platform.processor()
    )
    parts = [_SOURCE.read_text(), compiler, platform.machine(), flags, *_COMPILE, *_LINK]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _build(compiler: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built, compiled = Path(folder, "paged.so"), Path(folder, "paged.o")
        for command in (
            [compiler, *_COMPILE, str(_SOURCE), "-o", str(compiled)],
            [compiler, *_LINK, str(compiled), "-lm", "-o", str(built)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True)
        built.replace(target)  # in one move: others may be building it too
