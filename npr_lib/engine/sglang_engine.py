"""The NPR Engine on stock SGLang: the same calls and the same Trajectory as the embedded engine.

    engine = SGLangEngine("path/to/model", EngineConfig())       # SGLang in this process's children
    engine = SGLangEngine(url="http://host:30000")               # a `python -m npr_lib serve` there
    trajectories = engine.generate(["1+1?"], SamplingParams(max_tokens=64), n=8)

Decoding happens in SGLang's scheduler (sglang_plugin.py); this is its client. What it does not do
as the embedded engine does is in docs/sglang.md.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npr_lib.engine.api import EngineConfig, EngineStats, Prefix, SamplingParams
from npr_lib.engine.sampling import hash_ids, mix
from npr_lib.engine.sglang_plugin import SWITCH
from npr_lib.engine.sglang_wire import KEY, Settings, from_wire, pack
from npr_lib.layout import BranchPath, by_branch, layout, sampled_tokens
from npr_lib.tokenizer import TagIds, encode
from npr_lib.trajectory import Mode, Trajectory


class SGLangEngine:
    """Implements `npr_lib.engine.api.Engine` over `sglang.Engine`, or over a server's url.

    server_args: any of SGLang's own (tp_size, attention_backend, ...).
    """

    def __init__(
        self,
        model_path: str | Path | None = None,
        config: EngineConfig | None = None,
        url: str | None = None,
        **server_args: Any,
    ) -> None:
        if (model_path is None) == (url is None):
            raise ValueError("SGLangEngine wants a model_path, or the url of a server")
        self.config = config or EngineConfig()
        self.stats = EngineStats()
        self.url = url
        self.engine = None
        if url is None:
            arguments = server_arguments(str(model_path), self.config) | server_args
            self.engine = launch(arguments)
            self.tokenizer = self.engine.tokenizer_manager.tokenizer
        else:
            raise NotImplementedError

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        mode: Mode = "parallel",
        prefix: Prefix | Sequence[Prefix | None] | None = None,
        best_of: int | None = None,
    ) -> list[Trajectory]:
        """n trajectories for every prompt, as `TorchEngine.generate` gives them."""
        if best_of is not None and best_of < n:
            raise ValueError(f"best_of = {best_of}: expected at least n = {n}")
        if isinstance(prompts, str):
            raise ValueError("prompts is one text: expected a list of prompts")
        params = _one_each(params, SamplingParams, len(prompts), "params")
        prefixes = _one_each(prefix, Mapping | None, len(prompts), "prefix")
        samples = best_of or n
        occurrences: Counter[int] = Counter()
        ids, settings = [], []
        for index, (prompt, own, start) in enumerate(zip(prompts, params, prefixes, strict=True)):
            prompt_ids = self._prompt_ids(prompt, index)
            digest = hash_ids(prompt_ids)
            seed = mix(own.seed, digest, occurrences[digest])
            occurrences[digest] += 1
            for i in range(samples):
                ids.append(prompt_ids)
                settings.append(self._settings(own, mode, mix(seed, i), prefix=start))
        trajectories = self._run(ids, settings)
        if best_of is None:
            return trajectories
        groups = [trajectories[i : i + samples] for i in range(0, len(trajectories), samples)]
        return [t for group in groups for t in sorted(group, key=_mean_logprob)[: -n - 1 : -1]]

    def replay(self, trajectory: Trajectory, mode: Mode) -> Trajectory:
        """Decode the tokens of a trajectory again, as `TorchEngine.replay` does."""
        return self.replay_all([trajectory], mode)[0]

    def replay_all(self, trajectories: Sequence[Trajectory], mode: Mode) -> list[Trajectory]:
        """`replay` of several trajectories in one batch."""
        settings = [self.replay_settings(t, mode) for t in trajectories]
        replayed = self._run([t.prompt_ids for t in trajectories], settings)
        for again, t in zip(replayed, trajectories, strict=True):
            if again.completion_ids != t.completion_ids:
                raise ValueError(
                    f"replay ended after {again.work} of {t.work} tokens "
                    f"({again.violation or again.finish_reason})"
                )
            again.finish_reason, again.violation = t.finish_reason, t.violation
        return replayed

    def replay_settings(self, trajectory: Trajectory, mode: Mode) -> Settings:
        """What a request that replays this trajectory asks for."""
        params = SamplingParams(max_tokens=trajectory.work, temperature=trajectory.temperature)
        own = self._settings(params, mode, 0, forced=self._forced(trajectory, mode))
        return replace(own, max_branches=trajectory.max_branches, max_depth=trajectory.max_depth)

    def report(self) -> dict[str, int]:
        """num_slots, num_used and num_cached as `KVPool` counts them, of all ranks' first."""
        return self.engine.get_server_info()["internal_states"][0][KEY]

    def weights_changed(self) -> None:
        """Forget all KV of the old weights."""
        self.engine.flush_cache()

    def shutdown(self) -> None:
        """End the engine's processes."""
        if self.engine is not None:
            self.engine.shutdown()
            self.engine = None

    def _settings(self, params: SamplingParams, mode: Mode, key: int, **more: Any) -> Settings:
        return Settings(params, mode, key, self.config.max_branches, self.config.max_depth, **more)

    def _prompt_ids(self, prompt: str | Sequence[int], index: int) -> list[int]:
        ids = (
            encode(prompt, self.tokenizer) if isinstance(prompt, str) else [int(i) for i in prompt]
        )
        if not ids:
            raise ValueError(f"prompt {index} is empty")
        return ids

    def _forced(self, trajectory: Trajectory, mode: Mode) -> dict[BranchPath, list[int]]:
        ids = trajectory.completion_ids
        if mode == "sequential":
            return {(): ids}
        every = trajectory.prompt_ids + ids
        structure = trajectory.layout
        if trajectory.mode == "sequential":
            tags = TagIds.from_tokenizer(self.tokenizer)
            structure = layout(every, tags, len(trajectory.prompt_ids))
        return by_branch(structure, ids, sampled_tokens(every, structure, self.tokenizer))

    def _run(self, prompts: list[list[int]], settings: list[Settings]) -> list[Trajectory]:
        sampling = [
            {"max_new_tokens": own.params.max_tokens, "custom_params": pack(own)}
            for own in settings
        ]
        if not prompts:
            return []
        outputs = self.engine.generate(input_ids=prompts, sampling_params=sampling)
        return [
            _trajectory(output, prompt) for output, prompt in zip(outputs, prompts, strict=True)
        ]


def _trajectory(output: Mapping[str, Any], prompt: Sequence[int]) -> Trajectory:
    meta = output["meta_info"]
    reason = meta["finish_reason"]
    if reason["type"] == "abort":
        raise ValueError(reason["message"])
    if KEY not in meta:
        raise RuntimeError(f"the server does not know NPR: start it with {SWITCH}=1")
    return from_wire(meta[KEY][-1], prompt)


def server_arguments(model_path: str, config: EngineConfig) -> dict[str, Any]:
    """SGLang's arguments for an engine of this configuration; on a machine without a GPU, those
    of its CPU path."""
    slots = config.num_slots
    arguments: dict[str, Any] = {
        "model_path": model_path,
        "max_total_tokens": slots,
        # A request's row holds the tokens of all branches, of which positions know nothing.
        "context_length": slots + 1,
        "max_running_requests": config.max_running * config.max_branches,
        "page_size": 1,
        "disable_overlap_schedule": True,
        "chunked_prefill_size": -1,
    }
    if not torch.cuda.is_available():
        arguments |= {
            "device": "cpu",
            "dtype": "float32",
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "disable_cuda_graph": True,
            "disable_custom_all_reduce": True,
            "mem_fraction_static": 0.3,
        }
    return arguments


def prepare_environment() -> None:
    """What SGLang's processes must find in their environment, before it is imported."""
    os.environ[SWITCH] = "1"
    os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"
    if not torch.cuda.is_available():
        if os.environ.get("SGLANG_USE_CPU_ENGINE") != "1" and "sglang" in sys.modules:
            raise RuntimeError("sglang was imported without SGLANG_USE_CPU_ENGINE=1")
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def launch(arguments: Mapping[str, Any]) -> Any:
    """`sglang.Engine` with the plugin."""
    prepare_environment()
    import sglang

    return sglang.Engine(**arguments)


def _one_each(values: object, kind: object, count: int, name: str) -> Sequence[Any]:
    if isinstance(values, kind):
        return [values] * count
    if len(values) != count:
        raise ValueError(f"{len(values)} {name} for {count} prompts")
    return values


def _mean_logprob(trajectory: Trajectory) -> float:
    return float(np.nanmean(trajectory.logprobs))
