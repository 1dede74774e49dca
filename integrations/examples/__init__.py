"""The embedded example: a real teacher, a pruned student, and text to learn from."""
