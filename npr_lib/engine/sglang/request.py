"""A client's request on SGLang: what it asks for becomes a family, a trajectory its answer."""

from __future__ import annotations

from array import array
from http import HTTPStatus
from itertools import chain
from typing import TYPE_CHECKING

from sglang.srt.managers.schedule_batch import (
    FINISH_ABORT,
    FINISH_LENGTH,
    FINISH_MATCHED_STR,
    FINISH_MATCHED_TOKEN,
    Req,
)
from sglang.srt.sampling.sampling_params import TOP_K_ALL

from npr_lib.engine.api import EngineConfig, EngineStats
from npr_lib.engine.branch import Call, Grammar, Response
from npr_lib.engine.checkpoint import style_of
from npr_lib.engine.sampling import hash_ids, mix
from npr_lib.engine.sglang.family import Family
from npr_lib.engine.sglang.wire import KEY, Settings, events_to_wire, to_wire, unpack
from npr_lib.reasoning.schema import TAGS
from npr_lib.reasoning.tokens import StyleIds, TagIds
from npr_lib.reasoning.trajectory import Trajectory

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler


def asked_for(client: Req) -> object | None:
    """What a request asks of NPR; None for an ordinary one."""
    custom = client.sampling_params.custom_params
    asked = custom.get(KEY) if isinstance(custom, dict) else None
    # SGLang warms its prefix cache for n > 1 by a request for 0 tokens: an ordinary one.
    return asked if client.sampling_params.max_new_tokens else None


def family_of(client: Req, asked: object, scheduler: Scheduler) -> Family:
    """The family that answers a request. ValueError, with what to change, for one that can't be
    served."""
    settings = unpack(asked, _defaults(client, scheduler))
    prompt, grammar = list(client.origin_input_ids), _grammar(settings, scheduler)
    # Tags may be special tokens of the tokenizer, and the client's text is not to lack them.
    client.sampling_params.skip_special_tokens = False
    client.sampling_params.spaces_between_special_tokens = False
    given = [by_path for by_path in (settings.forced, settings.prefix) if by_path]
    size = scheduler.model_config.vocab_size
    for token in chain(prompt, *(ids for by_path in given for ids in by_path.values())):
        if not 0 <= token < size:
            raise ValueError(f"token id {token} is outside 0..{size - 1}")
    if len(prompt) >= grammar.max_position:
        raise ValueError(f"a prompt of {len(prompt)} tokens fills the model's context")
    if client.return_logprob and client.logprob_start_len < len(prompt):
        raise ValueError("logprobs of prompt tokens are not supported together with NPR")
    call = Call(0, EngineStats(), [] if settings.events else None)
    response = Response(
        prompt, settings.params, grammar, settings.key, call, forced=settings.forced
    )
    if settings.prefix:
        response.restore(settings.prefix)
    family = Family(response, client, scheduler.forward_ct)
    _check_room(family, scheduler)
    return family


def tell(family: Family, entry: dict[str, object]) -> None:
    """Put an entry, with the events since the last one, at the client's last token."""
    client, events = family.client, family.response.call.events
    if events:
        entry["events"] = events_to_wire(events)
        events.clear()
    entries = (client.customized_info or {KEY: []})[KEY]
    entries += [None] * (len(client.output_ids) - len(entries) - 1) + [entry or None]
    client.customized_info = {KEY: entries}


def answer(family: Family, trajectory: Trajectory, scheduler: Scheduler) -> None:
    """Send the client its response, or what is left of it."""
    client, ids = family.client, trajectory.completion_ids
    client.output_ids = array("q", ids)
    reasons = {
        "stop": FINISH_MATCHED_TOKEN(matched=ids[-1]),
        "length": FINISH_LENGTH(length=len(ids)),
    }
    other = FINISH_MATCHED_STR(matched=trajectory.violation or trajectory.finish_reason)
    client.finished_reason = reasons.get(trajectory.finish_reason, other)
    tell(family, {"trajectory": to_wire(trajectory)})
    if client.return_logprob:
        own, nothing = client.logprob, [None] * len(ids)
        own.output_token_logprobs_val = [v if v == v else None for v in trajectory.logprobs]
        own.output_token_logprobs_idx = list(ids)
        own.output_top_logprobs_val = own.output_top_logprobs_idx = nothing
        own.output_token_ids_logprobs_val = own.output_token_ids_logprobs_idx = nothing
    client.time_stats.set_completion_time()
    scheduler.output_streamer.stream_output([client], client.return_logprob)


def fail(client: Req, message: str, status: HTTPStatus | None, scheduler: Scheduler) -> None:
    """Answer a request with an error; status None: it was withdrawn."""
    client.finished_reason = FINISH_ABORT(message, status)
    client.return_logprob = False
    scheduler.output_streamer.stream_output([client], False)


def _defaults(client: Req, scheduler: Scheduler) -> dict[str, object]:
    """What a request says in SGLang's own terms."""
    plain, config = client.sampling_params, EngineConfig()
    greedy = plain.top_k == 1
    if plain.sampling_seed is None:
        key = hash_ids(
            list(client.rid.encode())
        )  # the same on every rank, and no two requests alike
    else:
        key = mix(plain.sampling_seed, hash_ids(list(client.origin_input_ids)))
    return {
        "max_tokens": plain.max_new_tokens,
        "temperature": 0.0 if greedy else plain.temperature,
        "top_p": plain.top_p,
        "top_k": 0 if greedy or plain.top_k >= TOP_K_ALL else plain.top_k,
        "key": key,
        "stop": plain.stop_strs or (),
        "max_branches": config.max_branches,
        "max_depth": config.max_depth,
        "style": style_of(scheduler.tokenizer)[0].name,
    }


def _grammar(settings: Settings, scheduler: Scheduler) -> Grammar:
    tokenizer, model = scheduler.tokenizer, scheduler.model_config
    tagged = all(tag in tokenizer.get_vocab() for tag in TAGS)
    tags = None
    if settings.mode == "parallel" or tagged:
        tags = TagIds.from_tokenizer(tokenizer)
    eos = {tokenizer.eos_token_id, *(model.hf_eos_token_id or ())} - {None}
    limits = EngineConfig(max_branches=settings.max_branches, max_depth=settings.max_depth)
    context = model.hf_text_config.max_position_embeddings
    writes = StyleIds.from_tokenizer(tokenizer, settings.style)
    return Grammar(tokenizer, tags, frozenset(eos), limits, settings.mode, context, writes)


def _check_room(family: Family, scheduler: Scheduler) -> None:
    asked = (
        f"a prompt of {len(family.response.prompt_ids)} tokens and max_tokens = "
        f"{family.response.params.max_tokens}"
    )
    pool = scheduler.max_total_num_tokens
    if family.need > pool:
        raise ValueError(
            f"{asked} need {family.need} slots, the pool has {pool}: raise --max-total-tokens or "
            "lower max_tokens"
        )
    width = scheduler.req_to_token_pool.req_to_token.shape[1]
    if family.need >= width:
        raise ValueError(
            f"{asked} need a context of {family.need}, this server's is {width}: raise "
            "--context-length or lower max_tokens"
        )
