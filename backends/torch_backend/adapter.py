"""The adapter of torch."""

from collections.abc import Sequence
from typing import Any

import torch

from amidmath.arrays.annotations import Array, ClosedForm, Namespace, Partials
from amidmath.backends.torch_backend import chunks, closed_forms, rows, shards, tables
from amidmath.pairs.chunked import ChunkedCall


class TorchAdapter:
    """See :class:`amidmath.arrays.adapters.Adapter`."""

    plans_memory = False

    def check(self, name: str, array: Array) -> None:
        """Masked, nested, sparse and quantised tensors are refused, and views of negatives."""
        if type(array).__name__ == "MaskedTensor":
            raise TypeError(
                f"{name} must be a plain tensor, got a MaskedTensor, whose masked entries would "
                "count: pass its .to_tensor(value), and the positions to leave out as mask="
            )
        wrong = ""
        if array.is_nested:
            wrong = (
                "nested tensor: pass its .to_padded_tensor(0.0), and the positions kept as mask="
            )
        elif str(array.layout) != "torch.strided":
            wrong = f"tensor of layout {array.layout}: pass its .to_dense()"
        elif array.is_quantized:
            wrong = "quantised tensor: pass its .dequantize()"
        if wrong:
            raise TypeError(f"{name} must be a plain, dense tensor, got a {wrong}")
        compiling = torch.compiler.is_compiling()  # which resolves such views
        if not compiling and array.is_neg():
            raise ValueError(
                f"{name} must hold its numbers, got a view of their negatives: pass its "
                ".resolve_neg()"
            )

    def largest(self, rows: Array, k: int, xp: Namespace) -> tuple[Array, Array]:
        """Torch's own."""
        values, indices = rows.topk(k, dim=-1)
        return values, indices

    def put(self, rows: Array, at: Array, values: Array, xp: Namespace) -> Array:
        """All at once."""
        written: Array = rows.scatter(-1, at, values)
        return written

    def at_hand(self, array: Array) -> bool:
        """On the CPU, and neither compiled, faked nor batched."""
        return rows.at_hand(array)

    def on_cpu(self, array: Array) -> bool:
        """By its device."""
        return bool(array.device.type == "cpu")

    def apply(
        self, form: ClosedForm, axis: int | None, operands: tuple[Array, ...], backend: str | None
    ) -> Array:
        """Under autograd, torch.func and torch.compile."""
        return closed_forms.differentiable(form, axis, operands, backend)

    def total(
        self,
        form: Any,
        scale: Array | float | None,
        operands: tuple[Array, ...],
        backend: str | None,
    ) -> Array:
        """With the gradient made in its final scale."""
        return closed_forms.total(form, scale, operands, backend)

    def value_and_partials(
        self,
        form: ClosedForm,
        needs: tuple[bool, ...],
        operands: tuple[Array, ...],
        backend: str | None,
        overwrite: bool,
    ) -> tuple[Array, Partials]:
        """Outside of autograd."""
        return closed_forms.run(form, operands, needs, backend, overwrite)

    def table_values(self, form: Any, table: Any, x: Array, y: Array, backend: str | None) -> Array:
        """Under autograd and in graphs."""
        return tables.values(form, table, x, y, backend)

    def table_gradients(
        self, form: Any, table: Any, x: Array, y: Array, backend: str | None
    ) -> tuple[Array, Partials]:
        """Outside of autograd."""
        return tables.value_and_gradients(form, table, x, y, backend)

    def chunked_value(self, call: ChunkedCall) -> Array:
        """Under autograd, with gradients made together with the value."""
        return chunks.value(call)

    def chunked_partials(
        self, call: ChunkedCall, wanted: Sequence[str]
    ) -> tuple[Array, dict[str, Array]]:
        """By a DTensor, of this rank's rows."""
        return chunks.values_and_grads(call, wanted)

    def ranks(self, group: Any, array: Array) -> shards.GroupRanks:
        """Those of a process group or of a one-dimensional mesh."""
        return shards.ranks(group)
