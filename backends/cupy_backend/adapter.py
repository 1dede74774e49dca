"""CuPy: row programs as CUDA kernels, which CuPy compiles; the core as it is elsewhere.

Nothing waits for the device: launches are queued, and no value is looked at.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import array_api_compat.cupy as xp
import cupy  # pyright: ignore[reportMissingImports]  # an environment without a GPU has none

from amidmath.arrays.annotations import Array, ClosedForm, Partials
from amidmath.backends import choice
from amidmath.backends.array_backend.adapter import WritingAdapter
from amidmath.backends.cuda_kernels.source import THREADS, TYPES, Source, source
from amidmath.backends.recent import Recent
from amidmath.compiler.graph import UnsupportedError
from amidmath.compiler.memory import overwritable
from amidmath.compiler.program import RowProgram, operand_names, row_program
from amidmath.rows.forms import RowForm

# A sum with a product would be rounded once, where exact differences need the product rounded.
OPTIONS = ("-std=c++17", "--fmad=false")


class CupyAdapter(WritingAdapter):
    """See :class:`amidmath.arrays.adapters.Adapter`."""

    def at_hand(self, array: Array) -> bool:
        """Never: looking would wait for the device."""
        return False

    def value_and_partials(
        self,
        form: ClosedForm,
        needs: tuple[bool, ...],
        operands: tuple[Array, ...],
        backend: str | None,
        overwrite: bool,
    ) -> tuple[Array, Partials]:
        """By a kernel, or by CuPy's own operations."""
        run_rows = partial(_compiled, overwrite=overwrite)
        result = choice.compiled(choice.CUPY, run_rows, form, operands, needs, backend)
        return form(*operands, needs=needs, xp=xp) if result is None else result


@dataclass(frozen=True)
class _Kernel:
    """A compiled row program, and whether it may write over the student's logits."""

    source: Source
    function: Any
    overwriting: bool

    def __call__(
        self, arrays: dict[str, Array], numbers: list[Any], rows: int, vocabulary: int
    ) -> None:
        """Launch a block a row, of as many threads as there is something to do for."""
        passed: list[Any] = []
        for name in self.source.arrays:
            a = arrays[name]
            passed += [a, cupy.int64(a.strides[0] // a.itemsize)]
        threads = max(32, min(THREADS, 1 << (vocabulary - 1).bit_length()))
        self.function((rows,), (threads,), (*passed, *numbers, cupy.int64(vocabulary)))


_KERNELS: Recent[_Kernel] = Recent(most=64)


def _kernel(program: RowProgram, dtypes: tuple[str, ...], masked: bool, double: bool) -> _Kernel:
    def make() -> _Kernel:
        unknown = [name for name in dtypes if name not in TYPES]
        if unknown:
            raise UnsupportedError(f"the dtype {unknown[0]} in CUDA C++")
        written = source(program, dtypes=dtypes, masked=masked, double=double)
        function = cupy.RawKernel(written.text, "rows", options=OPTIONS)
        return _Kernel(written, function, overwritable(program.scheduled(keeping=False), 0))

    return _KERNELS.get((program.structure, dtypes, masked, double), make)


def _compiled(
    form: RowForm, operands: tuple[Array, ...], needs: tuple[bool, ...], overwrite: bool
) -> tuple[Array, Partials]:
    count = 2 + form.knobs
    student = operands[0]
    rows, vocabulary = student.shape
    dtypes = tuple(a.dtype.name for a in operands[:count])
    double = "float64" in dtypes[:2]
    real = cupy.float64 if double else cupy.float32
    program = row_program(form, needs, double)
    kernel = _kernel(program, dtypes, form.masked, double)
    names = operand_names(form)
    with student.device:
        arrays = {name: _side_by_side(a) for name, a in zip(names, operands, strict=True)}
        arrays["value"] = values = cupy.empty(rows, real)
        partials: list[Array | None] = [None] * len(operands)
        for j in program.given:
            over = j == 0 and overwrite and kernel.overwriting and _writable(student)
            new = student if over else cupy.empty(operands[j].shape, operands[j].dtype)
            partials[j] = arrays[f"partial{j}"] = new
        numbers = [real(program.numbers[j]) for j in kernel.source.params]
        kernel(arrays, numbers, rows, vocabulary)
    return values, tuple(partials)


def _together(a: Array) -> bool:
    return bool(a.ndim == 1 or a.shape[-1] == 1 or a.strides[-1] == a.itemsize)


def _side_by_side(a: Array) -> Array:
    """The array, or a copy where the numbers of a row do not lie side by side."""
    return a if _together(a) else cupy.ascontiguousarray(a)


def _writable(a: Array) -> bool:
    """Whether each number of rows that lie side by side has a place of its own."""
    apart = a.shape[0] == 1 or a.strides[0] >= a.shape[1] * a.itemsize
    return _together(a) and bool(apart)
