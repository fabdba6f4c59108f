"""The interactive explorer: one front end, as a page of its own and as a notebook widget."""
