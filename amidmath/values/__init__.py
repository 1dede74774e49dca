"""Losses and divergences as values: equality, pytrees, operators."""
