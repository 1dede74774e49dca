"""Prints by how many MB a process grows with what is kept of what it has computed.

    python kept_memory.py numbers|structures

``numbers``: 2,000 λ of one program. ``structures``: 300 programs, of which 8 kernels are kept.
The first quarter is not counted: an allocator takes its time to settle.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import amidmath as am
from amidmath.backends.llvm_kernels import kernels as llvm_kernels
from amidmath.backends.numpy_backend.adapter import NumpyAdapter
from amidmath.backends.recent import Recent
from amidmath.rows.forms import RowForm

if TYPE_CHECKING:
    from amidmath.arrays.annotations import Array, Partials

STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 3, 40)).astype(np.float32)
MEGABYTE = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss


@dataclass(frozen=True)
class Chosen:
    """A block of its own for every number: operations by its digits."""

    number: int

    def __call__(
        self, x: Array, y: Array, *, needs: tuple[bool, ...], xp: Any
    ) -> tuple[Array, Partials]:
        by = x + y
        for digit in format(self.number, "09b"):
            by = by * y + x if digit == "1" else by * x - y
        return xp.sum(by, axis=-1), (by, None)


def one_number(j: int) -> None:
    am.AMiD(alpha=1.0, lam=0.3 + 1e-4 * j)(STUDENT, TEACHER, backend="compiled")


def one_structure(j: int) -> None:
    form = RowForm(Chosen(j))
    operands = STUDENT, TEACHER
    NumpyAdapter().value_and_partials(form, (True, False), operands, "compiled", overwrite=False)


def main() -> None:
    llvm_kernels._KERNELS = Recent(most=8)
    one, count = {"numbers": (one_number, 1200), "structures": (one_structure, 160)}[sys.argv[1]]
    settled = 0
    for j in range(count):
        if j == count // 4:
            settled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        one(j)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - settled
    print(grown / MEGABYTE)


if __name__ == "__main__":
    main()
