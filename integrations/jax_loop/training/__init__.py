"""The trainer, and everything that it takes a step with."""
