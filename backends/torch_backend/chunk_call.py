"""torch: a call of a loss in chunks of rows but for its tensors, and how it computes."""

from collections.abc import Sequence
from dataclasses import dataclass

import array_api_compat.torch as xp
import torch

from amidmath.arrays.annotations import Array
from amidmath.backends.torch_backend.rows import real
from amidmath.pairs.chunk_form import ChunkForm
from amidmath.pairs.chunks import Sums, run
from amidmath.pairs.layers import Library

TILE = 2**22
"""How many numbers are converted to another dtype at a time."""


class TorchLibrary(Library):
    """Multiplies into its buffers, and adds to its sums where they are.

    Args:
        autocast: the dtype of multiplications under autocast by its name, None outside.
    """

    def __init__(self, autocast: str | None) -> None:
        """See the class."""
        super().__init__(xp)
        self.autocast: torch.dtype | None = None if autocast is None else getattr(torch, autocast)

    def multiplying_dtype(self, hidden: Array) -> torch.dtype:
        """That of the hidden states; under autocast, what a Linear would take."""
        dtype: torch.dtype = hidden.dtype
        return dtype if self.autocast is None or dtype == torch.float64 else self.autocast

    def own(self, array: Array) -> Array:
        """A copy."""
        return array.clone()

    def product(self, a: Array, b: Array, out: Array | None) -> Array:
        """In the buffer, whose pages are already there."""
        return torch.mm(a, b, out=out)

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        """In place; halves are multiplied with float32 results."""
        if a.dtype == total.dtype:
            return total.addmm_(a, b)
        if not a.is_cuda:
            return super().add_product(total, a, b)
        step = max(1, TILE // b.shape[-1])
        for part, rows in zip(total.split(step), a.split(step), strict=True):
            part += torch.mm(rows, b, out_dtype=total.dtype)
        return total

    def kept(self, keep: Array) -> Array | None:
        """On CUDA this waits for the device, once a call."""
        if not real(keep):
            return None
        return torch.nonzero(keep)[:, 0]


@dataclass(frozen=True)
class Call:
    """Everything of a call that is no tensor.

    Args:
        form: what is computed.
        names: of the arrays, in order.
        wanted: by which of them to differentiate.
        reduced: whether values are summed.
        autocast: see :class:`TorchLibrary`.
        late: whether the sum's gradients are scaled when complete; float16 would underflow before.
    """

    form: ChunkForm
    names: tuple[str, ...]
    wanted: tuple[str, ...]
    reduced: bool
    autocast: str | None
    late: bool

    def run(self, arrays: Sequence[Array], wanted: Sequence[str], scale: Array | None) -> Sums:
        """Values and gradients outside of autograd and autocast."""
        with torch.no_grad(), torch.autocast(arrays[0].device.type, enabled=False):
            named = dict(zip(self.names, arrays, strict=True))
            return run(self.form, named, wanted, scale, TorchLibrary(self.autocast))


def rows_of(scale: Array | None, hidden: Array) -> Array | None:
    """The scale of every row."""
    return None if scale is None else scale.expand(hidden.shape[0])
