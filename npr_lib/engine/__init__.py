"""The NPR Engine: branches decoded at once over a shared KV prefix, joined for free."""

from npr_lib.engine.api import Engine, EngineConfig, SamplingParams
from npr_lib.engine.kv import KVPool, PoolExhaustedError
from npr_lib.engine.torch_engine import TorchEngine

__all__ = [
    "Engine",
    "EngineConfig",
    "KVPool",
    "PoolExhaustedError",
    "SamplingParams",
    "TorchEngine",
]
