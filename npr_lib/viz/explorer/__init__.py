"""One front end for trajectories: a page of its own, a notebook widget, one response in a cell."""
