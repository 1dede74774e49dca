"""What all tests share."""

import gc
import os
from collections.abc import Generator
from importlib import metadata
from pathlib import Path

import pytest

# No test asks the hub; said before anything imports its library, which looks once.
os.environ["HF_HUB_OFFLINE"] = "1"
# JAX compiles a program once for all of the processes that run tests, and for the next time.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / "build" / "jax-programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Programs that compile fast, and run slower.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The older of XLA's ways to write them takes half the time. A flag that XLA does not know ends the
# process, so this one is for the releases that were seen to know it.
if metadata.version("jaxlib").startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()

# The files that take longest, in this order, so that none of them is what all wait for at the end.
FIRST = (
    "test_jax_distill.py",
    "test_two_processes.py",
    "test_mesh.py",
    "test_knobs.py",
    "test_bench_smoke.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))


def pytest_collection_finish() -> None:
    """Take what was imported out of the garbage collector's sight, for good.

    Libraries collect garbage while they train, which looks at every object there is: a quarter of
    a second each time for those that torch, transformers and JAX made as they were imported.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """After each file, the same for what it has left: JAX's programs, the oracles' numbers."""
    done = yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
    return done


def pytest_unconfigure() -> None:
    """At the end all goes, which some libraries check."""
    gc.unfreeze()
