"""Conversations, chat templates, tokenizers and the vocabularies of two models."""
