"""Logs of a run: the metrics file, the progress bar, trackers of experiments."""
