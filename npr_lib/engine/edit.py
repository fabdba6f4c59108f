"""What if? Prefixes that a response goes on from: `engine.generate([prompt], params, prefix=...)`.

    prefix = edit.cut(response, tokenizer, 40)                       # token 40, and all that saw it
    prefix = edit.rewrite_branch(response, tokenizer, ((0, 1),), "4+3=7")
    prefix = edit.change_plan(response, tokenizer, ((0, 2),), "C=1+1")

Each takes a Trajectory and gives a `Prefix`: for every branch the tokens that are kept. What an
edit touches and whatever has seen it are gone; parallel branches, which have not, stay. A branch is
named by its path ((block, branch), ...), both from 0, blocks counted within their parent.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from npr_lib.reasoning.layout import BranchPath, by_branch, sampled_tokens
from npr_lib.reasoning.style import Style
from npr_lib.reasoning.tokens import TagIds, encode
from npr_lib.reasoning.trajectory import Trajectory

Draft = dict[BranchPath, list[int]]


def whole(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase) -> Draft:
    """Everything but what the engine writes itself."""
    return _kept(trajectory, tokenizer, [True] * trajectory.work)


def cut(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, index: int) -> Draft:
    """Without completion token `index` and every token that saw it. IndexError if there is none."""
    if not 0 <= index < trajectory.work:
        raise IndexError(f"token {index}: the response has {trajectory.work}")
    prompt_len, hidden = trajectory.layout.prompt_len, trajectory.layout.hidden
    first = prompt_len + index
    blind = [True] * index
    for t in range(first, prompt_len + trajectory.work):
        blind.append(any(low <= first < high for low, high in hidden[:, t].tolist()))
    return _kept(trajectory, tokenizer, blind)


def rewrite_branch(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, path: BranchPath, text: str
) -> Draft:
    """With another text in a branch, which then ends. The rest of its block stays as it was."""
    draft, tags = _before_join(trajectory, tokenizer, path)
    draft[path] = [*encode(text + trajectory.style.end_of_step, tokenizer), tags.step_end]
    return draft


def change_plan(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, path: BranchPath, text: str
) -> Draft:
    """With another plan for a branch, which begins anew."""
    draft, tags = _before_join(trajectory, tokenizer, path)
    block, branch = path[-1]
    draft.pop(path)
    plans, start, end = _plans(draft[path[:-1]], block, tags)
    plans[branch] = _labelled(branch + 1, text, tokenizer)
    draft[path[:-1]][start:end] = _guideline(plans, tags, tokenizer, trajectory.style)
    return draft


def drop_branch(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, path: BranchPath
) -> Draft:
    """Without a branch and its plan; later ones move up. ValueError for the only branch."""
    draft, tags = _before_join(trajectory, tokenizer, path)
    parent, (block, branch) = path[:-1], path[-1]
    plans, start, end = _plans(draft[parent], block, tags)
    if len(plans) == 1:
        raise ValueError(f"branch {path} is the only one of its block")
    del plans[branch]
    for i in range(branch, len(plans)):
        text = tokenizer.decode(plans[i])
        plans[i] = _labelled(i + 1, text[text.index(":") + 1 :], tokenizer)
    draft[parent][start:end] = _guideline(plans, tags, tokenizer, trajectory.style)
    moved: Draft = {}
    for other, ids in draft.items():
        if other[: len(path)] == path:
            continue
        if len(other) >= len(path) and other[: len(parent)] == parent:
            number, index = other[len(parent)]
            if number == block and index > branch:
                other = (*parent, (number, index - 1), *other[len(path) :])
        moved[other] = ids
    return moved


def rewrite_takeaway(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    block: int,
    text: str,
    parent: BranchPath = (),
) -> Draft:
    """With another takeaway of the block-th block of a branch (the trunk, if none is named)."""
    draft, tags = _before_join(trajectory, tokenizer, (*parent, (block, 0)), keep=True)
    draft[parent] += [*encode(text, tokenizer), tags.takeaway_end]
    return draft


def _kept(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, keep: list[bool]) -> Draft:
    ids = trajectory.completion_ids
    chosen = [True] * len(ids)
    if trajectory.mode == "parallel":
        every = trajectory.prompt_ids + ids
        chosen = sampled_tokens(every, trajectory.layout, tokenizer, trajectory.style)
    return by_branch(trajectory.layout, ids, [a and b for a, b in zip(keep, chosen, strict=True)])


def _before_join(
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    path: BranchPath,
    keep: bool = False,
) -> tuple[Draft, TagIds]:
    """Everything that has not seen the branch at `path`, and (keep) that branch."""
    draft, tags = whole(trajectory, tokenizer), TagIds.from_tokenizer(tokenizer)
    if not path or path not in draft:
        raise ValueError(f"no branch {path}: the response has {sorted(draft)[1:]}")
    for depth, (block, _) in enumerate(path):
        branch = path[:depth]
        _, _, end = _plans(draft[branch], block, tags)
        del draft[branch][end:]
        for other in [p for p in draft if len(p) > depth and p[:depth] == branch]:
            if other[depth][0] > block:
                del draft[other]
    if not keep:
        for other in [p for p in draft if p[: len(path)] == path and p != path]:
            del draft[other]
    return draft, tags


def _plans(ids: list[int], block: int, tags: TagIds) -> tuple[list[list[int]], int, int]:
    """The plans of a branch's block-th guideline (ids between their tags), and where it starts and
    ends in the branch's tokens."""
    start = [i for i, token in enumerate(ids) if token == tags.guideline][block]
    end = ids.index(tags.guideline_end, start) + 1
    plans: list[list[int]] = []
    inside = False
    for token in ids[start + 1 : end - 1]:
        if token == tags.plan:
            plans.append([])
        elif inside and token != tags.plan_end:
            plans[-1].append(token)
        inside = token == tags.plan or (inside and token != tags.plan_end)
    return plans, start, end


def _labelled(index: int, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [*encode(f"{index}:", tokenizer), *encode(text, tokenizer)]


def _guideline(
    plans: list[list[int]], tags: TagIds, tokenizer: PreTrainedTokenizerBase, style: Style
) -> list[int]:
    white = encode(style.in_guideline, tokenizer)
    inside = [token for plan in plans for token in (tags.plan, *plan, tags.plan_end, *white)]
    return [tags.guideline, *white, *inside, tags.guideline_end]
