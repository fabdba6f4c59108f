"""Where SGLang runs: `InProcess`, as children of this process, or a `Server` somewhere else."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.client import HTTPResponse
from importlib import import_module
from importlib.util import find_spec
from queue import Queue
from threading import Event, Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

import torch
from transformers import PreTrainedModel

from npr_lib import WorkbenchError
from npr_lib.engine.api import EngineConfig
from npr_lib.engine.sglang.plugin import SWITCH, refusals
from npr_lib.engine.sglang.wire import KEY

_MISSING = "SGLang is not installed here: pip install 'npr-workbench[sglang]' (docs/sglang.md)"
_BUCKET = 512 * 2**20  # bytes of weights handed over at once
_AT_ONCE = 512  # requests to a server at once


def cpu_arguments() -> dict[str, Any]:
    """SGLang's arguments on a machine without a GPU (its tests' CPU path); {} with one."""
    if torch.cuda.is_available():
        return {}
    return {
        "device": "cpu",
        "dtype": "float32",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        "disable_custom_all_reduce": True,
        "mem_fraction_static": 0.3,
        "sleep_on_idle": True,
        "chunked_prefill_size": -1,
    }


def server_arguments(model_path: str, config: EngineConfig) -> dict[str, Any]:
    """SGLang's arguments for an engine of this configuration."""
    return {
        "model_path": model_path,
        "max_total_tokens": config.num_slots,
        # A request's row holds the tokens of all branches, of which positions know nothing.
        "context_length": config.num_slots + 1,
        "max_running_requests": config.max_running * config.max_branches,
        "page_size": 1,
        "disable_overlap_schedule": True,
        **cpu_arguments(),
        "chunked_prefill_size": config.max_step_tokens,
        **(config.sglang or {}),
    }


def environment() -> dict[str, str]:
    """What SGLang's processes must find in their environment when they start."""
    own = {SWITCH: "1", "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
    if not torch.cuda.is_available():
        own |= {"SGLANG_USE_CPU_ENGINE": "1"}
        # Left to itself it takes a thread a core in each process, and is 10 to 20 times slower.
        own |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return own


def serve(model_path: str, options: Sequence[str]) -> None:
    """Become SGLang's own server with the plugin. options: SGLang's, stronger than the defaults."""
    if find_spec("sglang") is None:
        raise WorkbenchError(_MISSING)
    arguments = ["--model-path", model_path, "--page-size", "1", "--disable-overlap-schedule"]
    for name, value in cpu_arguments().items():
        arguments.append("--" + name.replace("_", "-"))
        arguments += [] if value is True else [str(value)]
    command = [sys.executable, "-m", "sglang.launch_server", *arguments, *options]
    os.execve(sys.executable, command, {**os.environ, **environment()})


class InProcess:
    """`sglang.Engine` with the plugin."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        problems = refusals(arguments)
        if problems:  # here, since what a scheduler raises while it starts ends this process
            raise ValueError("NPR on SGLang: " + "; ".join(problems))
        own = environment()
        if sys.modules.get("sglang") and any(os.environ.get(k) != v for k, v in own.items()):
            raise RuntimeError("sglang was imported before the first SGLangEngine was made")
        os.environ.update(own)
        try:
            import sglang
        except ImportError as error:
            raise WorkbenchError(f"{_MISSING} ({error})") from error
        known = import_module("sglang.srt.server_args").ServerArgs.__annotations__
        if unknown := set(arguments) - set(known):
            raise WorkbenchError(
                f"SGLang {sglang.__version__} has no argument {', '.join(sorted(unknown))} "
                "(engine.sglang in a profile)"
            )
        self.engine = sglang.Engine(**arguments)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """SGLang's answers, one a prompt. Whatever ends the call withdraws what has not ended.
        ValueError for what can't be served, RuntimeError for what went wrong."""
        names = _names(len(prompts))
        try:
            return self.engine.generate(
                input_ids=list(prompts), sampling_params=list(sampling), rid=names
            )
        except Exception as error:
            if not hasattr(error, "detail"):
                raise
            # An internal error comes as an exception of SGLang's web framework.
            raise RuntimeError(error.detail) from error
        finally:
            self._withdraw(names)

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Mapping[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """SGLang's answers as they grow; `index` says whose."""
        names = _names(len(prompts))
        if not names:
            return
        try:
            yield from self.engine.generate(
                input_ids=list(prompts), sampling_params=list(sampling), rid=names, stream=True
            )
        finally:
            self._withdraw(names)

    def _withdraw(self, names: Sequence[str]) -> None:
        manager = self.engine.tokenizer_manager
        for name in names:
            if name in manager.rid_to_state:
                manager.abort_request(name)

    def report(self) -> dict[str, int]:
        return self.engine.get_server_info()["internal_states"][0][KEY]

    def flush(self) -> None:
        answer = self.engine.flush_cache()
        if not answer.success:
            raise RuntimeError(f"SGLang could not flush its cache: {answer.message}")

    def update_weights(self, model: PreTrainedModel) -> None:
        """Hand over a model's weights in the type that SGLang computes in, and flush."""
        buckets = list(_buckets(model, self.engine.server_args.dtype))
        _succeeded(self.engine.begin_weight_update())
        for i, bucket in enumerate(buckets, 1):
            last = i == len(buckets)
            _succeeded(self.engine.update_weights_from_tensor(bucket, flush_cache=last))
        _succeeded(self.engine.end_weight_update())

    def shutdown(self) -> None:
        self.engine.shutdown()


class Server:
    """A `python -m npr_lib serve`, or a router in front of several."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if KEY not in self._internal_state():
            raise RuntimeError(
                f"{self.url} is an SGLang without NPR: start it with 'python -m npr_lib serve'"
            )

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """One HTTP request a response, so that a router can spread them."""
        bodies = [
            {"input_ids": list(prompt), "sampling_params": own}
            for prompt, own in zip(prompts, sampling, strict=True)
        ]
        with ThreadPoolExecutor(min(_AT_ONCE, len(bodies))) as pool:
            return list(pool.map(lambda body: self._post("/generate", body), bodies))

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Mapping[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """The answers as they grow; a thread a response. SGLang withdraws a request whose
        connection is closed."""
        inbox: Queue[dict[str, Any] | BaseException | None] = Queue()
        stop = Event()
        threads = [
            Thread(target=self._listen, args=(i, prompt, own, inbox, stop), daemon=True)
            for i, (prompt, own) in enumerate(zip(prompts, sampling, strict=True))
        ]
        for thread in threads:
            thread.start()
        try:
            left = len(threads)
            while left:
                output = inbox.get()
                if isinstance(output, BaseException):
                    raise output
                left -= output is None
                if output is not None:
                    yield output
        finally:
            stop.set()

    def _listen(
        self, index: int, prompt: Sequence[int], own: Mapping[str, Any], inbox: Queue, stop: Event
    ) -> None:
        body = {"input_ids": list(prompt), "sampling_params": own, "stream": True}
        try:
            with self._open("/generate", body) as answer:
                for line in answer:
                    if stop.is_set():
                        return
                    if line.startswith(b"data: {"):
                        inbox.put(json.loads(line[6:]) | {"index": index})
            inbox.put(None)
        except Exception as error:
            inbox.put(error)

    def report(self) -> dict[str, int]:
        return self._internal_state()[KEY]

    def tokenizer_path(self) -> str:
        return self._get("/model_info")["tokenizer_path"]

    def flush(self) -> None:
        with self._open("/flush_cache", {}) as answer:
            answer.read()

    def update_weights(self, model: PreTrainedModel) -> None:
        """Hand over a model's weights through a folder, which the server must see too (SGLang's
        HTTP interface takes tensors from the same machine only). It flushes its cache."""
        with tempfile.TemporaryDirectory(prefix="npr-weights-") as folder:
            weights = dict(_weights(model, self._get("/server_info")["dtype"]))
            model.save_pretrained(folder, state_dict=weights)
            self._post("/update_weights_from_disk", {"model_path": folder})

    def shutdown(self) -> None:
        """Whoever started the server ends it."""

    def _internal_state(self) -> dict[str, Any]:
        return self._get("/server_info")["internal_states"][0]

    def _get(self, path: str) -> Any:
        with self._open(path) as answer:
            return json.load(answer)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        with self._open(path, body) as answer:
            return json.load(answer)

    def _open(self, path: str, body: Mapping[str, Any] | None = None) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            return urlopen(request)
        except HTTPError as error:
            kind = ValueError if error.code == HTTPStatus.BAD_REQUEST else RuntimeError
            raise kind(f"{request.full_url}: {error.read().decode()}") from error


def _names(count: int) -> list[str]:
    """Request ids of a call; none begins with another, as SGLang withdraws by beginning."""
    call = uuid4().hex
    return [f"{call}-{i}-" for i in range(count)]


def _succeeded(answer: tuple[bool, str]) -> None:
    success, message = answer
    if not success:
        raise RuntimeError(f"SGLang could not take the new weights: {message}")


def _weights(model: PreTrainedModel, dtype: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and copies of a model's weights in SGLang's type; `auto`: in their own."""
    for name, parameter in model.named_parameters():
        kind = parameter.dtype if dtype == "auto" else getattr(torch, dtype)
        yield name, parameter.detach().to(kind, copy=True)


def _buckets(model: PreTrainedModel, dtype: str) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """The weights, a limited number of bytes at a time."""
    bucket: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, weight in _weights(model, dtype):
        bucket.append((name, weight))
        size += weight.nbytes
        if size > _BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
