"""The NPR Engine on stock SGLang: the same calls and the same Trajectory as the embedded engine.

    engine = SGLangEngine("path/to/model", EngineConfig())       # SGLang in this process's children
    engine = SGLangEngine(url="http://host:30000")               # a `python -m npr_lib serve` there
    trajectories = engine.generate(["1+1?"], SamplingParams(max_tokens=64), n=8)

Decoding happens in SGLang's scheduler (plugin.py); this is its client. What it does not do
as the embedded engine does is in docs/sglang.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from npr_lib.engine.adapter import merged
from npr_lib.engine.api import EngineConfig, Event, Finish, Prefix, SamplingParams
from npr_lib.engine.arguments import best, forced, read_call, replayed
from npr_lib.engine.attention import use_npr_attention
from npr_lib.engine.checkpoint import merge_folder, style_for
from npr_lib.engine.sglang.backend import InProcess, Server, server_arguments
from npr_lib.engine.sglang.wire import KEY, Settings, event_from_wire, from_wire, pack
from npr_lib.files import base_of
from npr_lib.reasoning.trajectory import Mode, Trajectory


class SGLangEngine:
    """Implements `npr_lib.engine.api.Engine` over `sglang.Engine`, or over a server's url.

    model: one that is being trained; `weights_changed` then hands its weights to SGLang.
    tokenizer: the model's [the one at the model's path].
    server_args: any of SGLang's own (tp_size, attention_backend, ...).
    """

    def __init__(
        self,
        model_path: str | Path | None = None,
        config: EngineConfig | None = None,
        url: str | None = None,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **server_args: Any,
    ) -> None:
        if (model_path is None) == (url is None):
            raise ValueError("SGLangEngine wants a model_path, or the url of a server")
        self.config = config or EngineConfig()
        self.model: PreTrainedModel | None = None
        self._calls = 0
        if model_path is not None:
            path: str | Path = model_path
            if base_of(path) is not None:  # SGLang knows no rows of an embedding in an adapter
                self._merged = TemporaryDirectory(prefix="npr-merged-")
                merge_folder(Path(path), Path(self._merged.name))
                path = self._merged.name
            self.backend: InProcess | Server = InProcess(
                server_arguments(str(path), self.config) | server_args
            )
        else:
            assert url is not None
            if server_args:
                raise ValueError(f"a running server takes no {', '.join(server_args)}")
            self.backend = server = Server(url)
            path = server.tokenizer_path()
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(path)
        self.style = style_for(self.tokenizer, self.config)
        self.context = self.report()["context"]
        if model is not None:
            self.follow(model)

    def follow(self, model: PreTrainedModel | None) -> None:
        """From now on `weights_changed` hands the weights of this model to SGLang (None: of none).
        It gets the attention that a trainer needs for the trajectories' layouts."""
        if model is not None:
            use_npr_attention(model)
        self.model = model

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
        samples = best_of or n
        trajectories = self._run(*self._requests(prompts, params, samples, mode, prefix), samples)
        return trajectories if best_of is None else best(trajectories, n, best_of)

    def stream(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        mode: Mode = "parallel",
        prefix: Prefix | Sequence[Prefix | None] | None = None,
    ) -> Iterator[Event]:
        """The responses of `generate`, event by event; closing the iterator withdraws what has not
        ended. Events come when SGLang sends their response's next token in final order, at most a
        few steps after they happened."""
        ids, settings = self._requests(prompts, params, n, mode, prefix)
        settings = [replace(own, events=True) for own in settings]
        self._calls += 1
        return self._stream(self._calls, ids, settings)

    def replay(self, trajectory: Trajectory, mode: Mode) -> Trajectory:
        """Decode the tokens of a trajectory again, as `TorchEngine.replay` does."""
        return self.replay_all([trajectory], mode)[0]

    def replay_all(self, trajectories: Sequence[Trajectory], mode: Mode) -> list[Trajectory]:
        """`replay` of several trajectories in one batch."""
        settings = [self.replay_settings(t, mode) for t in trajectories]
        again = self._run([t.prompt_ids for t in trajectories], settings)
        return replayed(again, trajectories, self.context)

    def replay_settings(self, trajectory: Trajectory, mode: Mode) -> Settings:
        """What a request that replays this trajectory asks for."""
        params = SamplingParams(max_tokens=trajectory.work, temperature=trajectory.temperature)
        writes = forced(trajectory, mode, self.tokenizer)
        own = self._settings(params, mode, 0, forced=writes)
        return replace(
            own,
            max_branches=trajectory.max_branches,
            max_depth=trajectory.max_depth,
            style=trajectory.style,
        )

    def report(self) -> dict[str, int]:
        """num_slots, num_used and num_cached as `KVPool` counts them; of the first rank."""
        return self.backend.report()

    def weights_changed(self) -> None:
        """Take over the weights of the model that is being trained, if there is one, and forget
        all KV of the old ones."""
        if self.model is None:
            self.backend.flush()
        else:
            self.backend.update_weights(merged(self.model))

    def shutdown(self) -> None:
        """End the engine's processes; a server goes on."""
        self.backend.shutdown()

    def _requests(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        n: int,
        mode: Mode,
        prefix: Prefix | Sequence[Prefix | None] | None,
    ) -> tuple[list[list[int]], list[Settings]]:
        """Prompt ids and settings of n responses for each prompt."""
        ids, settings = [], []
        for asked in read_call(prompts, params, n, prefix, self.tokenizer, self.context):
            ids += [asked.prompt_ids] * n
            settings += [
                self._settings(asked.params, mode, key, prefix=asked.prefix) for key in asked.keys
            ]
        return ids, settings

    def _settings(self, params: SamplingParams, mode: Mode, key: int, **more: Any) -> Settings:
        limits = (self.config.max_branches, self.config.max_depth)
        return Settings(params, mode, key, *limits, style=self.style, **more)

    def _run(
        self, prompts: list[list[int]], settings: list[Settings], samples: int = 1
    ) -> list[Trajectory]:
        if not prompts:
            return []
        # The first sample of every prompt, then the second of every prompt: those find it cached.
        order = sorted(range(len(prompts)), key=lambda i: i % samples)
        sampling = [_sampling(settings[i]) for i in order]
        outputs = self.backend.generate([prompts[i] for i in order], sampling)
        answers = dict(zip(order, outputs, strict=True))
        return [_trajectory(answers[i], prompt) for i, prompt in enumerate(prompts)]

    def _stream(
        self, call: int, prompts: list[list[int]], settings: list[Settings]
    ) -> Iterator[Event]:
        told = [0] * len(prompts)
        since = time.perf_counter()
        for output in self.backend.stream(prompts, [_sampling(own) for own in settings]):
            index, meta = output["index"], output["meta_info"]
            entries = meta.get(KEY, [])[told[index] :]
            told[index] += len(entries)
            for entry in filter(None, entries):
                for values in entry.get("events", ()):
                    yield event_from_wire(values, call, index)
            if meta["finish_reason"] is not None:
                trajectory, seconds = (
                    _trajectory(output, prompts[index]),
                    time.perf_counter() - since,
                )
                step = max(trajectory.decode_steps)
                yield Finish(call, index, step, seconds, (), trajectory)


def _sampling(settings: Settings) -> dict[str, Any]:
    return {"max_new_tokens": settings.params.max_tokens, "custom_params": pack(settings)}


def _trajectory(output: Mapping[str, Any], prompt: Sequence[int]) -> Trajectory:
    meta = output["meta_info"]
    reason = meta["finish_reason"]
    if reason["type"] == "abort":
        raise ValueError(reason["message"])
    return from_wire(meta[KEY][-1]["trajectory"], prompt)
