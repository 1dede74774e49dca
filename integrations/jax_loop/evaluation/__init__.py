"""Figures of held-out text, and answers to tasks."""
