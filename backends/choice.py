"""Whether rows on the CPU are computed by a compiled kernel or by the array core."""

import importlib.util
import math
from collections.abc import Callable
from functools import lru_cache

from amidmath._rowprogram.graph import UnsupportedError
from amidmath._rows import RowForm
from amidmath._typing import Array, ClosedForm, Partials

WORTH_COMPILING = 2**16
"""Logits below which a compilation costs more than it saves."""

Run = Callable[[RowForm, tuple[Array, ...], tuple[bool, ...]], tuple[Array, Partials]]


@lru_cache(maxsize=1)
def installed() -> bool:
    """Whether there is a compiler: llvmlite, which the extras "cpu" and "torch" bring."""
    return importlib.util.find_spec("llvmlite") is not None


def compiled(
    run: Run,
    form: ClosedForm,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None,
) -> tuple[Array, Partials] | None:
    """The result of the compiled kernel, None where the array core is to compute it.

    Args:
        run: runs the kernel on the operands of one library.
        form: the closed form; only rows are compiled.
        operands: arrays on the CPU.
        needs: which operands' partial derivatives are wanted.
        backend: "compiled" insists, "reference" declines, None takes what is faster.

    Raises:
        ModuleNotFoundError: "compiled", and no compiler is installed.
        ValueError: "compiled", and the loss has no row program.
    """
    if backend == "reference" or not isinstance(form, RowForm) or operands[0].shape[0] == 0:
        return None
    insisted = backend == "compiled"
    if insisted and not installed():
        raise ModuleNotFoundError(
            "backend 'compiled' needs llvmlite: install amidmath[cpu], or leave backend out"
        )
    if not insisted and (math.prod(operands[0].shape) < WORTH_COMPILING or not installed()):
        return None
    try:
        return run(form, operands, needs)
    except UnsupportedError as reason:
        if insisted:
            raise ValueError(f"backend 'compiled' cannot compute {reason}") from None
        return None
