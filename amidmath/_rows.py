"""Two-array computations that go row by row: values and partial derivatives, in chunks of rows.

Every divergence and every loss maps two rows of V numbers to one value and two rows of partial
derivatives. Rows are taken a chunk at a time, so temporaries stay a chunk large: of the size of
the whole input there is nothing but the partial derivatives themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import array_api_extra as xpx

from amidmath._checks import computing_dtype
from amidmath._typing import Array, Namespace, Partials

# Temporaries that fit the caches of a CPU; enough work a launch for an accelerator.
CPU_CHUNK = 2**20
ACCELERATOR_CHUNK = 2**24

Block = Callable[..., tuple[Array, Partials]]
"""``block(x, y, needs=…, xp=…)``: rows (…, V) to values (…) and partial derivatives (…, V)."""


@dataclass(frozen=True)
class RowForm:
    """The closed form of a block over the rows of (N, V) arrays; see :mod:`amidmath._dispatch`.

    Args:
        block: what is computed, on rows in float32 or float64.
    """

    block: Block

    def __call__(
        self,
        x: Array,
        y: Array,
        keep: Array | None = None,
        scale: Array | None = None,
        *,
        needs: tuple[bool, ...],
        xp: Namespace,
    ) -> tuple[Array, Partials]:
        """Values (N,) and partial derivatives (N, V) of all rows, a chunk at a time.

        Args:
            x: first operand, shape (N, V).
            y: second operand, shape (N, V).
            keep: boolean, shape (N,); a row where it is False is never read and gives zeros.
            scale: factors of the partial derivatives, shape (N,); None for 1.
            needs: which operands' partial derivatives are wanted.
            xp: the namespace that computes.

        Returns:
            Values in the computing dtype, and the partials in the operands' own dtypes.
        """
        rows, step = x.shape[0], rows_per_chunk(x)
        if rows <= step:
            return self.chunk(x, y, keep, scale, needs=needs, xp=xp)
        values = []
        grads = [xp.empty_like(a) if need else None for a, need in zip((x, y), needs, strict=False)]
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            value, partials = self.chunk(
                x[part, :],
                y[part, :],
                None if keep is None else keep[part],
                None if scale is None else scale[part],
                needs=needs,
                xp=xp,
            )
            values.append(value)
            grads = [
                None if out is None else xpx.at(out)[part, :].set(cast("Array", new), copy=False)
                for out, new in zip(grads, partials[:2], strict=True)
            ]
        return xp.concat(values), _for_each(needs, grads)

    def chunk(
        self,
        x: Array,
        y: Array,
        keep: Array | None,
        scale: Array | None,
        *,
        needs: tuple[bool, ...],
        xp: Namespace,
    ) -> tuple[Array, Partials]:
        """The same for one chunk of rows (or for one row)."""
        dtype = computing_dtype(xp, x, y)
        pair = [xp.astype(x, dtype, copy=False), xp.astype(y, dtype, copy=False)]
        if keep is not None:
            pair = [xp.where(keep[..., None], a, 0.0) for a in pair]
        value, partials = self.block(*pair, needs=needs[:2], xp=xp)
        if keep is not None:
            value = xp.where(keep, value, 0.0)
        grads: list[Array | None] = []
        for grad, operand, need in zip(partials, (x, y), needs, strict=False):
            if not need:
                grad = None  # a block may give more than it was asked for
            if grad is not None:
                if scale is not None:
                    grad = grad * scale[..., None]
                if keep is not None:
                    grad = xp.where(keep[..., None], grad, 0.0)
                grad = xp.astype(grad, operand.dtype, copy=False)
            grads.append(grad)
        return value, _for_each(needs, grads)


def _for_each(needs: tuple[bool, ...], grads: list[Array | None]) -> Partials:
    """The partials of x and y, and None for keep and scale where they are operands too."""
    return (*grads, *(None for _ in needs[len(grads) :]))


def rows_per_chunk(x: Array) -> int:
    """How many rows of an (N, V) array make a chunk."""
    on_cpu = "cpu" in str(getattr(x, "device", "cpu")).lower()
    chunk = CPU_CHUNK if on_cpu else ACCELERATOR_CHUNK
    return max(1, chunk // max(1, int(x.shape[-1])))
