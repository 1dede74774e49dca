"""Tiny models of all families, in transformers and in the decoder."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
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
def compile_fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that compile fast, and run slower; what was compiled once is read again."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
