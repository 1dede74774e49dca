"""The choice between compiled kernels and the array core."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from amidmath.arrays.annotations import Array, ClosedForm
from amidmath.compiler.graph import UnsupportedError
from amidmath.rows.forms import RowForm

Result = TypeVar("Result")


@dataclass(frozen=True)
class Compiler:
    """A compiler of row programs.

    Args:
        package: what has it.
        remedy: what to install where it is missing.
        worth: logits below which a compilation costs more than it saves.
    """

    package: str
    remedy: str
    worth: int

    def installed(self) -> bool:
        """Tell whether there is the compiler."""
        return _found(self.package)


CPU = Compiler("llvmlite", "amidmath[cpu]", worth=2**16)
TRITON = Compiler("triton", "triton, which torch's builds for CUDA bring along", worth=0)
CUPY = Compiler("cupy", "cupy", worth=0)
"""On a GPU a launch a row form is less than the dozens that the array core makes."""


@lru_cache(maxsize=8)
def _found(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def compiled(
    compiler: Compiler,
    run: Callable[[RowForm, tuple[Array, ...], tuple[bool, ...]], Result],
    form: ClosedForm,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None,
) -> Result | None:
    """The result of the compiled kernel, None where the array core is to compute it.

    Args:
        compiler: what compiles it.
        run: runs the kernel on the operands of one library.
        form: the closed form; only rows are compiled.
        operands: arrays of the compiler's device.
        needs: which operands' partial derivatives are wanted.
        backend: "compiled" insists, "reference" declines, None takes what is faster.

    Raises:
        ModuleNotFoundError: "compiled", and no compiler is installed.
        ValueError: "compiled", and the loss has no row program.
    """
    if backend == "reference" or not isinstance(form, RowForm) or operands[0].shape[0] == 0:
        return None
    insisted = backend == "compiled"
    if insisted and not compiler.installed():
        raise ModuleNotFoundError(
            f"backend 'compiled' needs {compiler.package}: install {compiler.remedy}, "
            "or leave backend out"
        )
    worth = insisted or math.prod(operands[0].shape) >= compiler.worth
    if not (worth and compiler.installed()):
        return None
    try:
        return run(form, operands, needs)
    except UnsupportedError as reason:
        if insisted:
            raise ValueError(f"backend 'compiled' cannot compute {reason}") from None
        return None
