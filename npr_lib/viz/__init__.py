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

Figures carry their data and fetch nothing; whoever writes them to HTML chooses where plotly's
script lies.
"""

from npr_lib.viz.adaptivity import adaptivity
from npr_lib.viz.curves import curves
from npr_lib.viz.explorer.data import page
from npr_lib.viz.explorer.live import live
from npr_lib.viz.explorer.suspects import doubt, slips
from npr_lib.viz.explorer.what_if import what_if
from npr_lib.viz.explorer.widget import explore
from npr_lib.viz.graph import graph
from npr_lib.viz.ladder import ladder, paired, speed
from npr_lib.viz.lengths import branches, lengths
from npr_lib.viz.mask import mask, positions, tokens
from npr_lib.viz.tables import table
from npr_lib.viz.timeline import timeline
from npr_lib.viz.transcript import html

__all__ = [
    "adaptivity",
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
