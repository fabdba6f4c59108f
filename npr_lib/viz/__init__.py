"""Pictures of trajectories, trainings and comparisons: plain functions returning plotly figures
(`html` and `page` return HTML, `table` a frame of text, `explore` a widget, `slips` and `doubt`
what they found).

    explore, page                                        of rollouts, to click through
    live, what_if                                        the same with an engine at work
    graph, timeline, mask, positions, tokens, html       of one trajectory
    slips, doubt                                         where a trajectory may have gone wrong
    curves                                               of a training log
    ladder, paired, speed, lengths, branches, table      of evaluated checkpoints
    adaptivity                                           of their ways to divide a problem
    benchmark                                            of the engine against its peers

Figures carry their data and fetch nothing; whoever writes them to HTML chooses where plotly's
script lies.
"""

from npr_lib.viz.attempts import what_if
from npr_lib.viz.bench import benchmark
from npr_lib.viz.branching import adaptivity
from npr_lib.viz.comparison import ladder, paired, speed
from npr_lib.viz.distribution import branches, lengths
from npr_lib.viz.errors import doubt, slips
from npr_lib.viz.explorer import page
from npr_lib.viz.fork_join import graph
from npr_lib.viz.fragment import html
from npr_lib.viz.growing import live
from npr_lib.viz.lanes import timeline
from npr_lib.viz.tables import table
from npr_lib.viz.token_level import mask, positions, tokens
from npr_lib.viz.training import curves
from npr_lib.viz.widget import explore

__all__ = [
    "adaptivity",
    "benchmark",
    "branches",
    "curves",
    "doubt",
    "explore",
    "graph",
    "html",
    "ladder",
    "lengths",
    "live",
    "mask",
    "page",
    "paired",
    "positions",
    "slips",
    "speed",
    "table",
    "timeline",
    "tokens",
    "what_if",
]
