"""The three training stages, their baselines, and what ties TRL's trainers to the engine."""
