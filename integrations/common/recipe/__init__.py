"""The loss that a run minimises, and how its parameters change over training."""
