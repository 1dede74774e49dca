"""Rows of token ids, and batches of them."""
