"""Teachers of a batch: a model in memory, the student's base, or a cache."""
