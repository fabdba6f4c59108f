"""The plugin that teaches stock SGLang to fork and join, found through `sglang.srt.plugins`.

It does nothing unless NPR_SGLANG=1 is set (SGLangEngine and `python -m npr_lib serve` set it), and
refuses to start where SGLang's version is not a supported one, where a hook did not take effect or
where an option is set that it can't work with. How it works, and why each hook: docs/sglang.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pkgutil import resolve_name
from typing import Any

import torch

SUPPORTED = ("0.5.21",)
SWITCH = "NPR_SGLANG"
_ROOT = "sglang.srt."
_WORTH_WAITING = 32  # tokens of a prompt that the batch before will have cached


def register() -> None:
    """What SGLang calls in each of its processes. SystemExit where it must not start: SGLang only
    logs what a plugin raises otherwise."""
    if os.environ.get(SWITCH) != "1":
        return
    if os.environ.get("SGLANG_RUST_SERVER", "0") not in ("", "0", "false"):
        raise SystemExit(
            "NPR on SGLang: its Rust server is not supported, unset SGLANG_RUST_SERVER"
        )
    installed = version("sglang")
    if installed not in SUPPORTED:
        raise SystemExit(
            f"NPR on SGLang supports SGLang {', '.join(SUPPORTED)}, installed is {installed}: "
            f"pip install sglang=={SUPPORTED[-1]} (or unset {SWITCH})"
        )
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    before = {target: _attribute(target) for target in HOOKS}
    for target, (kind, hook) in HOOKS.items():
        HookRegistry.register(_ROOT + target, hook, HookType(kind))
    HookRegistry.apply_hooks()
    idle = [target for target, original in before.items() if _attribute(target) is original]
    if idle:
        raise SystemExit(
            f"NPR on SGLang: no effect of the hooks on {', '.join(idle)} in SGLang {installed}: "
            f"install one of the supported versions, {', '.join(SUPPORTED)}"
        )


def refusals(arguments: Mapping[str, object]) -> list[str]:
    """Why the plugin can't work with these arguments of SGLang's, and what to say instead; [] if
    it can. What isn't among them is not looked at."""
    wanted = {
        "page_size": ((1,), "--page-size 1"),
        "disable_overlap_schedule": ((True,), "--disable-overlap-schedule"),
        "pp_size": ((1,), "--pp-size 1"),
        "speculative_algorithm": ((None,), "no --speculative-algorithm"),
        "enable_mixed_chunk": ((False,), "no --enable-mixed-chunk"),
        "enable_hierarchical_cache": ((False,), "no --enable-hierarchical-cache"),
        "disaggregation_mode": (("null",), "no --disaggregation-mode"),
        "enable_dp_attention": ((False,), "no --enable-dp-attention"),
        "enable_priority_scheduling": ((False,), "no --enable-priority-scheduling"),
        "skip_tokenizer_init": ((False,), "no --skip-tokenizer-init"),
        "schedule_policy": (("fcfs",), "--schedule-policy fcfs"),
        "enable_lora": ((None, False), "no --enable-lora"),
    }
    return [
        f"{name} = {arguments[name]!r} is not supported, use {option}"
        for name, (values, option) in wanted.items()
        if name in arguments and arguments[name] not in values
    ]


def _attribute(target: str) -> object:
    """The present value of "module.Class.method" below sglang.srt; None where there is none."""
    owner, _, name = (_ROOT + target).rpartition(".")
    try:
        return vars(resolve_name(owner)).get(name)
    except (ImportError, AttributeError):
        return None


def _families(owner: object = None) -> Any:
    """The families of this process's scheduler; None before it is set up."""
    return _STATE.get("families")


# This process's `Families`, and the requests of the batch whose forward is running.
_STATE: dict[str, Any] = {}


def _scheduler_made(result: None, scheduler: Any, *args: object, **options: object) -> None:
    from npr_lib.engine.sglang.scheduler import Families

    problems = refusals(scheduler.server_args.resolved_dict())
    if problems:
        raise ValueError("NPR on SGLang: " + "; ".join(problems))
    _STATE["families"] = Families(scheduler)


def _add_to_queue(original: Callable, scheduler: object, req: Any, *args: Any, **kw: Any):
    from npr_lib.engine.sglang.request import asked_for

    asked = asked_for(req)
    if asked is None or req.to_finish is not None or req.finished():
        return original(scheduler, req, *args, **kw)
    return _STATE["families"].submit(req, asked)


def _abort(scheduler: object, request: Any) -> None:
    _STATE["families"].abort(request.rid, request.abort_all)


def _batch_processed(result: object, *args: object, **kw: object) -> None:
    _STATE["families"].after_batch()


def _forward(original: Callable, worker: object, batch: Any, *args: Any, **kw: Any) -> object:
    _STATE["reqs"] = batch.reqs if batch is not None else []
    try:
        return original(worker, batch, *args, **kw)
    finally:
        _STATE["reqs"] = []


def _sample(original: Callable, sampler: object, logits_output: Any, *args: Any, **kw: Any):
    """Carriers draw as the embedded engine does; the others as SGLang does."""
    families, reqs = _families(), _STATE.get("reqs") or []
    carriers = [hasattr(req, "npr_run") for req in reqs]
    if families is None or not any(carriers):
        return original(sampler, logits_output, *args, **kw)
    logits = logits_output.next_token_logits
    drawn = families.draw(reqs, logits)  # first: SGLang's sampler works in place
    if all(carriers):
        ids = torch.zeros(len(reqs), dtype=torch.int64, device=logits.device)
    else:
        ids = original(sampler, logits_output, *args, **kw)
    if drawn:
        rows, tokens = zip(*drawn, strict=True)
        ids[torch.tensor(rows, device=ids.device)] = torch.tensor(
            tokens, dtype=ids.dtype, device=ids.device
        )
    return ids


def _positions(forward_batch: Any, cls: object, batch: Any, *args: object, **kw: object) -> None:
    """A branch's positions go on from its fork, not from the slots before it."""
    families = _families()
    offsets = families.offsets(batch.reqs) if families is not None else None
    if offsets is None or not any(offsets):
        return
    shift = torch.tensor(offsets, device=forward_batch.positions.device)
    if not forward_batch.forward_mode.is_decode():
        lengths = torch.tensor(batch.extend_lens, device=shift.device)
        shift = shift.repeat_interleave(lengths)
    forward_batch.positions = forward_batch.positions - shift.to(forward_batch.positions.dtype)


def _next_round(original: Callable, req: Any, tree_cache: object = None, *args: Any, **kw: Any):
    run = getattr(req, "npr_run", None)
    if run is None or not run.before or tree_cache is None:
        return original(req, tree_cache, *args, **kw)
    return _STATE["families"].compose(req, run)


def _finish_state(original: Callable, req: Any, *args: Any, **kw: Any) -> None:
    run = getattr(req, "npr_run", None)
    if run is None:
        return original(req, *args, **kw)
    if not req.finished():
        _STATE["families"].sampled(req, run)
    return None


def _stream(streamer: object, reqs: Sequence[Any], *args: object, **kw: object) -> tuple:
    """Carriers are nobody's requests."""
    return (streamer, [req for req in reqs if not hasattr(req, "npr_run")], *args), kw


def _uncached(sizes: tuple[int, int], checker: object) -> tuple[int, int]:
    return sizes[0] + _STATE["families"].kept, sizes[1]


def _adder_made(result: None, adder: Any, *args: object, **kw: object) -> None:
    """What admitted families may still need is not there for others."""
    families = _families()
    if families is not None:
        adder.memory_budget.total_offset += families.outstanding()


def _add_request(
    original: Callable, adder: Any, req: Any, has_chunked_req: bool, *args: Any, **kw: Any
) -> object:
    from sglang.srt.managers.schedule_policy import AddReqResult

    run = getattr(req, "npr_run", None)
    if run is None:
        return original(adder, req, has_chunked_req, *args, **kw)
    family, families = run.family, _STATE["families"]
    admitted, expected = family.admitted, families.expected(family)
    new = len(req.full_untruncated_fill_ids) - len(req.prefix_indices)
    if has_chunked_req and new > adder.rem_chunk_tokens:  # SGLang prefills one in chunks at a time
        return AddReqResult.OTHER
    if not run.before and new > _WORTH_WAITING and families.repeated(family, adder.can_run_list):
        return AddReqResult.OTHER
    result = original(adder, req, has_chunked_req, *args, **kw)
    added = bool(adder.can_run_list) and adder.can_run_list[-1] is req
    if added and not admitted:
        family.admitted = True
        adder.memory_budget.total_offset += max(0, expected - len(req.full_untruncated_fill_ids))
    if result == AddReqResult.NO_TOKEN and (added or admitted):
        return AddReqResult.CONTINUE if added else AddReqResult.OTHER
    return result


def _prefill_budget(original: Callable, adder: Any, req: Any, **kw: Any) -> tuple:
    """Whether a carrier fits; asked while its cached prefix is locked, and so not counted free."""
    run = getattr(req, "npr_run", None)
    if run is None:
        return original(adder, req, **kw)
    fits = kw["extend_input_len"] + 1 <= adder.cur_rem_tokens
    if not run.family.admitted:
        expected = _STATE["families"].expected(run.family)
        fits = fits and expected - len(req.prefix_indices) <= adder.rem_total_tokens
    return (True, adder.rem_chunk_tokens) if fits else (False, None)


def _running_offset(original: Callable, adder: object, req: Any) -> float:
    return 0 if hasattr(req, "npr_run") else original(adder, req)


def _retraction_order(order: list[int], reqs: Sequence[Any]) -> list[int]:
    """Carriers are the last to be retracted: their family has its room reserved."""
    return sorted(order, key=lambda i: not hasattr(reqs[i], "npr_run"))


def _internal_state(output: Any, *args: object, **kw: object) -> None:
    output.internal_state["npr"] = _STATE["families"].report()


def _before_prefill(scheduler: Any, *args: Any, **kw: Any) -> None:
    """SGLang looks at its queue only after a request has ended; carriers wait for nobody."""
    families = _STATE["families"]
    families.make_room_for_chunk()
    running = kw["running_batch"] if "running_batch" in kw else args[-1]
    if running.is_empty() or families.waiting:
        running.batch_is_full = False


def _before_decode(scheduler: object, batch: Any) -> None:
    _STATE["families"].make_room(batch)


def _next_batch(plan: Any, *args: object, **kw: object) -> None:
    _STATE["families"].planned(plan.batch_to_run is None)


def _stash(original: Callable, scheduler: object, req: Any) -> None:
    run = getattr(req, "npr_run", None)
    if run is None or not run.before:
        return original(scheduler, req)
    return _STATE["families"].stash(req)


HOOKS: dict[str, tuple[str, Callable]] = {
    "managers.scheduler.Scheduler.__init__": ("after", _scheduler_made),
    "managers.scheduler.Scheduler._add_request_to_queue": ("around", _add_to_queue),
    "managers.scheduler.Scheduler.abort_request": ("before", _abort),
    "managers.scheduler.Scheduler.get_internal_state": ("after", _internal_state),
    "managers.scheduler.Scheduler.process_batch_result": ("after", _batch_processed),
    "managers.scheduler.Scheduler.get_next_batch_to_run": ("after", _next_batch),
    "managers.scheduler.Scheduler._get_new_batch_prefill_raw": ("before", _before_prefill),
    "managers.scheduler.Scheduler.update_running_batch": ("before", _before_decode),
    "managers.scheduler.Scheduler.stash_chunked_request": ("around", _stash),
    "managers.tp_worker.TpModelWorker.forward_batch_generation": ("around", _forward),
    "layers.sampler.Sampler.forward": ("around", _sample),
    "model_executor.forward_batch_info.ForwardBatch.init_new": ("after", _positions),
    "managers.schedule_batch.Req.init_next_round_input": ("around", _next_round),
    "managers.schedule_batch.Req.update_finish_state": ("around", _finish_state),
    "managers.schedule_batch.ScheduleBatch._get_decode_retraction_order": (
        "after",
        _retraction_order,
    ),
    "managers.schedule_policy.PrefillAdder.__init__": ("after", _adder_made),
    "managers.schedule_policy.PrefillAdder.add_one_req": ("around", _add_request),
    "managers.schedule_policy.PrefillAdder._check_prefill_budget": ("around", _prefill_budget),
    "managers.schedule_policy.PrefillAdder._get_running_request_total_token_offset": (
        "around",
        _running_offset,
    ),
    "managers.scheduler_components.output_streamer.SchedulerOutputStreamer"
    "._stream_output_generation": ("before", _stream),
    "managers.scheduler_components.invariant_checker.SchedulerInvariantChecker"
    "._get_total_uncached_sizes": ("after", _uncached),
}
