"""Pictures of trajectories, trainings and comparisons: plain functions returning plotly figures
(`html` returns a fragment of HTML, `table` a frame of text).

    graph, timeline, mask, positions, tokens, html       of one trajectory
    curves                                               of a training log
    ladder, paired, speed, lengths, branches, table      of evaluated checkpoints
    benchmark                                            of the engine against its peers

Figures carry their data and fetch nothing; whoever writes them to HTML chooses where plotly's
script lies.
"""

from npr_lib.viz.bench import benchmark
from npr_lib.viz.comparison import ladder, paired, speed
from npr_lib.viz.distribution import branches, lengths
from npr_lib.viz.fork_join import graph
from npr_lib.viz.fragment import html
from npr_lib.viz.lanes import timeline
from npr_lib.viz.tables import table
from npr_lib.viz.token_level import mask, positions, tokens
from npr_lib.viz.training import curves

__all__ = [
    "benchmark",
    "branches",
    "curves",
    "graph",
    "html",
    "ladder",
    "lengths",
    "mask",
    "paired",
    "positions",
    "speed",
    "table",
    "timeline",
    "tokens",
]
