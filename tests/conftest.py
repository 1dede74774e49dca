"""What all tests share."""

import gc


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
