"""The NPR Engine: branches decoded at once over a shared KV prefix, joined for free.

What it is configured with and what happens in it (`api`) is imported at once; the engines, which
bring torch and transformers along, when they are asked for: a profile is read in a moment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from npr_lib.engine.api import (
    BranchEnd,
    Engine,
    EngineConfig,
    EngineStats,
    Event,
    Finish,
    Fork,
    Join,
    Preempt,
    Prefix,
    Resume,
    SamplingParams,
    Token,
)

if TYPE_CHECKING:
    from npr_lib.engine.kv import KVPool, PoolExhaustedError
    from npr_lib.engine.sglang.engine import SGLangEngine
    from npr_lib.engine.torch_engine import TorchEngine

__all__ = [
    "BranchEnd",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Event",
    "Finish",
    "Fork",
    "Join",
    "KVPool",
    "PoolExhaustedError",
    "Preempt",
    "Prefix",
    "Resume",
    "SGLangEngine",
    "SamplingParams",
    "Token",
    "TorchEngine",
]

_HOMES = {
    "KVPool": "npr_lib.engine.kv",
    "PoolExhaustedError": "npr_lib.engine.kv",
    "SGLangEngine": "npr_lib.engine.sglang.engine",
    "TorchEngine": "npr_lib.engine.torch_engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
