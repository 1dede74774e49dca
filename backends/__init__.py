"""Executors: what runs the core on each array library."""
