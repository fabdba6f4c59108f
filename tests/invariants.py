"""What must hold of the engine after every step, and a response told by its events.

Everything is counted again from tokens and paths; nothing asks the engine for its own sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from oracles import brute_force_mask, dense_logits, trajectory_paths

from npr_lib.engine import BranchEnd, Event, Finish, Fork, Join, SamplingParams, Token, TorchEngine
from npr_lib.engine.branch import Branch, Response, Run
from npr_lib.engine.sampling import gumbels, hash_ids, mix
from npr_lib.reasoning.layout import BranchPath
from npr_lib.reasoning.tokens import TagIds
from npr_lib.reasoning.trajectory import Trajectory


def _branches(branch: Branch) -> Iterator[Branch]:
    """A branch and all that ever grew out of it."""
    yield branch
    for item in branch.items:
        if not isinstance(item, Run):
            for child in item:
                yield from _branches(child)


def _forwarded(response: Response) -> int:
    """Tokens of a running response that have a slot: all but those still pending."""
    if not response.root.sampled:
        return 0
    branches = list(_branches(response.root))
    total = sum(len(i.tokens) for b in branches for i in b.items if isinstance(i, Run))
    alive = list(response.root.tree())
    pending = {b: len(b.pending) for x in alive for b in (x, *x.joining)}
    return total - sum(pending.values())


def _held(branch: Branch) -> bool:
    """Its table has not been released (a branch that was joined keeps the empty husk)."""
    return branch.table is not None and branch.table._row is not None


def check_slots(engine: TorchEngine) -> None:
    """Every token that was forwarded for somebody has one slot, and no other slot is taken."""
    pool, scheduler = engine.kv, engine.scheduler
    pool.check()
    alive = [*scheduler.running, *scheduler.waiting]
    prompts = {r.prompt for r in alive if r.prompt.table is not None}
    prompts |= {fill.prompt for fill in scheduler.fills if fill.prompt is not None}
    # the last token of a prompt is its own, the others are shared with every other prompt
    shared = {tuple(p.ids[:i]) for p in prompts for i in range(1, len(p.ids))}
    completions = sum(_forwarded(r.response) for r in scheduler.running)
    assert pool.num_used == len(shared) + len(prompts) + completions
    # the same number, as slots that somebody can reach
    tables = [prompt.table for prompt in prompts]
    for request in scheduler.running:
        tables += [b.table for b in _branches(request.response.root) if _held(b)]
    reached: set[int] = set()
    for table in tables:
        slots = table.slots.tolist()
        assert len(set(slots)) == len(slots), "a table holds a slot twice"
        reached.update(slots)
    assert len(reached) == pool.num_used
    for request in scheduler.waiting:
        assert not any(_held(b) for b in _branches(request.response.root))
    assert len(scheduler.running) <= engine.config.max_running
    # the tree: each prefix once, cached where no prompt that is alive holds it
    stored: list[tuple[int, ...]] = []
    stack = [((), child) for child in scheduler.tree.root.children.values()]
    while stack:
        before, node = stack.pop()
        assert len(node.ids) == len(node.segment.slots) > 0
        stored += [(*before, *node.ids[: i + 1]) for i in range(len(node.ids))]
        stack += [(stored[-1], child) for child in node.children.values()]
    assert len(set(stored)) == len(stored) and shared <= set(stored)
    assert pool.num_cached == len(stored) - len(shared)


def check_empty(engine: TorchEngine, cached: bool = False) -> None:
    """Nothing is left behind (but the KV of prompts where `cached`)."""
    check_slots(engine)
    scheduler = engine.scheduler
    assert not (engine.busy or scheduler.running or scheduler.waiting or scheduler.fills)
    assert engine.kv.num_used == 0 and (cached or engine.kv.num_cached == 0)
    assert not engine._streams and not engine._events
    assert len(engine.kv._free_rows) + len(engine.kv._given_rows) == len(engine.kv.tables)


def check_every_step(engine: TorchEngine) -> TorchEngine:
    """Let an engine check its slots after every step."""
    step = engine.step

    def checking() -> list[Event]:
        events = step()
        check_slots(engine)
        return events

    engine.step = checking
    return engine


def rebuild(
    events: Sequence[Event], prompt_len: int, tags: TagIds, after_step: int = 0
) -> list[tuple]:
    """(token, logprob, sampled, step, position) in token order, as the events of one response
    tell it, without what lies behind its last position (the engine wrote ahead there)."""
    items: dict[BranchPath, list] = {(): []}
    last: dict[BranchPath, int] = {(): prompt_len - 1}
    open_blocks: dict[BranchPath, list[BranchPath]] = {}
    blocks: Counter[BranchPath] = Counter()
    ended: set[BranchPath] = set()
    for event in events:
        path = event.path
        if isinstance(event, Token):
            assert path not in ended and path not in open_blocks
            last[path] += 1
            token = (event.token, event.logprob, event.sampled, event.step, last[path])
            items[path].append(token)
        elif isinstance(event, Fork):
            assert items[path][-1][0] == tags.guideline_end
            children = [(*path, (blocks[path], i)) for i in range(event.branches)]
            blocks[path] += 1
            items[path].append(children)
            open_blocks[path] = children
            for child in children:
                items[child], last[child] = [], last[path]
        elif isinstance(event, BranchEnd):
            assert items[path][-1 - after_step][0] == tags.step_end
            ended.add(path)
        elif isinstance(event, Join):
            children = open_blocks.pop(path)
            assert ended.issuperset(children)
            last[path] = max(last[child] for child in children)
    assert isinstance(events[-1], Finish)
    end = int(events[-1].trajectory.position_ids.max())

    def flat(path: BranchPath) -> list[tuple]:
        out = []
        for item in items[path]:
            out += [item] if isinstance(item, tuple) else [t for c in item for t in flat(c)]
        return out

    tokens = flat(())
    assert not any(sampled for *_, sampled, _, position in tokens if position > end + 1)
    return [token for token in tokens if token[-1] <= end]


def by_path(trajectory: Trajectory) -> dict[BranchPath, list[tuple[int, int, bool, int]]]:
    """(token, position, sampled, index) of every branch, blocks counted within their parent."""
    numbers: dict[tuple[BranchPath, int], int] = {}
    seen: Counter[BranchPath] = Counter()
    out: dict[BranchPath, list[tuple[int, int, bool, int]]] = {(): []}
    start = len(trajectory.prompt_ids)
    for segment in trajectory.segments:
        if segment.kind == "prompt":
            continue
        path: BranchPath = ()
        for block, branch in segment.path:
            if (path, block) not in numbers:
                numbers[path, block] = seen[path]
                seen[path] += 1
            path = (*path, (numbers[path, block], branch))
        for t in range(segment.start, segment.end):
            position = int(trajectory.position_ids[t])
            own = (trajectory.completion_ids[t - start], position, trajectory.sampled[t - start])
            out.setdefault(path, []).append((*own, t))
    return out


def first_difference(a: Trajectory, b: Trajectory) -> tuple[int, BranchPath, int] | None:
    """(position, branch, index in it) of the first token that two responses differ in."""
    found = []
    ours, theirs = by_path(a), by_path(b)
    for path in ours.keys() | theirs.keys():
        left, right = ours.get(path, []), theirs.get(path, [])
        for i in range(max(len(left), len(right))):
            pair = [own[i][:2] if i < len(own) else None for own in (left, right)]
            if pair[0] != pair[1]:
                found.append((next(p for p in pair if p)[1], path, i))
                break
    return min(found, default=None)


def margin(
    model: torch.nn.Module,
    trajectory: Trajectory,
    path: BranchPath,
    index: int,
    params: SamplingParams,
    occurrence: int,
    sample: int,
) -> float:
    """How close the choice of a sampled token was to another one, by a dense forward: of the top
    two of the race (greedy: of the logits), or of top-p and top-k to another set."""
    own = by_path(trajectory)[path]
    key = mix(mix(params.seed, hash_ids(trajectory.prompt_ids), occurrence), sample)
    for block, branch in path:
        key = mix(key, block, branch)
    chosen = [token for token, _, sampled, _ in own[:index] if sampled]
    ids = trajectory.prompt_ids + trajectory.completion_ids
    mask = brute_force_mask(trajectory_paths(trajectory))
    logits = dense_logits(model, ids, trajectory.position_ids, mask)
    t = own[index][3]
    visible = np.flatnonzero(mask[t].numpy())
    scores = logits[visible[visible < t][-1]].double().numpy()
    if path and params.branch_penalty != 1:
        for token in set(chosen):
            factor = params.branch_penalty
            scores[token] *= 1 / factor if scores[token] > 0 else factor
    if params.temperature == 0:
        top = np.sort(scores)
        return float(top[-1] - top[-2])
    scores = scores / params.temperature
    probs = np.exp(scores - scores.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    margins = []
    if params.top_k:
        margins.append(float(np.log(probs[order[params.top_k - 1]] / probs[order[params.top_k]])))
        probs[order[params.top_k :]] = 0
    if params.top_p < 1:
        kept = probs[order]
        before = kept.cumsum() - kept
        margins.append(float(np.abs(before - params.top_p * kept.sum()).min()))
        probs[order[before >= params.top_p * kept.sum()]] = 0
    assert len(probs) <= 256, "one group, whose noise is numbered from 1"
    noise = gumbels([key], [len(chosen)], 1 + np.arange(len(probs))[None])[0]
    race = np.sort((scores + noise)[probs > 0])
    return min([*margins, *(race[-1:] - race[-2:-1]).tolist()], default=0.0)
