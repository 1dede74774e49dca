"""What XLA compiles while a test runs.

A compiled function's own count of its programs will not do: what it counts can be dropped.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the programs that XLA compiles meanwhile, or takes from its cache on disk."""
    found: list[str] = []

    def listen(event: str, _: float, **details: Any) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
