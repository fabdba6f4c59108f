"""What a parallel response is: grammar, tag tokens, layout, trajectory. Imports nothing above."""
