"""The embedded engine: any Hugging Face causal LM, on CPU or CUDA, in this process.

    engine = TorchEngine(model, tokenizer, EngineConfig())
    trajectories = engine.generate(["1+1?"], SamplingParams(max_tokens=64), n=8)

One step: the scheduler plans rows of new tokens, one forward computes them all (their KV goes to
pool slots, see attention.py), one vectorised draw samples a token for every branch whose turn it
is, and each response's state machine acts on its tokens (see branch.py). The model's weights are
used in place, so a trainer in the same process trains what the engine decodes with.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from npr_lib.engine.api import EngineConfig, SamplingParams
from npr_lib.engine.attention import KVStep, RowGroup, use_npr_attention
from npr_lib.engine.branch import Branch, Grammar, Response
from npr_lib.engine.kv import KVPool
from npr_lib.engine.sampling import hash_ids, mix, sample, uniforms
from npr_lib.engine.scheduler import Prompt, Row, Scheduler
from npr_lib.layout import BranchPath, Layout, layout, sampled_tokens
from npr_lib.schema import TAGS
from npr_lib.tokenizer import TagIds, encode
from npr_lib.trajectory import Mode, Trajectory


@dataclass(slots=True)
class EngineStats:
    """Totals over the engine's life; `seconds` is time inside `generate` and `replay`."""

    steps: int = 0
    forwarded: int = 0  # tokens through the model
    completed: int = 0  # tokens of finished responses
    responses: int = 0
    seconds: float = 0.0
    peak_slots: int = 0
    preemptions: int = 0
    recomputed: int = 0  # tokens forwarded again after a preemption


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
        self.context = shape.max_position_embeddings
        self._eos_ids = _eos_ids(model, tokenizer)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams,
        n: int = 1,
        mode: Mode = "parallel",
    ) -> list[Trajectory]:
        """n trajectories for every prompt (text or token ids), grouped by prompt in order.

        A response's randomness comes from (params.seed, its prompt, the occurrence of that prompt
        in this call, its sample index), so the same call gives the same responses. `parallel`
        needs a tokenizer with the tag tokens; `sequential` decodes plain text. Raises ValueError
        for an empty prompt, one longer than the model's context, or one that can't fit the pool.
        """
        if n < 1:
            raise ValueError(f"n = {n}: expected at least 1")
        if isinstance(prompts, str):
            raise ValueError("prompts is one text: expected a list of prompts")
        grammar = self._grammar(mode)
        occurrences: Counter[int] = Counter()
        groups = []
        for index, prompt in enumerate(prompts):
            ids = self._prompt_ids(prompt, index)
            digest = hash_ids(ids)
            seed = mix(params.seed, digest, occurrences[digest])
            occurrences[digest] += 1
            responses = [Response(ids, params, grammar, mix(seed, i)) for i in range(n)]
            groups.append((Prompt(ids), responses))
        return self._decode(groups)

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
        groups = []
        for trajectory in trajectories:
            params = SamplingParams(max_tokens=trajectory.work, temperature=trajectory.temperature)
            limits = replace(
                self.config, max_branches=trajectory.max_branches, max_depth=trajectory.max_depth
            )
            grammar = replace(self._grammar(mode), config=limits)
            forced = self._forced(trajectory, mode)
            response = Response(trajectory.prompt_ids, params, grammar, 0, forced)
            groups.append((Prompt(trajectory.prompt_ids), [response]))
        replayed = self._decode(groups)
        for again, trajectory in zip(replayed, trajectories, strict=True):
            if again.completion_ids != trajectory.completion_ids:
                raise ValueError(
                    f"replay ended after {again.work} of {trajectory.work} tokens "
                    f"({again.violation or again.finish_reason}; context {self.context})"
                )
            again.finish_reason, again.violation = trajectory.finish_reason, trajectory.violation
        return replayed

    def _forced(self, trajectory: Trajectory, mode: Mode) -> dict[BranchPath, list[int]]:
        """What a replay writes in each branch."""
        ids = trajectory.completion_ids
        if mode == "sequential":
            return {(): ids}
        if trajectory.mode == "parallel":
            return _forced_tokens(trajectory.layout, ids, trajectory.sampled)
        every, tags = trajectory.prompt_ids + ids, TagIds.from_tokenizer(self.tokenizer)
        structure = layout(every, tags, len(trajectory.prompt_ids))
        return _forced_tokens(structure, ids, sampled_tokens(every, structure, self.tokenizer))

    def weights_changed(self) -> None:
        """Nothing to do: no KV outlives a call."""

    def _grammar(self, mode: Mode) -> Grammar:
        if mode not in ("parallel", "sequential"):
            raise ValueError(f"mode = {mode!r}: expected 'parallel' or 'sequential'")
        tags = TagIds.from_tokenizer(self.tokenizer) if mode == "parallel" else None
        if tags is None and all(tag in self.tokenizer.get_vocab() for tag in TAGS):
            tags = TagIds.from_tokenizer(self.tokenizer)
        return Grammar(self.tokenizer, tags, self._eos_ids, self.config, mode, self.context)

    def _prompt_ids(self, prompt: str | Sequence[int], index: int) -> list[int]:
        text = isinstance(prompt, str)
        ids = encode(prompt, self.tokenizer) if text else [int(i) for i in prompt]
        if not ids:
            raise ValueError(f"prompt {index} is empty")
        if len(ids) >= self.context:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens, the model's context is {self.context}"
            )
        size = self.model.get_input_embeddings().num_embeddings
        outside = [i for i in ids if not 0 <= i < size]
        if outside:
            raise ValueError(f"prompt {index}: token id {outside[0]} is outside 0..{size - 1}")
        return ids

    def _decode(self, groups: Sequence[tuple[Prompt, list[Response]]]) -> list[Trajectory]:
        """Run all responses to their end. The pool is empty afterwards, also after an exception."""
        scheduler = Scheduler(self.kv, self.config.max_running)
        begin, was_training = time.perf_counter(), self.model.training
        self.model.eval()
        try:
            for prompt, responses in groups:
                scheduler.submit(prompt, responses)
            step = 0
            with torch.inference_mode():
                while scheduler.running or scheduler.waiting:
                    self._step(scheduler, step)
                    step += 1
        finally:
            scheduler.abort()
            self.model.train(was_training)
        trajectories = [r.trajectory() for _, responses in groups for r in responses]
        self.stats.seconds += time.perf_counter() - begin
        self.stats.responses += len(trajectories)
        self.stats.preemptions += scheduler.preemptions
        self.stats.recomputed += scheduler.recomputed
        self.stats.completed += sum(t.work for t in trajectories)
        return trajectories

    def _step(self, scheduler: Scheduler, step: int) -> None:
        rows, begun = scheduler.plan()
        if not rows and not begun:
            raise RuntimeError("the scheduler makes no progress")
        logits = self._forward(rows) if rows else None
        owners = [row.owner for row in rows if row.owner is not None]
        turns = [owner for owner in owners if not isinstance(owner, Prompt)]
        if len(turns) < len(owners):
            for owner, values in zip(owners, logits, strict=True):
                if isinstance(owner, Prompt):
                    owner.logits = values
            logits = logits[[i for i, o in enumerate(owners) if not isinstance(o, Prompt)]]
        if begun:
            firsts = torch.stack([job.prompt.logits for job in begun])
            logits = torch.cat([logits, firsts]) if turns else firsts
            turns += [(job.response, job.response.root) for job in begun]
        tokens = _sample_turns(logits, turns)
        self.stats.peak_slots = max(self.stats.peak_slots, self.kv.num_used)
        accepted: dict[Response, list[tuple[Branch, int, float, float]]] = {}
        for (response, branch), token in zip(turns, tokens, strict=True):
            accepted.setdefault(response, []).append((branch, *token))
        for job in list(scheduler.running):
            job.response.accept(accepted[job.response], step)
            if job.response.finish_reason:
                scheduler.finish(job)
        self.stats.steps += 1

    def _forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """One model call over the rows' new tokens; float [rows with an owner, V] logits."""
        by_length: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_length.setdefault(len(row.ids), []).append(i)
        ids: list[int] = []
        positions, writes, groups, last = [], [], [], [0] * len(rows)
        device = self.model.device
        for new, members in by_length.items():
            groups.append(_group(len(ids), [rows[i] for i in members], new, device))
            for i in members:
                row = rows[i]
                ids += row.ids
                positions.append(row.positions)
                writes.append(row.slots[-new:])
                last[i] = len(ids) - 1
        write_slots = torch.from_numpy(np.concatenate(writes)).to(device)
        wanted = [last[i] for i, row in enumerate(rows) if row.owner is not None]
        self.stats.forwarded += len(ids)
        kv_step = KVStep(self.kv.keys, self.kv.values, write_slots, groups)
        output = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.from_numpy(np.concatenate(positions))[None].to(device),
            # A 4-D mask is passed through unread; without one, transformers would build an n x n
            # mask (and take branch positions for packed sequences).
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, device=device),
            npr_step=kv_step,
        )
        if kv_step.layers_done != len(self.kv.keys):
            raise ValueError(
                f"{self.model.config.model_type} is not supported: {kv_step.layers_done} of its "
                f"{len(self.kv.keys)} layers pass keyword arguments on to their attention"
            )
        return output.logits[0]


def _group(start: int, rows: Sequence[Row], new: int, device: torch.device) -> RowGroup:
    """Rows with the same number of new tokens as one padded batch."""
    lengths = np.array([len(row.slots) for row in rows])
    slots = np.zeros((len(rows), lengths.max()), np.int64)
    for i, row in enumerate(rows):
        slots[i, : len(row.slots)] = row.slots
    # new token s of row r sees all of the context, and the new tokens up to itself
    visible = (lengths[:, None] - new) + np.arange(1, new + 1)
    mask = np.arange(slots.shape[1]) < visible[..., None]
    for i, row in enumerate(rows):
        for level in () if row.hidden is None else row.hidden:
            keys = np.arange(slots.shape[1]) - (lengths[i] - new)
            mask[i] &= (keys < level[:, :1]) | (keys >= level[:, 1:])
    return RowGroup(start, torch.from_numpy(slots).to(device), torch.from_numpy(mask).to(device))


def _sample_turns(
    logits: torch.Tensor, turns: Sequence[tuple[Response, Branch]]
) -> list[tuple[int, float, float]]:
    """(token, logprob, behaviour logprob) for every branch whose turn it is."""
    uniform = uniforms([b.key for _, b in turns], [len(b.sampled) for _, b in turns])
    forced = [response.forced_token(branch) for response, branch in turns]
    alike: dict[tuple[float, ...], list[int]] = {}
    for i, (response, _) in enumerate(turns):
        alike.setdefault(response.params.distribution, []).append(i)
    tokens: list[tuple[int, float, float]] = [(0, 0.0, 0.0)] * len(turns)
    for rows in alike.values():
        params = turns[rows[0]][0].params
        seen = [turns[i][1].sampled if turns[i][1].path else [] for i in rows]
        own = logits if len(rows) == len(turns) else logits[rows]
        drawn = sample(own, uniform[rows], params, seen, [forced[i] for i in rows])
        for i, token in zip(rows, zip(*drawn, strict=True), strict=True):
            tokens[i] = token
    return tokens


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end a response: the tokenizer's EOS and those of the generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return frozenset(i for i in ids if i is not None)


def _forced_tokens(
    source: Layout, ids: Sequence[int], sampled: Sequence[bool]
) -> dict[BranchPath, list[int]]:
    """The sampled tokens of every branch, keyed as the engine numbers branches: blocks counted
    within their parent instead of over the whole response."""
    ordinals: dict[int, int] = {}
    seen: Counter[BranchPath] = Counter()
    forced: dict[BranchPath, list[int]] = {}
    for segment in source.segments:
        path: BranchPath = ()
        for block, branch in segment.path:
            if block not in ordinals:
                ordinals[block] = seen[path]
                seen[path] += 1
            path = (*path, (ordinals[block], branch))
        if segment.kind != "prompt":
            start, end = segment.start - source.prompt_len, segment.end - source.prompt_len
            chosen = [i for i, own in zip(ids[start:end], sampled[start:end], strict=True) if own]
            forced.setdefault(path, []).extend(chosen)
    return forced
