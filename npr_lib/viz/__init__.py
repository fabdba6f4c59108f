"""Pictures of trajectories, trainings and comparisons: one plain function each.

    response                                             one trajectory
    explore, page                                        rollouts, to click through
    read_texts                                           responses made elsewhere, for those two
    live, what_if                                        the same with an engine at work
    slips, doubt                                         where a trajectory may have gone wrong
    curves                                               a training log
    ladder, paired, speed, lengths, branches, table      evaluated checkpoints
    best_curves                                          what more samples are worth
    adaptivity                                           their ways to divide a problem

One front end (`explorer/frontend`) draws trajectories: `response` and `page` return HTML that holds
it, `explore`, `live` and `what_if` a widget. What compares is a plotly figure (`table`: a frame of
text); whoever writes those to HTML chooses where plotly's script lies. All carry their data and
fetch nothing.
"""

from npr_lib.viz.adaptivity import adaptivity
from npr_lib.viz.best import best_curves
from npr_lib.viz.curves import curves
from npr_lib.viz.explorer.data import page
from npr_lib.viz.explorer.foreign import read_texts
from npr_lib.viz.explorer.live import live
from npr_lib.viz.explorer.response import response
from npr_lib.viz.explorer.suspects import doubt, slips
from npr_lib.viz.explorer.what_if import what_if
from npr_lib.viz.explorer.widget import explore
from npr_lib.viz.ladder import ladder, paired, speed
from npr_lib.viz.lengths import branches, lengths
from npr_lib.viz.tables import table

__all__ = [
    "adaptivity",
    "best_curves",
    "branches",
    "curves",
    "doubt",
    "explore",
    "ladder",
    "lengths",
    "live",
    "page",
    "paired",
    "read_texts",
    "response",
    "slips",
    "speed",
    "table",
    "what_if",
]
