"""Rows: positions of a batch as rows, and closed forms in chunks of them."""
