"""The adapter of torch."""

from collections.abc import Sequence
from typing import Any

from amidmath.arrays.annotations import Array, ClosedForm, Partials
from amidmath.backends.torch_backend import chunks, closed_forms, rows, shards
from amidmath.pairs.chunked import ChunkedCall


class TorchAdapter:
    """See :class:`amidmath.arrays.adapters.Adapter`."""

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

    def chunked_value(self, call: ChunkedCall) -> Array:
        """Under autograd, with gradients made together with the value."""
        return chunks.value(call)

    def chunked_partials(
        self, call: ChunkedCall, wanted: Sequence[str]
    ) -> tuple[Array, dict[str, Array]]:
        """By a DTensor, of this rank's rows."""
        return chunks.values_and_grads(call, wanted)

    def ranks(self, group: Any) -> shards.GroupRanks:
        """Those of a process group or of a one-dimensional mesh."""
        return shards.ranks(group)
