"""Live: a response in the explorer while it is decoded; branches grow, fork and join."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import ipywidgets

from npr_lib.engine import SamplingParams, TorchEngine
from npr_lib.engine.record import trajectory as record
from npr_lib.engine.scheduler import Request
from npr_lib.reasoning.trajectory import Mode, Trajectory, to_rows
from npr_lib.viz.explorer.widget import Explorer

PAUSE = 0.1  # seconds between two drawings at least
SHARE = 4  # and this many times as long as the last one took: drawing must not hold up decoding


class Live(ipywidgets.VBox):
    """A stop button, a line that tells how it goes, and the explorer with the one response.

    task: ends with the response and gives its Trajectory (None if it was stopped before its first
        token); an exception of the engine is its exception.
    trajectory: the finished response, None until then; of a stopped one what there was.
    """

    __repr__ = object.__repr__  # not all that the box holds

    def __init__(self, engine: TorchEngine, request: Request, problem: str) -> None:
        self._engine = engine
        self._problem = problem
        self._prompt = engine.tokenizer.decode(request.response.prompt_ids)
        self._explorer: Explorer | None = None  # there is nothing to draw before the first token
        self._stopping = False
        self._spent = engine.stats.seconds
        self._button = ipywidgets.Button(description="Stop", icon="stop")
        self._button.on_click(lambda _: self.stop())
        self._status = ipywidgets.Label("reading the prompt")
        super().__init__([ipywidgets.HBox([self._button, self._status])])
        self.trajectory: Trajectory | None = None
        self.task = asyncio.get_running_loop().create_task(self._run(request))
        # A task that is cancelled before it begins comes to no `finally` of its own.
        self.task.add_done_callback(lambda _: engine.cancel([request]))

    @property
    def status(self) -> str:
        """What the line beside the button says."""
        return self._status.value

    def stop(self) -> None:
        """End the response with what there is of it, before the engine's next step."""
        # A flag and no more: JupyterLab delivers the click on a thread of its own.
        self._stopping = True
        self._button.disabled = True

    async def _run(self, request: Request) -> Trajectory | None:
        try:
            await self._decode(request)
        except BaseException as error:
            self._status.value = f"failed: {type(error).__name__}: {error}"
            raise
        finally:
            self._engine.cancel([request])
            self.trajectory = request.trajectory
            self._button.disabled = True
        if self.trajectory is None:
            self._status.value = "stopped before the first token"
        else:
            self._finish(self.trajectory)
        return self.trajectory

    async def _decode(self, request: Request) -> None:
        response, due = request.response, 0.0
        while request.trajectory is None and not self._stopping:
            if request.error is not None:
                raise RuntimeError("another call ended this one") from request.error
            self._engine.step()
            begin = time.perf_counter()
            if response.root.sampled and begin >= due and request.trajectory is None:
                with self._engine.lock:  # other threads' steps decode it too
                    so_far, width = record(response), len(response.turn)
                self._grow(so_far, width)
                now = time.perf_counter()
                due = now + max(PAUSE, SHARE * (now - begin))
            await asyncio.sleep(0)  # for the click on the button

    def _show(self, trajectory: Trajectory, decoding: bool) -> None:
        rollouts = to_rows([trajectory], problem=self._problem)
        if self._explorer is None:
            self._explorer = Explorer(rollouts, self._engine.tokenizer)
            self.children: tuple[ipywidgets.Widget, ...] = (*self.children, self._explorer)
        if not decoding:
            self._explorer.hold(rollouts)
        self._explorer.update(0, trajectory, self._prompt, decoding)

    def _grow(self, so_far: Trajectory, width: int) -> None:
        self._show(so_far, decoding=True)
        at_once = "1 branch" if width == 1 else f"{width} branches at once"
        self._status.value = f"step {max(so_far.decode_steps)} · {at_once} · {self._rate(so_far)}"

    def _finish(self, whole: Trajectory) -> None:
        self._show(whole, decoding=False)
        steps = len(set(whole.decode_steps))
        ended = whole.violation or whole.finish_reason
        self._status.value = f"ended: {ended} · {steps} steps · {self._rate(whole)}"

    def _rate(self, so_far: Trajectory) -> str:
        """Tokens, and how many a second of the engine's own time: without the drawing."""
        seconds = self._engine.stats.seconds - self._spent
        return f"{so_far.work} tokens · {so_far.work / seconds:.0f} tokens/s"


def live(
    engine: TorchEngine,
    prompt: str | Sequence[int],
    params: SamplingParams | None = None,
    problem: str = "",
    mode: Mode = "parallel",
) -> Live:
    """Decode a response and show how it grows. `await live(...).task` waits for its end.

    Args:
        prompt: as `engine.generate` takes it; with the same seed the response is the same.
        problem: what to call it; empty: the prompt.

    Raises:
        RuntimeError: no event loop is running, as one does in a notebook.
        ValueError: the engine refuses the prompt.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(
            "viz.live needs a running event loop: call it in a notebook or in a coroutine"
        ) from error
    (request,) = engine.submit([prompt], params or SamplingParams(), mode=mode)
    return Live(engine, request, problem or engine.tokenizer.decode(request.response.prompt_ids))
