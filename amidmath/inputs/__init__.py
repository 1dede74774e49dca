"""Inputs of a loss: logits, hidden states with their head, top-k lists, shards."""
