"""What all tests share."""

import gc
import os
from pathlib import Path

# JAX compiles a program once for all of the processes that run tests, and for the next time.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / "build" / "jax-programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_collection_finish() -> None:
    """Take what was imported out of the garbage collector's sight, for good.

    Libraries collect garbage while they train, which looks at every object there is: a quarter of
    a second each time for those that torch, transformers and JAX made as they were imported.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all goes, which some libraries check."""
    gc.unfreeze()
