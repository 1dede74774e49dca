"""A mesh of devices, and where parameters and batches lie on it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from numpy.typing import NDArray

from amidmath.integrations.common.errors import InputError

Batch = Mapping[str, NDArray[Any]]

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""The axes over which a batch's rows are spread."""

# On which axis of the mesh a parameter's axis is spread; see ``decoder``.
_PLACES = {"embed": "fsdp", "heads": "tensor", "kv": "tensor", "mlp": "tensor", "vocab": "tensor"}


def parse_mesh(text: str, devices: int) -> dict[str, int]:
    """The sizes of the axes that ``--mesh`` names: ``data=2,fsdp=-1``.

    Args:
        text: as given.
        devices: how many there are.

    Raises:
        InputError: not written like that, an axis that there is not, or another number of devices.
    """
    sizes: dict[str, int] = dict.fromkeys(AXES, 1)
    given: set[str] = set()
    for part in filter(None, (word.strip() for word in text.split(","))):
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in AXES or name in given:
            raise InputError(
                f"--mesh {text}: write axes among {', '.join(AXES)}, once each, with their sizes, "
                "such as data=2,fsdp=4"
            )
        try:
            sizes[name] = int(number)
        except ValueError as error:
            raise InputError(
                f"--mesh {text}: {name} needs a whole number, got {number!r}"
            ) from error
        given.add(name)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for name, size in sizes.items() if name not in free):
        raise InputError(f"--mesh {text}: sizes must be positive, one of them may be -1")
    fixed = math.prod(size for name, size in sizes.items() if name not in free)
    if free and devices % fixed == 0:
        sizes[free[0]] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise InputError(f"--mesh {text} does not divide {devices} devices")
    return sizes


def make_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that ``--mesh`` asks for.

    Args:
        text: as given.
        devices: that it is of; None for all.

    Raises:
        InputError: see :func:`parse_mesh`.
    """
    listed = jax.devices() if devices is None else list(devices)
    sizes = parse_mesh(text, len(listed))
    return jax.make_mesh(
        tuple(sizes[name] for name in AXES),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=listed,
    )


def place(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """Where a parameter lies: axes that a mesh axis does not divide are whole on every device."""
    spec = []
    for axis, size in zip(axes, shape, strict=True):
        name = _PLACES.get(axis or "")
        spec.append(name if name is not None and size % mesh.shape[name] == 0 else None)
    return NamedSharding(mesh, P(*spec))


def kept_whole(mesh: Mesh, parameters: Any) -> dict[str, tuple[int, float]]:
    """Parameters that an axis of the mesh was to divide, but cannot: a dimension is no multiple.

    Args:
        mesh: the mesh.
        parameters: a tree of them, with their axes as metadata.

    Returns:
        For each axis that leaves some whole: how many, and their share of all bytes.
    """
    found: dict[str, tuple[int, float]] = {}
    every = jax.tree.leaves(parameters, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    total = sum(parameter.nbytes for parameter in every)
    for parameter in every:
        axes = parameter.get_metadata("axes")
        wanted = {_PLACES[axis] for axis in axes if axis in _PLACES}
        for name in sorted(wanted.difference(place(mesh, axes, parameter.shape).spec)):
            count, share = found.get(name, (0, 0.0))
            found[name] = count + 1, share + parameter.nbytes / total
    return found


def on_mesh(
    mesh: Mesh, batch: Batch, completed: Callable[[Batch], Batch], lead: int = 0
) -> dict[str, jax.Array]:
    """A batch's arrays, spread by rows.

    Args:
        mesh: the mesh.
        batch: the whole batch, the same on every process; axis ``lead`` of its arrays goes over
            rows.
        completed: what is to be done with the rows of this process before.
        lead: how many axes come before, such as that of micro-batches.
    """
    sharding = NamedSharding(mesh, P(*(None,) * lead, ROWS))
    shape = next(iter(batch.values())).shape[: lead + 1]
    size = shape[lead] // row_shards(mesh)

    def first(index: Any) -> int:
        """The first row of a device."""
        return index[lead].start or 0

    places = sharding.addressable_devices_indices_map(shape).values()
    here = np.concatenate([np.arange(row, row + size) for row in sorted(set(map(first, places)))])
    own = completed({name: array.take(here, axis=lead) for name, array in batch.items()})

    def spread_out(array: NDArray[Any]) -> jax.Array:
        def rows(index: Any) -> NDArray[Any]:
            begin = int(np.searchsorted(here, first(index)))
            return array[(*index[:lead], slice(begin, begin + size))]

        whole = (*shape, *array.shape[lead + 1 :])
        return jax.make_array_from_callback(whole, sharding, rows)

    return {name: spread_out(array) for name, array in own.items()}


def look_up(table: Any, ids: jax.Array, dtype: DTypeLike, mesh: Mesh | None) -> jax.Array:
    """The rows (B, T, width) of a parameter (N, width) that tokens or positions (B, T) name.

    The parameter stays where it lies: each device looks up its part of the width, for the rows of
    its neighbours along fsdp too, and they exchange parts for whole rows. Left to itself, XLA looks
    all rows up on every device where the mesh has another axis.

    Args:
        table: the parameter, with its axes as metadata.
        ids: the numbers.
        dtype: of the result.
        mesh: that the table lies on; None for one device.
    """
    found = jnp.take(table[...], ids, axis=0).astype(dtype)
    if mesh is None or mesh.size == 1 or ids.shape[0] % row_shards(mesh):
        return found
    width = place(mesh, table.get_metadata("axes"), table.shape).spec[-1]
    for spec in (P(ROWS[0], None, width), P(ROWS)):
        found = jax.lax.with_sharding_constraint(found, NamedSharding(mesh, spec))
    return found


def row_shards(mesh: Mesh) -> int:
    """Over how many devices a batch's rows are spread."""
    return math.prod(mesh.shape[name] for name in ROWS)
