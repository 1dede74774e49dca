"""Datasets of the hub and of local files, in TRL's columns."""
