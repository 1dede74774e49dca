"""The logits of one side, a chunk of rows at a time: multiplied out by a layer, or given.

Libraries whose arrays can be written into use :class:`Library`; JAX has one of its own. Arrays go
by name, as in :mod:`amidmath.pairs.chunks`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array, Namespace
from amidmath.arrays.checks import computing_dtype
from amidmath.inputs.head import Projection

_TILE = 2**20


class Library:
    """The operations that chunks need of an array library; this one can write into its arrays.

    What writes returns the array, for libraries that cannot.

    Args:
        xp: its namespace.
    """

    blocks = 8
    """In how many parts the rows of a chunk are computed, each gradient over its own outputs."""

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    def quiet(self) -> AbstractContextManager[Any]:
        """Without warnings of infinities, which the formulas handle themselves."""
        errstate = getattr(self.xp, "errstate", None)  # NumPy's
        return nullcontext() if errstate is None else errstate(all="ignore")

    def multiplying_dtype(self, hidden: Array) -> Any:
        """In what dtype a side is multiplied out."""
        return computing_dtype(self.xp, hidden)

    def buffer(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array | None:
        """Memory for outputs of one chunk after the other."""
        return self.xp.empty(shape, dtype=dtype, device=libraries.device(like))

    def product(self, a: Array, b: Array, out: Array | None) -> Array:
        """A @ b, in ``out`` where the library can write there."""
        return self.xp.matmul(a, b)

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        """The total plus a @ b, in the dtype of the total; a tile at a time."""
        step = max(1, _TILE // b.shape[-1])
        b = self.xp.astype(b, total.dtype, copy=False)
        for start in range(0, a.shape[0], step):
            part = slice(start, min(start + step, a.shape[0]))
            tile = self.xp.astype(a[part, ...], total.dtype, copy=False)
            total[part, ...] += self.xp.matmul(tile, b)
        return total

    def kept(self, keep: Array) -> Array | None:
        """The indices of the rows that are kept; None where the library cannot tell."""
        return None

    def own(self, array: Array) -> Array:
        """An array that may be written into, or a copy of one that is somebody's."""
        return self.xp.asarray(array, copy=True)

    def take(self, array: Array, at: Any, fill: float = 0) -> Array:
        """The rows of the array at a slice, or at indices; ``fill`` where an index is none."""
        return array[at, ...] if isinstance(at, slice) else self.xp.take(array, at, axis=0)

    def put(self, array: Array, at: Any, new: Array) -> Array:
        """The array with other rows there."""
        new = self.xp.astype(new, array.dtype, copy=False)
        if isinstance(at, slice):
            array[at, ...] = new
        else:
            array[at] = new
        return array


class WritingLibrary(Library):
    """The same of libraries whose products can be written into arrays, as NumPy's."""

    def product(self, a: Array, b: Array, out: Array | None) -> Array:
        """In the buffer."""
        return self.xp.matmul(a, b, out=out)

    def kept(self, keep: Array) -> Array | None:
        """By looking."""
        return self.xp.nonzero(keep)[0]


class Layer:
    """The layer of one side, in the dtype in which it is multiplied out.

    Args:
        side: whose it is, student or teacher.
        projection: its head without the arrays.
        arrays: by name.
        library: of the arrays.
        step: how many rows are multiplied out at a time, at most.
    """

    def __init__(
        self,
        side: str,
        projection: Projection,
        arrays: Mapping[str, Array],
        library: Library,
        step: int,
    ) -> None:
        self.library, self.projection = library, projection
        self.hidden = arrays[f"{side}.states"]
        self.side = side
        self.dtype = library.multiplying_dtype(self.hidden)
        self.weight, self.bias, self.a, self.b = (
            self._prepared(arrays.get(f"{side}.head.{name}"))
            for name in ("weight", "bias", "low_rank[0]", "low_rank[1]")
        )
        shape = (step, projection.vocabulary)
        self.buffer = library.buffer(shape, self.dtype, self.hidden)

    def _prepared(self, array: Array | None) -> Array:
        return None if array is None else self.library.xp.astype(array, self.dtype, copy=False)

    def states(self, at: Any, keep: Array | None) -> Array:
        """The hidden states of some rows; zeros for what is left out, as 0 times NaN is not 0."""
        xp = self.library.xp
        hidden = xp.astype(self.library.take(self.hidden, at), self.dtype, copy=False)
        return hidden if keep is None else xp.where(keep[:, None], hidden, 0.0)

    def outputs(self, hidden: Array) -> Array:
        """H Wᵀ + b + factor·(h Aᵀ) Bᵀ, until the next call: in the buffer, if there is one."""
        out = None if self.buffer is None else self.buffer[: hidden.shape[0], ...]
        out = self.library.product(hidden, self.weight.T, out)
        if self.bias is not None:
            out += self.bias
        if self.a is not None:
            out = self.library.add_product(out, self.through_a(hidden), self.b.T)
        return out

    def through_a(self, hidden: Array) -> Array:
        """factor·h Aᵀ."""
        return self.projection.factor * (hidden @ self.a.T)

    def pulled_back(
        self, grads: dict[str, Array], u: Array, hidden: Array, at: Any
    ) -> dict[str, Array]:
        """The side's gradients with those of a chunk, from that by its outputs, u."""
        grads, library = dict(grads), self.library
        states, head = f"{self.side}.states", f"{self.side}.head."
        weight, bias = f"{head}weight", f"{head}bias"
        low_a, low_b = f"{head}low_rank[0]", f"{head}low_rank[1]"

        def add(name: str, a: Array, b: Array) -> None:
            if name in grads:
                grads[name] = library.add_product(grads[name], a.T, b)

        by_hidden = u @ self.weight if states in grads else None
        if self.a is not None and {low_a, states} & grads.keys():
            by_a = self.projection.factor * (u @ self.b)
            add(low_a, by_a, hidden)
            if by_hidden is not None:
                by_hidden += by_a @ self.a
        if by_hidden is not None:
            grads[states] = library.put(grads[states], at, by_hidden)
        add(weight, u, hidden)
        if low_b in grads:
            add(low_b, u, self.through_a(hidden))
        if bias in grads:
            total = grads[bias]
            grads[bias] = total + library.xp.sum(u, axis=0, dtype=total.dtype)
        return grads


class Rows:
    """The logits of a side that are given.

    Args:
        side: whose they are, student or teacher.
        arrays: by name.
        library: of the arrays.
    """

    def __init__(self, side: str, arrays: Mapping[str, Array], library: Library) -> None:
        self.side, self.library = side, library
        self.hidden = arrays[side]
        self.dtype = self.hidden.dtype

    def states(self, at: Any, keep: Array | None) -> Array:
        """The logits of some rows; zeros for what is left out."""
        xp = self.library.xp
        rows = self.library.take(self.hidden, at)
        if keep is None:
            return rows
        return xp.astype(xp.where(keep[:, None], rows, 0.0), self.dtype, copy=False)

    def outputs(self, states: Array) -> Array:
        """The same, not to be written into: they may be the caller's."""
        return states

    def pulled_back(
        self, grads: dict[str, Array], u: Array, states: Array, at: Any
    ) -> dict[str, Array]:
        """The side's gradients with those of a chunk."""
        if self.side not in grads:
            return grads
        return grads | {self.side: self.library.put(grads[self.side], at, u)}


def side_of(
    side: str, projection: Projection, arrays: Mapping[str, Array], library: Library, step: int
) -> Layer | Rows:
    """The logits of a side, from its hidden states or as they are."""
    if side in arrays:
        return Rows(side, arrays, library)
    return Layer(side, projection, arrays, library, step)
