"""Tiny models of all families, in transformers and in the decoder."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from jax_programs import compiled_fast
from tiny_families import tiny_family
from transformers import PreTrainedModel

from amidmath.integrations.jax_loop.model_files import LoadedModel, load_model

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


@pytest.fixture(autouse=True, scope="package")
def compile_fast() -> Iterator[None]:
    """See ``compiled_fast``."""
    with compiled_fast():
        yield
