"""The adapter of any library that follows the Array API standard: the array core, as it is."""

from collections.abc import Sequence
from typing import Any

import array_api_extra as xpx

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array, ClosedForm, Namespace, Partials
from amidmath.arrays.dispatch import scaled_sum
from amidmath.pairs.chunked import ChunkedCall
from amidmath.pairs.chunks import run
from amidmath.pairs.layers import Library, WritingLibrary
from amidmath.rows import positions, tables


class ArrayAdapter:
    """See :class:`amidmath.arrays.adapters.Adapter`; nothing here is differentiated."""

    plans_memory = False
    library: type[Library] = Library
    """The operations of chunks of rows."""

    def check(self, name: str, array: Array) -> None:
        """Nothing is known of other libraries' kinds."""

    def largest(self, rows: Array, k: int, xp: Namespace) -> tuple[Array, Array]:
        """By a partition, then in order."""
        indices = xpx.argpartition(-rows, k - 1, axis=-1, xp=xp)[..., :k]
        chosen = xp.take_along_axis(rows, indices, axis=-1)
        order = xp.argsort(chosen, axis=-1, descending=True, stable=True)
        chosen, indices = (xp.take_along_axis(a, order, axis=-1) for a in (chosen, indices))
        return chosen, indices

    def put(self, rows: Array, at: Array, values: Array, xp: Namespace) -> Array:
        """One place of every row after the other; the standard has no such function."""
        index = xp.arange(rows.shape[-1], device=libraries.device(rows))
        for j in range(at.shape[-1]):
            part = slice(j, j + 1)
            rows = xp.where(index == at[..., part], values[..., part], rows)
        return rows

    def at_hand(self, array: Array) -> bool:
        """It is, where nothing says otherwise."""
        return True

    def on_cpu(self, array: Array) -> bool:
        """By the name of its device."""
        return "cpu" in str(getattr(array, "device", "cpu")).lower()

    def apply(
        self, form: ClosedForm, axis: int | None, operands: tuple[Array, ...], backend: str | None
    ) -> Array:
        """The value, without its partial derivatives."""
        none = (False,) * len(operands)
        return self.value_and_partials(form, none, operands, backend, overwrite=False)[0]

    def total(
        self,
        form: Any,
        scale: Array | float | None,
        operands: tuple[Array, ...],
        backend: str | None,
    ) -> Array:
        """Of the values, summed."""
        values = self.apply(form, -1, operands, backend)
        return scaled_sum(values, scale, libraries.array_namespace(values))

    def value_and_partials(
        self,
        form: ClosedForm,
        needs: tuple[bool, ...],
        operands: tuple[Array, ...],
        backend: str | None,
        overwrite: bool,
    ) -> tuple[Array, Partials]:
        """By the library's own operations."""
        first = operands[0]
        if backend == "compiled":
            raise ValueError(
                "backend 'compiled' is for arrays of NumPy, torch, JAX and CuPy, "
                f"got {type(first).__module__}.{type(first).__name__}"
            )
        return form(*operands, needs=needs, xp=libraries.array_namespace(first))

    def table_values(self, form: Any, table: Any, x: Array, y: Array, backend: str | None) -> Array:
        """A chunk of pairs at a time."""
        if not tables.chunks_pay(table, x):
            return tables.values_laid_out(form, table, x, y, backend)
        return tables.in_boxes(form, table, (False, False), x, y, None, backend)[0]

    def table_gradients(
        self, form: Any, table: Any, x: Array, y: Array, backend: str | None
    ) -> tuple[Array, Partials]:
        """Likewise."""
        if not tables.chunks_pay(table, x):
            return tables.gradients_laid_out(form, table, x, y, backend)
        return tables.in_boxes(form, table, (True, True), x, y, None, backend)

    def chunked_value(self, call: ChunkedCall) -> Array:
        """One chunk after the other."""
        values, _ = run(call.form, call.arrays, (), None, self.library(call.xp))
        return positions.reduced(values, call.scale, call.reduction, call.shape, call.xp)

    def chunked_partials(
        self, call: ChunkedCall, wanted: Sequence[str]
    ) -> tuple[Array, dict[str, Array]]:
        """Gradients made with the values."""
        return run(call.form, call.arrays, wanted, call.row_scale, self.library(call.xp))

    def ranks(self, group: Any, array: Array) -> Any:
        """There are none."""
        raise TypeError(
            "student.logits must be a torch tensor or a JAX array, which have ranks, got "
            f"{type(array).__name__} of shape {tuple(array.shape)}"
        )


class LazyAdapter(ArrayAdapter):
    """dask's, whose values are computed when somebody asks for them."""

    def at_hand(self, array: Array) -> bool:
        """Never: looking would compute."""
        return False

    def table_values(self, form: Any, table: Any, x: Array, y: Array, backend: str | None) -> Array:
        """Of all pairs at once, which are not there until then."""
        return tables.values_laid_out(form, table, x, y, backend)

    def table_gradients(
        self, form: Any, table: Any, x: Array, y: Array, backend: str | None
    ) -> tuple[Array, Partials]:
        """Likewise."""
        return tables.gradients_laid_out(form, table, x, y, backend)


class WritingAdapter(ArrayAdapter):
    """The adapter of libraries whose arrays are written by index, as NumPy's."""

    library = WritingLibrary

    def put(self, rows: Array, at: Array, values: Array, xp: Namespace) -> Array:
        """All at once."""
        written = xp.asarray(rows, copy=True)
        written[xp.arange(rows.shape[0], device=rows.device)[:, None], at] = values
        return written
