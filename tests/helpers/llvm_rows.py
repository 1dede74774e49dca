"""The CPU's kernel of any block, on arrays of NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from amidmath.backends.llvm_kernels.kernels import View, run
from amidmath.rows.forms import RowForm


def rows_of(block: Any, x: np.ndarray, y: np.ndarray, needs: tuple[bool, bool]) -> Any:
    """Values and partial derivatives."""

    def view(a: np.ndarray) -> View:
        return View(a.ctypes.data, a.strides[0], a.dtype.name)

    def empty(which: int | None) -> tuple[np.ndarray, View]:
        made = np.empty(len(x) if which is None else x.shape, x.dtype)
        return made, view(made)

    return run(RowForm(block), needs, [view(x), view(y)], *x.shape, empty, threads=1)
