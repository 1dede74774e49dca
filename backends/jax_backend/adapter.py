"""The adapter of JAX."""

from collections.abc import Sequence
from typing import Any

from jax.core import Tracer

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array, ClosedForm, Namespace, Partials
from amidmath.arrays.dispatch import scaled_sum
from amidmath.backends.array_backend.adapter import ArrayAdapter
from amidmath.backends.jax_backend import chunks, closed_forms, shards, tables
from amidmath.pairs.chunked import ChunkedCall


class JaxAdapter(ArrayAdapter):
    """See :class:`amidmath.arrays.adapters.Adapter`."""

    plans_memory = True

    def check(self, name: str, array: Array) -> None:
        """Keys, gradients by integers and deleted arrays are refused."""
        dtype = str(array.dtype)
        if dtype.startswith("key<"):
            raise TypeError(f"{name} must be an array of numbers, got PRNG keys of dtype {dtype}")
        if "float0" in dtype:
            raise TypeError(
                f"{name} must be an array of numbers, got JAX's float0, the gradient by an integer"
            )
        traced = isinstance(array, Tracer)
        if not traced and array.is_deleted():
            raise ValueError(
                f"{name} must still be there, got a JAX array of shape {tuple(array.shape)} that "
                "was deleted, or donated to a function (donate_argnums)"
            )

    def put(self, rows: Array, at: Array, values: Array, xp: Namespace) -> Array:
        """All at once."""
        written: Array = xp.put_along_axis(rows, at, values, axis=-1, inplace=False)
        return written

    def at_hand(self, array: Array) -> bool:
        """On CPUs of this process, and not traced."""
        return closed_forms.at_hand(array)

    def on_cpu(self, array: Array) -> bool:
        """Of one that is traced, whether JAX would put it there."""
        return closed_forms.on_cpu(array)

    def apply(
        self, form: ClosedForm, axis: int | None, operands: tuple[Array, ...], backend: str | None
    ) -> Array:
        """Under JAX's transformations."""
        if backend == "reference":
            return closed_forms.plain(form, operands)
        return closed_forms.differentiable(form, axis, backend, *operands)

    def total(
        self,
        form: Any,
        scale: Array | float | None,
        operands: tuple[Array, ...],
        backend: str | None,
    ) -> Array:
        """With the gradient made in its final scale."""
        if backend == "reference":
            values = closed_forms.plain(form, operands)
            return scaled_sum(values, scale, libraries.array_namespace(values))
        return closed_forms.total(form, scale, operands, backend)

    def value_and_partials(
        self,
        form: ClosedForm,
        needs: tuple[bool, ...],
        operands: tuple[Array, ...],
        backend: str | None,
        overwrite: bool,
    ) -> tuple[Array, Partials]:
        """Arrays of JAX's are never written over."""
        return closed_forms.run(form, operands, needs, backend)

    def table_values(self, form: Any, table: Any, x: Array, y: Array, backend: str | None) -> Array:
        """In one loop, under JAX's transformations."""
        return tables.values(form, table, x, y, backend)

    def table_gradients(
        self, form: Any, table: Any, x: Array, y: Array, backend: str | None
    ) -> tuple[Array, Partials]:
        """Likewise."""
        return tables.value_and_gradients(form, table, x, y, backend)

    def chunked_value(self, call: ChunkedCall) -> Array:
        """Under JAX's transformations, as one compiled loop."""
        return chunks.value(call)

    def chunked_partials(
        self, call: ChunkedCall, wanted: Sequence[str]
    ) -> tuple[Array, dict[str, Array]]:
        """In the same loop."""
        return chunks.values_and_grads(call, wanted)

    def ranks(self, group: Any, array: Array) -> shards.AxisRanks:
        """The devices along an axis of a mesh."""
        return shards.ranks(group)
