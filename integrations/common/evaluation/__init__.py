"""Scores of answers on tasks, and figures of held-out text."""
