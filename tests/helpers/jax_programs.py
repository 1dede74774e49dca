"""How JAX compiles in tests."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def compiled_fast() -> Iterator[None]:
    """Programs compile fast, and run slower."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)
