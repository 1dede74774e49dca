"""A run's folder: checkpoints, metrics, model card and plots."""
