"""The embedded engine: any Hugging Face causal LM, on CPU or CUDA, in this process.

    engine = TorchEngine(model, tokenizer, EngineConfig())
    trajectories = engine.generate(["1+1?"], SamplingParams(max_tokens=64), n=8)

One step: the scheduler plans rows of new tokens, one forward computes them all (their KV goes to
pool slots, see attention.py), one vectorised draw samples a token for every branch whose turn it
is, and each response's state machine acts on its tokens (see branch.py). The model's weights are
used in place, so a trainer in the same process trains what the engine decodes with.

Several threads may call one engine: they take turns at the ends of steps, and what they ask for is
decoded in one batch. Hold `engine.lock` to look at a request, or to change the weights, while other
threads decode.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npr_lib.engine.api import EngineConfig, EngineStats, Event, Finish, Prefix, SamplingParams
from npr_lib.engine.arguments import best, forced, read_call, replayed
from npr_lib.engine.attention import use_npr_attention
from npr_lib.engine.branch import Branch, Call, Grammar, Response
from npr_lib.engine.checkpoint import eos_ids, style_for
from npr_lib.engine.forward import choose, fitting_threads, forward, matrix_size, name_response
from npr_lib.engine.kv import KVPool
from npr_lib.engine.record import trajectory as record
from npr_lib.engine.scheduler import Prompt, Request, Row, Scheduler
from npr_lib.reasoning.schema import TAGS
from npr_lib.reasoning.tokens import StyleIds, TagIds
from npr_lib.reasoning.trajectory import Mode, Trajectory


class TorchEngine:
    """Implements `npr_lib.engine.api.Engine` over a transformers model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: EngineConfig | None = None,
    ) -> None:
        use_npr_attention(model)
        self.model = model
        self.tokenizer = tokenizer
        self.config = config or EngineConfig()
        self.style = style_for(tokenizer, self.config)
        shape = model.config.get_text_config()
        heads = shape.num_attention_heads
        head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // heads
        self.kv = KVPool(
            self.config.num_slots,
            shape.num_hidden_layers,
            getattr(shape, "num_key_value_heads", None) or heads,
            head_dim,
            model.dtype,
            model.device,
        )
        self.stats = EngineStats()
        self.scheduler = Scheduler(self.kv, self.config, self.stats)
        self.context = shape.max_position_embeddings
        self._eos_ids = eos_ids(model) | {tokenizer.eos_token_id} - {None}
        self._matrix_size = matrix_size(model)
        self._calls = 0
        self._events: list[Event] = []  # of the present step
        self._streams: dict[int, deque[Event]] = {}  # what open streams have yet to yield, by call
        # For whoever acts on any of this. Held for a step at most, never by a suspended stream.
        self.lock = threading.RLock()
        self._stepping = False
        self._left: list[Request] = []  # cancelled in the middle of the present step

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        mode: Mode = "parallel",
        prefix: Prefix | Sequence[Prefix | None] | None = None,
        best_of: int | None = None,
    ) -> list[Trajectory]:
        """n trajectories for every prompt (text or token ids), grouped by prompt in order.

        A response's randomness comes from (params.seed, its prompt, the occurrence of that prompt
        in this call, its sample index), so the same call gives the same responses. `parallel`
        needs a tokenizer with the tag tokens; `sequential` decodes plain text.

        params: one for all prompts, or one a prompt. prefix: the same; a partial response that
        each sample goes on from (edit.py makes them). best_of: sample that many a prompt and keep
        the n with the highest mean logprob of sampled tokens, best first.

        Raises ValueError for an empty prompt, one longer than the model's context, one that can't
        fit the pool, and a prefix that breaks the grammar or is complete.
        """
        if best_of is not None and best_of < n:
            raise ValueError(f"best_of = {best_of}: expected at least n = {n}")
        with self.lock:
            requests = self._requests(prompts, params, best_of or n, mode, prefix)
        trajectories = self._run(requests)
        return trajectories if best_of is None else best(trajectories, n, best_of)

    def stream(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        mode: Mode = "parallel",
        prefix: Prefix | Sequence[Prefix | None] | None = None,
    ) -> Iterator[Event]:
        """The responses of `generate` as they come about, event by event; `Finish` holds each
        trajectory. Closing the iterator cancels what has not ended and frees everything. Bad
        arguments raise at once; other calls may run between two events."""
        with self.lock:
            requests = self._requests(prompts, params, n, mode, prefix, listen=True)
            self.scheduler.check(requests)
        return self._stream(requests)

    def submit(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        mode: Mode = "parallel",
        prefix: Prefix | Sequence[Prefix | None] | None = None,
    ) -> list[Request]:
        """Queue the responses of `generate` for `step`; each ends with a `trajectory`."""
        with self.lock:
            requests = self._requests(prompts, params, n, mode, prefix, listen=True)
            self.scheduler.submit(requests)
            self._listen(requests)
        return requests

    @property
    def busy(self) -> bool:
        """There is something left to decode."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def step(self) -> list[Event]:
        """Decode one step; what happened in it, for requests of `submit` and `stream`.

        An exception drops everything in flight (each request's `error` tells) and leaves the pool
        empty; its notes name the response it came from.
        """
        with self.lock:
            if not self.busy:
                return []
            begin = time.perf_counter()
            try:
                self._stepping = True
                with self._evaluating(), torch.inference_mode():
                    self._step()
                self._stepping = False
                self.cancel(self._left)
                self._left = []
            except BaseException as error:
                self._abort(error)
                raise
            self.stats.seconds += time.perf_counter() - begin
            events = self._events.copy()
            self._events.clear()
            for event in events:
                inbox = self._streams.get(event.call)
                if inbox is not None:
                    inbox.append(event)
        return events

    def cancel(self, requests: Sequence[Request]) -> None:
        """Take requests out and free what they hold. Their `trajectory` is what there was of
        them, with the finish reason `cancelled`; None if they had no token yet."""
        with self.lock:
            # The garbage collector closes a forgotten stream wherever it likes to.
            if self._stepping:
                self._left += requests
                return
            for request in requests:
                if request.trajectory is None and request.error is None:
                    if request.response.root.sampled:
                        request.response.cancel()
                        request.trajectory = record(request.response)
                    request.error = InterruptedError("the request was cancelled")
                    self.scheduler.finish(request)
            self._rest()

    def replay(self, trajectory: Trajectory, mode: Mode) -> Trajectory:
        """Decode the tokens of a trajectory again, step by step, in either mode.

        `parallel` forks and joins as the trajectory did (or, for one decoded sequentially, as its
        ids say: LayoutError if they are no well-formed response); `sequential` writes the same ids
        one after the other. The logprobs are those of the current weights at the trajectory's
        temperature under that mode, and the cost of decoding is real: identical work for a fair
        comparison of speed. ValueError where the trajectory does not fit the engine's context.
        """
        return self.replay_all([trajectory], mode)[0]

    def replay_all(self, trajectories: Sequence[Trajectory], mode: Mode) -> list[Trajectory]:
        """`replay` of several trajectories in one batch."""
        with self.lock:
            requests = self._replays(trajectories, mode)
        return replayed(self._run(requests), trajectories, self.context)

    def weights_changed(self) -> None:
        """Forget all KV. Responses in flight go on with the new weights, their KV recomputed."""
        with self.lock:
            self.scheduler.forget()

    def _call(self, listen: bool) -> Call:
        self._calls += 1
        return Call(self._calls, self.stats, [] if listen else None)

    def _listen(self, requests: Sequence[Request]) -> None:
        """From now on a call tells what happens in the engine's list; what it told so far, the
        tokens of prefixes, comes first."""
        for call in {request.response.call for request in requests}:
            assert call.events is not None, "a call to which nobody listens"
            self._events += call.events
            call.events = self._events

    def _requests(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        n: int,
        mode: Mode,
        prefix: Prefix | Sequence[Prefix | None] | None,
        listen: bool = False,
    ) -> list[Request]:
        grammar, call = self._grammar(mode), self._call(listen)
        requests: list[Request] = []
        asked = read_call(prompts, params, n, prefix, self.tokenizer, self.context)
        for index, (ids, own, keys, start) in enumerate(asked):
            self._check_ids(ids, f"prompt {index}")
            shared = Prompt(ids)
            for key in keys:
                response = Response(ids, own, grammar, key, call, len(requests))
                if start:
                    self._check_ids(chain.from_iterable(start.values()), f"prefix {index}")
                    response.restore(start)
                requests.append(Request(shared, response))
        return requests

    def _replays(self, trajectories: Sequence[Trajectory], mode: Mode) -> list[Request]:
        requests, call = [], self._call(listen=False)
        for index, trajectory in enumerate(trajectories):
            params = SamplingParams(max_tokens=trajectory.work, temperature=trajectory.temperature)
            limits = replace(
                self.config, max_branches=trajectory.max_branches, max_depth=trajectory.max_depth
            )
            style = StyleIds.from_tokenizer(self.tokenizer, trajectory.style)
            grammar = replace(self._grammar(mode), config=limits, writes=style)
            ids, writes = trajectory.prompt_ids, forced(trajectory, mode, self.tokenizer)
            response = Response(ids, params, grammar, 0, call, index, writes)
            requests.append(Request(Prompt(ids), response))
        return requests

    def _grammar(self, mode: Mode) -> Grammar:
        if mode not in ("parallel", "sequential"):
            raise ValueError(f"mode = {mode!r}: expected 'parallel' or 'sequential'")
        tags = TagIds.from_tokenizer(self.tokenizer) if mode == "parallel" else None
        if tags is None and all(tag in self.tokenizer.get_vocab() for tag in TAGS):
            tags = TagIds.from_tokenizer(self.tokenizer)
        writes = StyleIds.from_tokenizer(self.tokenizer, self.style)
        return Grammar(self.tokenizer, tags, self._eos_ids, self.config, mode, self.context, writes)

    def _check_ids(self, ids: Iterable[int], where: str) -> None:
        size = len(self.model.get_input_embeddings().weight)
        outside = next((i for i in ids if not 0 <= i < size), None)
        if outside is not None:
            raise ValueError(f"{where}: token id {outside} is outside 0..{size - 1}")

    def _run(self, requests: Sequence[Request]) -> list[Trajectory]:
        """Step until these requests have ended; whatever happens, they leave nothing behind."""
        with self.lock:
            self.scheduler.submit(requests)
        try:
            with self._evaluating():
                while self._advance(requests):
                    pass
        finally:
            self.cancel(requests)
        return [request.outcome for request in requests]

    def _advance(self, requests: Sequence[Request]) -> bool:
        """A step for requests of which some have not ended; False, and none, if all have."""
        with self.lock:
            lost = next((r.error for r in requests if r.error is not None), None)
            if lost is not None:
                raise RuntimeError("another call's step failed, and this one with it") from lost
            left = any(request.trajectory is None for request in requests)
            if left:
                self.step()
            return left

    def _stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        if not requests:
            return
        call = requests[0].response.call
        assert call.events is not None, "a call to which nobody listens"
        with self.lock:
            inbox = self._streams[call.number] = deque(call.events)
            call.events = self._events
            self.scheduler.submit(requests)
        try:
            # `_advance` is False too after the step of another call that ended these requests.
            while inbox or self._advance(requests) or inbox:
                while inbox:
                    yield inbox.popleft()
        finally:
            with self.lock:
                del self._streams[call.number]
                self.cancel(requests)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model in evaluation mode, as it was afterwards."""
        with self.lock:
            was_training = self.model.training
            if was_training:
                self.model.eval()
        try:
            yield
        finally:
            if was_training:
                with self.lock:
                    self.model.train()

    def _rest(self) -> None:
        """With nothing left to decode, keep no KV but that of a persistent prefix."""
        if not self.busy:
            self.scheduler.drop_fills()
            if not self.config.persistent_prefix:
                self.scheduler.forget()

    def _abort(self, error: BaseException) -> None:
        """End everything in flight, also what a broken step left halfway."""
        for request in (*self.scheduler.running, *self.scheduler.waiting):
            request.error = error
        self.kv.reset()
        self.scheduler = Scheduler(self.kv, self.config, self.stats)
        self._events.clear()
        self._stepping, self._left = False, []

    def _step(self) -> None:
        rows = self.scheduler.plan()
        tokens = sum(len(row.ids) for row in rows)
        self.stats.forwarded += tokens
        with fitting_threads(self.model, tokens * self._matrix_size):
            self._decode(rows)
        self.stats.steps += 1

    def _decode(self, rows: Sequence[Row]) -> None:
        turns: list[tuple[Request, Branch]] = []
        logits = forward(self.model, self.kv, rows) if rows else None
        if logits is not None:
            owners = [row.owner for row in rows if row.owner is not None]
            decoded = [i for i, owner in enumerate(owners) if not isinstance(owner, Prompt)]
            turns = [owner for owner in owners if not isinstance(owner, Prompt)]
            if len(decoded) < len(owners):
                for owner, values in zip(owners, logits, strict=True):
                    if isinstance(owner, Prompt):
                        self.scheduler.filled(owner, values)
                logits = logits[decoded]
        begun = self.scheduler.beginners()
        if begun:
            firsts = torch.stack([request.prompt.first_logits for request in begun])
            logits = torch.cat([logits, firsts]) if logits is not None and turns else firsts
            turns += [(request, request.response.root) for request in begun]
        if not rows and not turns:
            raise RuntimeError("the scheduler makes no progress")
        self.stats.peak_slots = max(self.stats.peak_slots, self.kv.num_used)
        self._accept(turns, choose(logits, turns) if logits is not None and turns else [])

    def _accept(
        self,
        turns: Sequence[tuple[Request, Branch]],
        tokens: Sequence[tuple[int, float, float, float]],
    ) -> None:
        """Hand every response its tokens; take out those that have ended."""
        accepted: dict[Request, list[tuple[Branch, int, float, float]]] = {}
        for (request, branch), chosen in zip(turns, tokens, strict=True):
            token, logprob, behaviour, entropy = chosen
            accepted.setdefault(request, []).append((branch, token, logprob, behaviour))
            branch.entropies.append(entropy)
        for request, own in accepted.items():
            response = request.response
            try:
                response.accept(own, response.call.step)
                if not response.finish_reason:
                    continue
                request.trajectory = record(response)
            except Exception as error:
                name_response(error, response)
                raise
            self.scheduler.finish(request)
            self.stats.responses += 1
            response.emit(Finish, response.root, request.trajectory)
