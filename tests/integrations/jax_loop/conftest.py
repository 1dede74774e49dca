"""Tiny models of all families, in transformers and in the decoder."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tiny_families import tiny_family
from transformers import PreTrainedModel

from amidmath.integrations.jax_loop.models.model_files import LoadedModel, load_model

Pair = tuple[PreTrainedModel, LoadedModel]


@cache
def _pair(variant: str) -> Pair:
    model = tiny_family(variant)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder))
        return model, load_model("--model", folder)


@pytest.fixture
def pair() -> Callable[[str], Pair]:
    """A variant's model in transformers, and the same weights in the decoder; leave them so."""
    return _pair
