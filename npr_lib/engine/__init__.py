"""The NPR Engine: branches decoded at once over a shared KV prefix, joined for free."""

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
