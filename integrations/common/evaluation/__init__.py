"""Evaluations of a student beside its teacher, on held-out text and on tasks."""
