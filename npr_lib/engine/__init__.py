"""The NPR Engine: branches decoded at once over a shared KV prefix, joined without recomputation."""

from npr_lib.engine.api import Engine, EngineConfig, SamplingParams
from npr_lib.engine.kv import KVPool, PoolExhausted
from npr_lib.engine.torch_engine import TorchEngine

__all__ = ["Engine", "EngineConfig", "KVPool", "PoolExhausted", "SamplingParams", "TorchEngine"]
