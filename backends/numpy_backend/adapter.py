"""NumPy: compiled rows where there is enough to compute, the core as it is elsewhere."""

from functools import partial
from typing import TYPE_CHECKING

import array_api_compat.numpy as xp
import numpy as np

from amidmath.arrays.annotations import Array, ClosedForm, Partials
from amidmath.backends import choice
from amidmath.backends.array_backend.adapter import WritingAdapter
from amidmath.rows.forms import RowForm

if TYPE_CHECKING:
    from amidmath.backends.llvm_kernels import kernels as llvm_kernels


class NumpyAdapter(WritingAdapter):
    """See :class:`amidmath.arrays.adapters.Adapter`."""

    def check(self, name: str, array: Array) -> None:
        """Masked arrays and other subclasses are refused."""
        kind = type(array)
        if kind in (np.ndarray, np.memmap) or isinstance(array, np.generic):
            return
        if hasattr(array, "filled"):
            raise TypeError(
                f"{name} must be a plain array, got a {kind.__name__}, whose masked entries would "
                "count: pass its .filled(value), and the positions to leave out as mask="
            )
        raise TypeError(
            f"{name} must be a plain NumPy array, got a {kind.__name__}, whose numbers may mean "
            f"something else: pass numpy.asarray({name}) if they do not"
        )

    def value_and_partials(
        self,
        form: ClosedForm,
        needs: tuple[bool, ...],
        operands: tuple[Array, ...],
        backend: str | None,
        overwrite: bool,
    ) -> tuple[Array, Partials]:
        """By a kernel, or by NumPy's own operations."""
        run_rows = partial(_compiled, overwrite=overwrite)
        result = choice.compiled(choice.CPU, run_rows, form, operands, needs, backend)
        if result is not None:
            return result
        with np.errstate(all="ignore"):  # the core handles its infinities itself
            return form(*operands, needs=needs, xp=xp)


def _compiled(
    form: RowForm, operands: tuple[Array, ...], needs: tuple[bool, ...], overwrite: bool
) -> tuple[Array, Partials]:
    from amidmath.backends.llvm_kernels import kernels as llvm_kernels

    rows, vocabulary = operands[0].shape
    held = [_side_by_side(a) for a in operands]  # copies live until the kernel has run
    computing = np.result_type(np.float32, *(a.dtype for a in operands[:2]))

    def empty(which: int | None) -> tuple[Array, "llvm_kernels.View"]:
        if which is None:
            made = np.empty(rows, computing)
        else:
            made = np.empty(operands[which].shape, operands[which].dtype.newbyteorder("="))
        return made, _view(made)

    views = [_view(a) for a in held]
    over = (operands[0], views[0]) if overwrite and _writable(operands[0], held[0]) else None
    threads = llvm_kernels.threads_at_hand()
    return llvm_kernels.run(form, needs, views, rows, vocabulary, empty, threads, over)


def _writable(a: Array, held: Array) -> bool:
    """Whether each number of the array has a place of its own that may be written to."""
    apart = a.shape[0] == 1 or a.strides[0] >= a.shape[1] * a.itemsize
    return held is a and a.flags.writeable and apart


def _side_by_side(a: Array) -> Array:
    """The array, or a copy where the numbers of a row do not lie side by side in native order."""
    aligned = a.ndim == 1 or a.shape[-1] == 1 or a.strides[-1] == a.itemsize
    return a if aligned and a.dtype.isnative else np.array(a, a.dtype.newbyteorder("="), order="C")


def _view(a: Array) -> "llvm_kernels.View":
    from amidmath.backends.llvm_kernels import kernels as llvm_kernels

    return llvm_kernels.View(a.ctypes.data, a.strides[0], a.dtype.name, a)
