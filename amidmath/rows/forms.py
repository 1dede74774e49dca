"""Two-array computations that go row by row: values and partial derivatives, in chunks of rows.

Every divergence and every loss maps two rows of V numbers to one value and two rows of partial
derivatives. Rows are taken a chunk at a time, so temporaries stay a chunk large: of the size of
the whole input there is nothing but the partial derivatives themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import array_api_extra as xpx

from amidmath.arrays import dispatch
from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.arrays.checks import computing_dtype

# Temporaries that fit the caches of a CPU; enough work a launch for an accelerator.
CPU_CHUNK = 2**20
ACCELERATOR_CHUNK = 2**24

Block = Callable[..., tuple[Array, Partials]]
"""``block(x, y, *knobs, needs=…, xp=…)``: rows (…, V), and knobs (…, 1), to values (…) and
partial derivatives in the operands' shapes."""


@dataclass(frozen=True)
class RowForm:
    """The closed form of a block over rows (N, V); see :mod:`amidmath.arrays.dispatch`.

    Operands: x and y (N, V), the knobs of the block (N, 1), then, where they take part, ``keep``
    (N,), boolean (a row where it is False is never read and gives zeros), and ``scale`` (N,), a
    factor of the partial derivatives.

    Args:
        block: what is computed, on rows in float32 or float64.
        knobs: how many knobs it takes.
        masked: whether there is ``keep``.
        scaled: whether there is ``scale``.
    """

    block: Block
    knobs: int = 0
    masked: bool = False
    scaled: bool = False

    def __call__(
        self, *operands: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Values (N,) and partial derivatives of all rows, a chunk at a time.

        Args:
            *operands: see the class.
            needs: which operands' partial derivatives are wanted.
            xp: the namespace that computes.

        Returns:
            Values in the computing dtype, and the partials in the operands' own dtypes.
        """
        return in_chunks(self, rows_per_chunk(operands[0]), *operands, needs=needs, xp=xp)

    def chunk(
        self, *operands: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """The same for one chunk of rows (or for one row)."""
        count = 2 + self.knobs
        differentiable, extras = operands[:count], list(operands[count:])
        keep = extras.pop(0)[..., None] if self.masked else None
        scale = extras.pop(0)[..., None] if self.scaled else None
        dtype = computing_dtype(xp, *operands[:2])
        rows: list[Any] = [xp.astype(a, dtype, copy=False) for a in differentiable]
        if keep is not None:
            rows = [xp.where(keep, a, 0.0) for a in rows]
        value, partials = self.block(*rows, needs=needs[:count], xp=xp)
        if keep is not None:
            value = xp.where(keep[..., 0], value, 0.0)
        grads: list[Array | None] = []
        for grad, operand, need in zip(partials, differentiable, needs, strict=False):
            if grad is None or not need:  # a block may give more than it was asked for
                grads.append(None)
                continue
            scaled = grad if scale is None else grad * scale
            kept = scaled if keep is None else xp.where(keep, scaled, 0.0)
            grads.append(xp.astype(kept, operand.dtype, copy=False))
        return value, (*grads, *(None for _ in needs[count:]))


@runtime_checkable
class Chunked(Protocol):
    """A closed form that can be computed for some of the rows."""

    def __call__(
        self, *operands: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Values and partial derivatives of all rows."""
        ...

    def chunk(
        self, *operands: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Values and partial derivatives of one chunk of rows."""
        ...


def in_chunks(
    form: Chunked, step: int, *operands: Array, needs: tuple[bool, ...], xp: Namespace
) -> tuple[Array, Partials]:
    """Values and partial derivatives of all rows, ``step`` of them at a time."""
    rows = operands[0].shape[0]
    if rows <= step:
        return form.chunk(*operands, needs=needs, xp=xp)
    values = []
    grads = [xp.empty_like(a) if need else None for a, need in zip(operands, needs, strict=True)]
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        value, partials = form.chunk(*(a[part, ...] for a in operands), needs=needs, xp=xp)
        values.append(value)
        grads = [
            None if out is None else xpx.at(out)[part, ...].set(cast("Array", new), copy=False)
            for out, new in zip(grads, partials, strict=True)
        ]
    return xp.concat(values), tuple(grads)


def rows_per_chunk(x: Array) -> int:
    """How many rows of an (N, V) array make a chunk."""
    chunk = CPU_CHUNK if dispatch.on_cpu(x) else ACCELERATOR_CHUNK
    return max(1, chunk // max(1, int(x.shape[-1])))
