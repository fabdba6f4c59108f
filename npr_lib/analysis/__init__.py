"""From rollouts to numbers: evaluation, metrics, tables, ablations. Draws nothing."""
