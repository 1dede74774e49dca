"""Compiled rows on the CPU: row programs through LLVM, rows shared out to threads.

NumPy arrays and torch's CPU tensors come here when there is enough to compute. docs/backends.md
says what is compiled, when, and what it costs.
"""

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from amidmath.arrays.annotations import Array, Partials
from amidmath.backends.llvm_kernels import jit
from amidmath.backends.llvm_kernels.memory import DTYPES, Layout
from amidmath.backends.llvm_kernels.rows import module_of
from amidmath.backends.llvm_kernels.threads import share
from amidmath.backends.recent import Recent
from amidmath.compiler.graph import UnsupportedError, reachable
from amidmath.compiler.memory import overwritable
from amidmath.compiler.program import RowProgram, operand_names, row_program
from amidmath.rows.forms import RowForm


@dataclass(frozen=True)
class View:
    """Rows of an array in memory.

    Args:
        address: of the first number.
        stride: bytes from row to row; the numbers of a row lie side by side.
        dtype: by its name.
        owner: what the memory is freed with.
    """

    address: int
    stride: int
    dtype: str
    owner: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Kernel:
    """A compiled row program.

    Args:
        function: the machine code.
        layout: how its arguments are laid out.
        buffers: rows of memory that each thread needs.
        overwriting: whether the student's gradient may be written over the student's logits.
    """

    function: Any
    layout: Layout
    buffers: int
    overwriting: bool

    def __call__(
        self,
        views: dict[str, View],
        numbers: Sequence[float],
        rows: int,
        vocabulary: int,
        threads: int,
    ) -> None:
        """Compute all rows; ``views`` are those of ``layout.pointers`` that take part."""
        nothing = View(0, 0, "")
        operands = [views.get(name, nothing) for name in self.layout.pointers]
        addresses = (ctypes.c_void_p * len(operands))(*(o.address for o in operands))
        strides = (ctypes.c_int64 * len(operands))(*(o.stride for o in operands))
        constants = (ctypes.c_double * max(1, len(numbers)))(*numbers)
        vectors = -(-vocabulary // self.layout.width)
        size = self.buffers * vectors * self.layout.width * (self.layout.bits // 8)

        def part(first: int, last: int) -> None:
            workspace = _workspace(size)
            self.function(addresses, strides, constants, vocabulary, first, last, workspace)

        share(part, rows, threads, holding=operands)


def run(
    form: RowForm,
    needs: tuple[bool, ...],
    operands: Sequence[View],
    rows: int,
    vocabulary: int,
    empty: Callable[[int | None], tuple[Array, View]],
    threads: int,
    over: tuple[Array, View] | None = None,
) -> tuple[Array, Partials]:
    """Values and partial derivatives of a closed form; ``UnsupportedError`` if it has no program.

    Args:
        form: the closed form.
        needs: which operands' partial derivatives are wanted.
        operands: those of the form.
        rows: how many rows there are.
        vocabulary: the length of a row.
        empty: makes an array like the operand of that number (for None, the values), and its view.
        threads: how many threads may work.
        over: the first operand itself and its view, if its gradient may take its place.
    """
    program, kernel = kernel_of(form, needs, [view.dtype for view in operands])
    views = dict(zip(operand_names(form), operands, strict=True))
    values, views["value"] = empty(None)
    partials: list[Array | None] = [None] * len(operands)
    for j in program.given:
        if j == 0 and over is not None and kernel.overwriting:
            partials[0], views["partial0"] = over
            continue
        partials[j], views[f"partial{j}"] = empty(j)
        _advise_huge_pages(views[f"partial{j}"].address, rows * views[f"partial{j}"].stride)
    kernel(views, program.numbers, rows, vocabulary, threads)
    return values, tuple(partials)


def kernel_of(
    form: RowForm, needs: tuple[bool, ...], dtypes: Sequence[str]
) -> tuple[RowProgram, Kernel]:
    """The row program of a closed form, compiled; ``UnsupportedError`` if it cannot be.

    Args:
        form: the closed form.
        needs: which operands' partial derivatives are wanted.
        dtypes: those of the form's operands.
    """
    double = "float64" in dtypes[:2]
    program = row_program(form, needs, double)
    return program, _kernel(program, tuple(dtypes[: 2 + form.knobs]), double, form.masked)


_HUGE = 2**22
_MADV_HUGEPAGE = 14


@lru_cache(maxsize=1)
def _madvise() -> Any:
    """Linux's madvise, None elsewhere."""
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


def _advise_huge_pages(address: int, size: int) -> None:
    """Ask for large pages where a result is written first: mapping small ones takes as long as it.

    NumPy asks for its own arrays. It is advice: nothing depends on its being followed.
    """
    advise = _madvise()
    if advise is None or size < _HUGE:
        return
    page = mmap.PAGESIZE
    first = -(-address // page) * page
    length = (address + size - first) // page * page
    advise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_HUGEPAGE)


_KERNELS: Recent[Kernel | str] = Recent(most=128)
"""Kernels, or why there is none. Each takes some 200 KB of memory."""


def _kernel(program: RowProgram, dtypes: tuple[str, ...], double: bool, masked: bool) -> Kernel:
    def make() -> Kernel | str:
        try:
            return _compiled(program, dtypes, double, masked)
        except UnsupportedError as reason:
            return str(reason)

    kernel = _KERNELS.get((program.structure, dtypes, double, masked), make)
    if isinstance(kernel, str):
        raise UnsupportedError(kernel)
    return kernel


def _compiled(program: RowProgram, dtypes: tuple[str, ...], double: bool, masked: bool) -> Kernel:
    text, layout, buffers = llvm_text(program, dtypes, double, masked)
    arguments = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    overwriting = overwritable(program.scheduled(keeping=True), 0)
    return Kernel(jit.native(text, "rows", *arguments), layout, buffers, overwriting)


def llvm_text(
    program: RowProgram, dtypes: tuple[str, ...], double: bool, masked: bool
) -> tuple[str, Layout, int]:
    """The LLVM module of a row program, its layout, and how many buffers it has."""
    unknown = [name for name in dtypes if name not in DTYPES]
    if unknown:
        raise UnsupportedError(f"the dtype {unknown[0]}")
    ordered = program.scheduled(keeping=True)
    bits = 64 if double else 32
    layout = Layout(
        bits=bits,
        width=jit.vector_bytes() * 8 // bits,
        student=dtypes[0],
        teacher=dtypes[1],
        knobs=dtypes[2:],
        masked=masked,
        params=tuple(n.value for n in reachable(ordered.roots) if n.op == "param"),
    )
    return str(module_of(ordered, layout)), layout, ordered.slots


def threads_at_hand() -> int:
    """Count the threads that share the rows of NumPy arrays: ``OMP_NUM_THREADS``, or the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


_LOCAL = threading.local()


def _workspace(size: int) -> int:
    """The address of memory of this thread's own, at the start of a cache line."""
    memory = getattr(_LOCAL, "memory", None)
    if memory is None or len(memory) < size + 64:
        memory = _LOCAL.memory = (ctypes.c_char * (size + 64))()
    return (ctypes.addressof(memory) + 63) // 64 * 64
