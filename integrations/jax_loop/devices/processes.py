"""Several processes, one on each host, that train together."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray

from amidmath.integrations.common.errors import InputError, first_paragraph

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

T = TypeVar("T")

# A process that ends while the others work waits so long for them; then JAX ends them too.
_LAST_SECONDS = 10
_MESSAGE_BYTES = 2048


def join() -> None:
    """Join the other processes, if the environment says that there are some.

    To be called before anything is computed. ``JAX_COORDINATOR_ADDRESS`` (host:port of the first
    process) says so; ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` are needed where no cluster tells
    JAX. On CPUs, processes talk by gloo.

    Raises:
        InputError: an address or numbers that are none, or are missing.
    """
    if ADDRESS not in os.environ or jax.distributed.is_initialized():
        return
    address, count, index = os.environ[ADDRESS], processes(), _number(INDEX, 0)
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"{ADDRESS} must be host:port, such as 10.0.0.1:1234, got {address!r}")
    if count is not None and index is not None and index >= count:
        raise InputError(f"{INDEX} must be less than {COUNT}, which is {count}, got {index}")
    try:
        jax.distributed.initialize(
            address,
            num_processes=count,
            process_id=index,
            shutdown_timeout_seconds=_LAST_SECONDS,
        )
    except ValueError as error:
        missing = [name for name, of in ((COUNT, count), (INDEX, index)) if of is None]
        if not missing:
            raise
        raise InputError(
            f"{ADDRESS} is {address!r}, and {' and '.join(missing)} must be given too where no "
            f"cluster says it: {first_paragraph(error)}"
        ) from error


def processes() -> int | None:
    """How many processes the environment says that there are; None if only a cluster knows.

    Raises:
        InputError: the number is none.
    """
    return _number(COUNT, 1) if ADDRESS in os.environ else 1


@contextmanager
def together() -> Iterator[None]:
    """A block that an ``InputError`` of any process ends on every process.

    No other error does: where one process fails with that, the others wait for it at the end of the
    block until JAX ends them. The block itself may not wait for another process.

    Raises:
        InputError: of this process, or else of the first that has one, which is named.
    """
    failed: InputError | None = None
    try:
        yield
    except InputError as error:
        failed = error
    messages = [] if jax.process_count() == 1 else _said("" if failed is None else str(failed))
    if failed is not None:
        raise failed
    for index, message in enumerate(messages):
        if message:
            raise InputError(f"process {index}: {message}")


def is_main() -> bool:
    """Whether this process writes what there is one of."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class Joined:
    """The processes that have joined, for a distillation."""

    @property
    def index(self) -> int:
        """Of this process; 0 is the main one's."""
        return jax.process_index()

    def together(self) -> AbstractContextManager[None]:
        """A block that an InputError of any process ends on every process."""
        return together()

    def agreed(self, work: Callable[[], T]) -> T:
        """The finding of ``work`` in files that all processes see and none changes meanwhile."""
        return work()

    def on_main(self, work: Callable[[], None]) -> None:
        """Work of the main process, for which the others wait."""
        wait_for_all("before work of the main process")
        if is_main():
            work()
        wait_for_all("after work of the main process")


def put(value: NDArray[Any], sharding: jax.sharding.Sharding | None) -> jax.Array:
    """An array that every process has, where it belongs; without asking other processes.

    Args:
        value: the whole array.
        sharding: where; None for the default device.
    """
    if sharding is None:
        placed: jax.Array = jax.device_put(value)
        return placed
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def on_host(value: jax.Array) -> NDArray[Any]:
    """All of an array, also where other hosts hold parts of it."""
    if value.is_fully_addressable:
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def _number(name: str, least: int) -> int | None:
    """A variable's whole number; None if it is not set."""
    text = os.environ.get(name)
    try:
        number = None if text is None else int(text)
    except ValueError as error:
        raise InputError(f"{name} must be a whole number, got {text!r}") from error
    if number is not None and number < least:
        raise InputError(f"{name} must be at least {least}, got {number}")
    return number


def _said(message: str) -> list[str]:
    """The messages of all processes."""
    room = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = message.encode()[:_MESSAGE_BYTES]
    room[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    found = multihost_utils.process_allgather(room)
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in found]
