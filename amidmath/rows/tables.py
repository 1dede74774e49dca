"""Values of pairs of rows, as the batch axes of two arrays broadcast: tables of distances.

A table of N rows against M has N·M values of V outcomes each. What it reads is laid out for a chunk
of pairs at a time, and so are the partial derivatives, which are summed chunk by chunk into the
gradients of the rows: memory is that of the arguments, of the values and of a chunk. In the
backward pass the partial derivatives are made again, since each pair has a cotangent of its own.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import array_api_extra as xpx

from amidmath.arrays import checks, dispatch, libraries
from amidmath.arrays.annotations import Array, Namespace
from amidmath.rows.batches import padded
from amidmath.rows.forms import RowForm, rows_per_chunk

Gradients = tuple[Array | None, ...]
"""By x and by y, in their shapes, where they are wanted."""


@dataclass(frozen=True)
class Table:
    """Which row of x and which row of y make each pair.

    Args:
        sizes: the lengths of the table's axes.
        of_x: which of them are axes of x; the others are repeated.
        of_y: which are of y.
    """

    sizes: tuple[int, ...]
    of_x: tuple[bool, ...]
    of_y: tuple[bool, ...]

    @classmethod
    def of(cls, x: tuple[int, ...], y: tuple[int, ...]) -> "Table":
        """The table of two batch shapes that broadcast; neighbouring axes of one kind are one."""
        if tuple(x) == tuple(y):
            return PLAIN
        count = max(len(x), len(y))
        sizes: list[int] = []
        kinds: list[tuple[bool, bool]] = []
        for here, there in zip(padded(x, count), padded(y, count), strict=True):
            if here == 1 and there == 1:
                continue
            kind = here != 1, there != 1
            if kinds and kinds[-1] == kind:
                sizes[-1] = sizes[-1] * (there if here == 1 else here)
                continue
            sizes.append(there if here == 1 else here)
            kinds.append(kind)
        return cls(tuple(sizes), tuple(k[0] for k in kinds), tuple(k[1] for k in kinds))

    @property
    def plain(self) -> bool:
        """Whether each row has one partner, and nothing is repeated."""
        return self is PLAIN or (all(self.of_x) and all(self.of_y))

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return math.prod(self.sizes)

    def apart(self, x: Array, y: Array, xp: Namespace) -> tuple[Array, Array]:
        """Rows (A, V) and (B, V) with the axes of the table, of length 1 where they repeat."""
        return self._apart(x, self.of_x, xp), self._apart(y, self.of_y, xp)

    def _apart(self, rows: Array, of: tuple[bool, ...], xp: Namespace) -> Array:
        own = (size if has else 1 for size, has in zip(self.sizes, of, strict=True))
        return xp.reshape(rows, (*own, rows.shape[-1]))

    def laid_out(self, x: Array, y: Array, xp: Namespace) -> list[Array]:
        """Rows (A, V) and (B, V), of all pairs (P, V)."""
        return [
            xp.reshape(xp.broadcast_to(a, (*self.sizes, a.shape[-1])), (-1, a.shape[-1]))
            for a in self.apart(x, y, xp)
        ]

    def summed(
        self, partials: Sequence[Array | None], shapes: Sequence[tuple[int, ...]], xp: Namespace
    ) -> Gradients:
        """Partial derivatives (P, V) of all pairs, as those of the rows in their shapes."""
        found: list[Array | None] = []
        for partial, of, shape in zip(partials, (self.of_x, self.of_y), shapes, strict=True):
            if partial is None:
                found.append(None)
                continue
            apart = xp.reshape(partial, (*self.sizes, partial.shape[-1]))
            found.append(xp.reshape(over_repeated(apart, of, xp), shape))
        return tuple(found)

    def cut(self, most: int) -> tuple[int, int]:
        """How a chunk of the pairs is cut out, of so many at the most.

        Returns:
            The axis that is taken in parts, and the length of a part. Of the axes before it a chunk
            has one entry, of those behind it all.
        """
        axis, inner = len(self.sizes) - 1, 1
        while axis > 0 and inner * self.sizes[axis] <= most:
            inner *= self.sizes[axis]
            axis -= 1
        return axis, min(self.sizes[axis], max(1, most // inner))

    def boxes(self, most: int) -> Iterator[tuple[slice, ...]]:
        """The chunks, in the order of the pairs."""
        axis, width = self.cut(most)
        before, size, behind = self.sizes[:axis], self.sizes[axis], self.sizes[axis + 1 :]
        for at in itertools.product(*(range(n) for n in before)):
            for start in range(0, size, width):
                one = (slice(i, i + 1) for i in at)
                part = slice(start, min(start + width, size))
                yield (*one, part, *(slice(0, n) for n in behind))


PLAIN = Table((), (), ())
"""Of equal shapes, whatever they are."""


def over_repeated(apart: Array, of: tuple[bool, ...], xp: Namespace) -> Array:
    """The sum over the axes of a table that are repeated, which stay with a length of 1."""
    axes = tuple(j for j, has in enumerate(of) if not has and apart.shape[j] != 1)
    return xp.sum(apart, axis=axes, keepdims=True) if axes else apart


def values(form: RowForm, table: Table, x: Array, y: Array, backend: str | None = None) -> Array:
    """The values (P,) of all pairs; differentiable where the arrays' library differentiates.

    Args:
        form: two rows to a value.
        table: how they are paired.
        x: rows (A, V).
        y: rows (B, V).
        backend: see :func:`amidmath.arrays.dispatch.apply`; under "reference" the rows of all pairs
            are laid out, and torch and JAX keep what they need of each.
    """
    if table.plain:
        return dispatch.apply(form, -1, x, y, backend=backend)
    x, y = _wide(x, y)
    return dispatch.table_values(form, table, x, y, backend)


def value_and_gradients(
    form: RowForm, table: Table, x: Array, y: Array, backend: str | None = None
) -> tuple[Array, Gradients]:
    """The values (P,) of all pairs, and the gradients (A, V) and (B, V) of their sum.

    The arguments are those of :func:`values`.
    """
    if table.plain:
        return dispatch.value_and_partials(form, (True, True), x, y, backend=backend)
    xp, dtypes = libraries.array_namespace(x), (x.dtype, y.dtype)
    x, y = _wide(x, y)
    value, grads = dispatch.table_gradients(form, table, x, y, backend)
    return value, tuple(
        None if g is None else xp.astype(g, dtype, copy=False)
        for g, dtype in zip(grads, dtypes, strict=True)
    )


def _wide(x: Array, y: Array) -> tuple[Array, Array]:
    """Both in the dtype that is computed in: sums over half precision would be rounded to it."""
    xp = libraries.array_namespace(x)
    dtype = checks.computing_dtype(xp, x, y)
    return xp.astype(x, dtype, copy=False), xp.astype(y, dtype, copy=False)


def chunks_pay(table: Table, x: Array) -> bool:
    """Whether there is more than one chunk of pairs of such rows."""
    return table.pairs > rows_per_chunk(x)


def values_laid_out(form: RowForm, table: Table, x: Array, y: Array, backend: str | None) -> Array:
    """The values (P,), of the rows of all pairs at once."""
    rows = table.laid_out(x, y, libraries.array_namespace(x))
    return dispatch.apply(form, -1, *rows, backend=backend)


def gradients_laid_out(
    form: RowForm, table: Table, x: Array, y: Array, backend: str | None
) -> tuple[Array, Gradients]:
    """The values (P,) and the gradients of their sum, of the rows of all pairs at once."""
    xp = libraries.array_namespace(x)
    rows = table.laid_out(x, y, xp)
    value, partials = dispatch.value_and_partials(form, (True, True), *rows, backend=backend)
    return value, table.summed(partials, (x.shape, y.shape), xp)


def in_boxes(
    form: RowForm,
    table: Table,
    needs: tuple[bool, bool],
    x: Array,
    y: Array,
    scale: Array | None,
    backend: str | None,
) -> tuple[Array, Gradients]:
    """Values (P,), and gradients of their sum in the shapes of x and y, a chunk at a time.

    Args:
        form: two rows to a value.
        table: how they are paired.
        needs: whether the gradients by x and by y are wanted.
        x: rows (A, V), in the dtype that is computed in.
        y: rows (B, V), likewise.
        scale: (P,), what each value counts in the sum; None is 1.
        backend: see :func:`values`.
    """
    xp = libraries.array_namespace(x)
    both, ofs = table.apart(x, y, xp), (table.of_x, table.of_y)
    sums: list[Array | None] = [
        xp.zeros_like(a) if need else None for a, need in zip(both, needs, strict=True)
    ]
    # Made at once: small arrays that stay between large ones that go would break up the memory.
    found = xp.empty((table.pairs,), dtype=x.dtype, device=libraries.device(x))
    first = 0
    if scale is not None:
        form = replace(form, scaled=True)
    for box in table.boxes(rows_per_chunk(x)):
        lengths = tuple(part.stop - part.start for part in box)
        places = [_place(box, of) for of in ofs]
        rows = [
            xp.reshape(xp.broadcast_to(a[place], (*lengths, a.shape[-1])), (-1, a.shape[-1]))
            for a, place in zip(both, places, strict=True)
        ]
        last = first + math.prod(lengths)
        factor = () if scale is None else (scale[first:last],)
        wanted = (*needs, *(False for _ in factor))
        value, partials = dispatch.value_and_partials(form, wanted, *rows, *factor, backend=backend)
        found = xpx.at(found)[first:last].set(value, copy=False)
        for j, (partial, of, place) in enumerate(zip(partials[:2], ofs, places, strict=True)):
            total = sums[j]
            if partial is not None and total is not None:
                part = over_repeated(xp.reshape(partial, (*lengths, x.shape[-1])), of, xp)
                sums[j] = xpx.at(total)[place].add(part, copy=False)
        first = last
    grads = (
        None if s is None else xp.reshape(s, a.shape) for s, a in zip(sums, (x, y), strict=True)
    )
    return found, tuple(grads)


def _place(box: tuple[slice, ...], of: tuple[bool, ...]) -> tuple[slice, ...]:
    """Where the rows of a chunk are in an array of these axes."""
    parts = (part if has else slice(0, 1) for part, has in zip(box, of, strict=True))
    return (*parts, slice(None))
