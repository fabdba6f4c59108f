"""The families inside SGLang's scheduler: admission, carriers, what happens after a batch.

`Families` belongs to one `sglang.srt.managers.scheduler.Scheduler` (one a rank; all ranks see the
same tokens and so take the same decisions). The hooks of plugin.py call it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_MATCHED_TOKEN, Req
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.mem_cache.prefill_budget import PrefillBudget
from sglang.srt.sampling.sampling_params import SamplingParams

from npr_lib.engine.api import Preempt
from npr_lib.engine.forward import choose
from npr_lib.engine.record import trajectory as record
from npr_lib.engine.sglang.family import Ahead, Family, Run
from npr_lib.engine.sglang.request import answer, fail, family_of, tell

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler

_NAN = float("nan")


def run_of(req: Req) -> Run | None:
    """The run that a request carries; None for an ordinary request."""
    return getattr(req, "npr_run", None)


class Families:
    """The families of one scheduler, in order of arrival."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.families: list[Family] = []
        self.touched: list[Family] = []  # those that got a token in the present batch
        # logprob, behaviour logprob, entropy
        self.drawn: dict[Run, tuple[float, float, float]] = {}
        self._names = count()
        self._nothing = 0  # batches in a row that could not be planned

    # --- requests come and go

    def submit(self, client: Req, asked: object) -> None:
        """Begin a family; a request that can't be served is answered with an error."""
        try:
            family = family_of(client, asked, self.scheduler)
        except ValueError as error:
            return fail(client, str(error), HTTPStatus.BAD_REQUEST, self.scheduler)
        self.families.append(family)
        self._start(family)
        return None

    def abort(self, rid: str, everything: bool) -> None:
        """Withdraw families: those of the requests whose id begins with `rid`, or all."""
        for family in list(self.families):
            if everything or family.client.rid.startswith(rid):
                self._drop(family)
                fail(family.client, "Aborted", None, self.scheduler)

    # --- around a forward pass

    def offsets(self, reqs: Sequence[Req]) -> list[int] | None:
        """How many slots each request has before it beyond its position; None: all 0."""
        runs = [run_of(req) for req in reqs]
        if not any(runs):
            return None
        return [run.prefix_length - run.start if run and run.before else 0 for run in runs]

    def stash(self, req: Req) -> None:
        """Between two chunks of a carrier's prefill: what it has computed is its prefix now."""
        row = self.scheduler.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
        req.prefix_indices = row[: req.extend_range.end].to(torch.int64, copy=True)

    def compose(self, req: Req, run: Run) -> None:
        """Give a carrier the slots it sees as its cached prefix."""
        cache = self.scheduler.tree_cache
        req._refresh_fill_ids()
        req.prefix_indices = run.prefix()
        req.kv.cache_protected_len = len(req.prefix_indices)
        req.last_node = req.last_host_node = req.best_match_node = cache.root_node_handle()
        req.host_hit_length = req.swa_host_hit_length = req.mamba_host_hit_length = 0

    def draw(self, reqs: Sequence[Req], logits: torch.Tensor) -> list[tuple[int, int]]:
        """A token for every carrier that needs one, drawn or the engine's own: (row, token id).
        logits [R, V], raw."""
        written: list[tuple[int, int]] = []
        rows: list[int] = []
        runs: list[Run] = []
        turns: list[tuple[Family, Ahead]] = []
        finite = logits.amax(dim=-1).isfinite().tolist()
        for row, req in enumerate(reqs):
            run = run_of(req)
            if run is None or req.finished() or req.inflight_middle_chunks > 0:
                continue
            if run.complete:
                written += [(row, token) for token in run.rest[:1]]
                continue
            if run.family.exhausted(run):
                run.stopped = True
                continue
            if not finite[row]:
                run.family.error = "the model's logits are not finite: its weights have diverged"
                continue
            rows.append(row)
            runs.append(run)
            turns.append((run.family, run.family.ahead[run.branch]))
        if not rows:
            return written
        tokens = choose(logits[rows], turns)
        for run, (_, logprob, behaviour, entropy) in zip(runs, tokens, strict=True):
            self.drawn[run] = logprob, behaviour, entropy
        return written + [(row, token) for row, (token, *_) in zip(rows, tokens, strict=True)]

    def sampled(self, req: Req, run: Run) -> None:
        """A carrier has got a token: end it or let it go on."""
        family = run.family
        if family not in self.touched:
            self.touched.append(family)
        token = req.output_ids[-1]
        if run.stopped or family.error:
            stop = True
        else:
            values = self.drawn.pop(run, (_NAN, _NAN, _NAN))
            step = self.scheduler.forward_ct - family.first_step
            stop = family.sampled(run, token, *values, step)
        if stop:
            self._keep(req, run)

    def after_batch(self) -> None:
        """Act on the tokens of a batch: forks, joins, ends."""
        touched, self.touched = self.touched, []
        for family in touched:
            if family not in self.families:
                continue
            if family.error:
                self._drop(family)
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                fail(family.client, family.error, status, self.scheduler)
            else:
                self._advance(family)

    # --- accounting

    @property
    def kept(self) -> int:
        """Slots that families hold without a running request."""
        return sum(family.kept for family in self.families)

    def outstanding(self) -> int:
        """Slots that admitted families are expected still to take."""
        return sum(max(0, self.expected(f) - f.held) for f in self.families if f.admitted)

    def expected(self, family: Family) -> int:
        """Slots to set aside for a family. Like any request's: its prompt and the share of its
        budget that responses have lately come to use; all that it has and a margin at least."""
        ratio = self.scheduler.new_token_ratio_tracker.current
        prompt = len(family.response.prompt_ids)
        share = prompt + int(ratio * (family.need - prompt))
        return min(family.need, max(share, family.known + len(family.ahead) + 1))

    def report(self) -> dict[str, int]:
        """Slots as `KVPool` counts them, families, and the positions that the model has."""
        scheduler = self.scheduler
        slots, cached = scheduler.max_total_num_tokens, scheduler.tree_cache.evictable_size()
        free = scheduler.token_to_kv_pool_allocator.available_size()
        context = scheduler.model_config.hf_text_config.max_position_embeddings
        return {
            "num_slots": slots,
            "num_used": slots - free - cached,
            "num_cached": cached,
            "families": len(self.families),
            "context": context,
        }

    def repeated(self, family: Family, batch: Sequence[Req]) -> bool:
        """Whether a batch is about to prefill the same prompt: one batch later it is cached."""
        runs = [run_of(req) for req in batch]
        return any(run and not run.before and run.family.digest == family.digest for run in runs)

    # --- when the pool runs dry

    def make_room(self, batch: ScheduleBatch) -> None:
        """Suspend the youngest families until the next step of `batch` fits. The oldest goes on:
        alone, every family fits. Ordinary requests beside it are retracted by SGLang itself, which
        never has to retract the last; so where there are only such, no family is spared."""
        size = batch.batch_size()
        batch.filter_batch()
        while not batch.is_empty() and not batch.check_decode_mem():
            if not self._suspend_youngest(spare=any(map(run_of, batch.reqs))):
                break
            batch.filter_batch()
        if batch.batch_size() < size:
            batch.batch_is_full = False

    def make_room_for_chunk(self) -> None:
        """The next chunk of a long prefill is allocated without asking: see to it that it fits."""
        scheduler = self.scheduler
        while (req := scheduler.chunked_req) is not None:
            budget = PrefillBudget(scheduler.token_to_kv_pool_allocator, scheduler.tree_cache)
            left = len(req.full_untruncated_fill_ids) - len(req.prefix_indices)
            if budget.remaining_current >= min(left, scheduler.chunked_prefill_size):
                return
            if not self._suspend_youngest(spare=run_of(req) is not None):
                return

    @property
    def waiting(self) -> bool:
        """A carrier of an admitted family is in the queue."""
        return any(self._begun(req) for req in self.scheduler.waiting_queue)

    def planned(self, nothing: bool) -> None:
        """SGLang has planned a batch, or `nothing`. Twice nothing while families wait in the
        middle of their responses means that they wait for each other's slots."""
        self._nothing = self._nothing + 1 if nothing and self.waiting else 0
        if self._nothing > 1:
            self._suspend_youngest(spare=True)

    def _suspend_youngest(self, spare: bool) -> bool:
        """Whether there was one to suspend; `spare` the oldest."""
        admitted = [family for family in self.families if family.admitted]
        if len(admitted) <= spare:
            return False
        family = admitted[-1]
        family.response.emit(Preempt, family.response.root)
        self._release(family)
        family.client.retraction_count += 1
        tracker = self.scheduler.new_token_ratio_tracker
        tracker.current = min(1.0, tracker.current + 0.1)
        self._start(family, resumed=True)
        return True

    # --- the inside

    def _start(self, family: Family, resumed: bool = False) -> None:
        """Carriers for all runs that can begin; they go before requests that have not begun."""
        queue = self.scheduler.waiting_queue
        first = next((i for i, req in enumerate(queue) if not self._begun(req)), len(queue))
        for run in family.startable():
            run.carrier = self._carrier(family, run)
            if family.admitted or resumed:
                queue.insert(first, run.carrier)
                first += 1
            else:
                queue.append(run.carrier)
            run.carrier.time_stats.set_wait_queue_entry_time()

    def _begun(self, req: Req) -> bool:
        run = run_of(req)
        return run is not None and run.family.admitted

    def _carrier(self, family: Family, run: Run) -> Req:
        client = family.client
        # Greedy to SGLang, which has its tokens from `draw`: its own greedy batches stay greedy.
        params = SamplingParams(max_new_tokens=1, temperature=0)
        params.normalize(self.scheduler.tokenizer)
        req = Req(
            f"npr-{next(self._names)}-{client.rid}",
            "",
            # Tokens whose slots are given are never looked at.
            array("q", [0] * run.prefix_length + run.tokens),
            params,
            extra_key=client.extra_key,
            cache_salt=client.cache_salt,
            vocab_size=client.vocab_size,
            priority=client.priority,
            eos_token_ids=client.eos_token_ids,
        )
        req.tokenizer = self.scheduler.tokenizer
        req.logprob_start_len = -1
        # The prompt alone (and the text up to the first fork) is plain text to the prefix cache.
        req.skip_radix_cache_insert = bool(run.before)
        req.npr_run = run
        return req

    def _keep(self, req: Req, run: Run) -> None:
        """End a carrier; its slots pass to its run instead of being freed."""
        kv = req.kv
        row = self.scheduler.req_to_token_pool.req_to_token[kv.req_pool_idx]
        start, owned, end = run.prefix_length, kv.cache_protected_len, kv.kv_committed_len
        if run.complete and end != start + len(run.tokens):
            raise AssertionError(f"a run of {len(run.tokens)} tokens has {end - start} slots")
        run.slots = row[start:end].to(torch.int64, copy=True)
        run.own = row[owned:end].to(torch.int64, copy=True)
        if not run.before:
            run.family.client.cached_tokens = max(
                run.family.client.cached_tokens, req.cached_tokens
            )
        if owned and not run.before:
            cache = self.scheduler.tree_cache
            receipt = cache.inc_lock_ref(req.last_node).to_dec_params()
            run.family.locks.append((req.last_node, receipt))
        kv.cache_protected_len = end
        req.skip_radix_cache_insert = True
        req.finished_reason = FINISH_MATCHED_TOKEN(matched=req.output_ids[-1])
        run.carrier = None

    def _advance(self, family: Family) -> None:
        if not family.advance():
            for run in family.beyond():
                self._clear(run)
            if family.client.stream:
                self._stream(family)
            return self._start(family)
        family.stamp()
        trajectory = record(family.response)
        self._drop(family)
        answer(family, trajectory, self.scheduler)
        return None

    def _drop(self, family: Family) -> None:
        """Take a family out and free all it holds."""
        self.families.remove(family)
        self._release(family)

    def _release(self, family: Family) -> None:
        scheduler = self.scheduler
        for run in family.runs.values():
            self._clear(run)
        for node, receipt in family.locks:
            scheduler.tree_cache.dec_lock_ref(node, receipt)
        family.locks.clear()
        family.admitted = False

    def _clear(self, run: Run) -> None:
        """Free what a run holds; its tokens stay."""
        if run.carrier is not None:
            self._withdraw(run.carrier)
        if run.own is not None and len(run.own):
            self.scheduler.token_to_kv_pool_allocator.free(run.own)
        run.carrier = run.slots = run.own = None
        self.drawn.pop(run, None)

    def _withdraw(self, req: Req) -> None:
        """Take a carrier from wherever it is."""
        scheduler = self.scheduler
        if req in scheduler.waiting_queue:
            scheduler.waiting_queue.remove(req)
            return
        if req is scheduler.chunked_req:
            scheduler.chunked_req = None
        if req.kv.holds_kv:
            req.finished_reason = FINISH_ABORT("withdrawn")
            release_kv_cache(req, scheduler.tree_cache, is_insert=False)

    def _stream(self, family: Family) -> None:
        ids = family.settled()
        if ids:
            family.client.output_ids.extend(ids)
            tell(family, {})
            self.scheduler.output_streamer.stream_output([family.client], False)
