"""NumPy: compiled rows where there is enough to compute, the core as it is elsewhere."""

from typing import TYPE_CHECKING

import array_api_compat.numpy as xp
import numpy as np

from amidmath._rows import RowForm
from amidmath._typing import Array, ClosedForm, Partials
from amidmath.backends import choice

if TYPE_CHECKING:
    from amidmath.backends import cpu


def run(
    form: ClosedForm,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None = None,
) -> tuple[Array, Partials]:
    """The closed form's value and the partial derivatives that ``needs`` marks."""
    result = choice.compiled(_compiled, form, operands, needs, backend)
    if result is not None:
        return result
    with np.errstate(all="ignore"):  # the core handles its infinities itself
        return form(*operands, needs=needs, xp=xp)


def _compiled(
    form: RowForm, operands: tuple[Array, ...], needs: tuple[bool, ...]
) -> tuple[Array, Partials]:
    from amidmath.backends import cpu

    rows, vocabulary = operands[0].shape
    held = [_side_by_side(a) for a in operands]  # copies live until the kernel has run
    computing = np.result_type(np.float32, *(a.dtype for a in operands[:2]))

    def empty(which: int | None) -> tuple[Array, "cpu.View"]:
        if which is None:
            made = np.empty(rows, computing)
        else:
            made = np.empty(operands[which].shape, operands[which].dtype.newbyteorder("="))
        return made, _view(made)

    views = [_view(a) for a in held]
    return cpu.run(form, needs, views, rows, vocabulary, empty, cpu.threads_at_hand())


def _side_by_side(a: Array) -> Array:
    """The array, or a copy where the numbers of a row do not lie side by side in native order."""
    aligned = a.ndim == 1 or a.shape[-1] == 1 or a.strides[-1] == a.itemsize
    return a if aligned and a.dtype.isnative else np.array(a, a.dtype.newbyteorder("="), order="C")


def _view(a: Array) -> "cpu.View":
    from amidmath.backends import cpu

    return cpu.View(a.ctypes.data, a.strides[0], a.dtype.name)
