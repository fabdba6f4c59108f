"""What the parts of a trajectory are called in pictures: segments and branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npr_lib.reasoning.layout import BranchPath
    from npr_lib.reasoning.trajectory import Trajectory


def segment_names(trajectory: Trajectory) -> list[str]:
    """ "prompt", "guideline", "step 2", "step 2.1", "takeaway", "text", "answer", "response".

    A step goes on, after a block nested in it, as "step 2, cont.".
    """
    segments = trajectory.segments
    names: list[str] = []
    begun: set[BranchPath] = set()
    for segment in segments:
        name: str = segment.kind
        if segment.kind == "step":
            name = f"step {_number(lane(segment.path))}"
            if segment.path in begun:
                name += ", cont."
            begun.add(segment.path)
        names.append(name)
    if segments[-1].kind == "text":
        alone = sum(segment.kind != "prompt" for segment in segments) == 1
        names[-1] = "response" if alone else "answer"
    return names


def lane(path: BranchPath) -> tuple[int, ...]:
    """The lane of the timeline that a path decodes in: its branches, of whichever blocks."""
    return tuple(branch for _, branch in path)


def lane_name(lane: tuple[int, ...]) -> str:
    """ "trunk", "branch 2", or "branch 2.1" for a nested branch."""
    return f"branch {_number(lane)}" if lane else "trunk"


def _number(lane: tuple[int, ...]) -> str:
    return ".".join(str(branch + 1) for branch in lane)
