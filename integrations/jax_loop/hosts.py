"""Several processes, one on each host, that train together."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from amidmath.integrations.shared.errors import InputError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Join the other processes, if the environment says that there are some.

    To be called before anything is computed. ``JAX_COORDINATOR_ADDRESS`` (host:port of the first
    process) says so; ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` are needed where no cluster tells
    JAX. On CPUs, processes talk by gloo.

    Raises:
        InputError: numbers that are none.
    """
    if ADDRESS not in os.environ:
        return
    given: dict[str, int | None] = {}
    for name in (COUNT, INDEX):
        text = os.environ.get(name)
        try:
            given[name] = None if text is None else int(text)
        except ValueError as error:
            raise InputError(f"{name} must be a whole number, got {text!r}") from error
    jax.distributed.initialize(
        os.environ[ADDRESS], num_processes=given[COUNT], process_id=given[INDEX]
    )


def is_main() -> bool:
    """Whether this process writes what there is one of."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def summed(*counts: int) -> tuple[int, ...]:
    """Each over all processes, in one exchange."""
    if jax.process_count() == 1:
        return counts
    found = np.sum(multihost_utils.process_allgather(np.asarray(counts)), axis=0)
    return tuple(int(count) for count in found)
