"""JAX: values of pairs of rows as one compiled loop over chunks of pairs, with custom rules."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as xp

from amidmath.arrays.annotations import Array, Partials
from amidmath.backends.jax_backend import closed_forms
from amidmath.backends.jax_backend.derivatives import (
    Several,
    evaluate,
    mapped,
)
from amidmath.backends.jax_backend.moved import MovedValues
from amidmath.rows.forms import RowForm, rows_per_chunk
from amidmath.rows.tables import (
    Gradients,
    Table,
    chunks_pay,
    gradients_laid_out,
    over_repeated,
    values_laid_out,
)


def _takes(table: Table, x: Array, y: Array) -> bool:
    """Whether pairs go by the chunk; shapes of ``jax.export`` may not be known."""
    return all(isinstance(n, int) for a in (x, y) for n in a.shape) and chunks_pay(table, x)


def values(form: RowForm, table: Table, x: Array, y: Array, backend: str | None) -> Array:
    """The values (P,), differentiated once."""
    if backend == "reference" or not _takes(table, x, y):
        return values_laid_out(form, table, x, y, backend)
    value, _ = evaluate(_Values(form, table, backend), (False, False), x, y)
    return value


def value_and_gradients(
    form: RowForm, table: Table, x: Array, y: Array, backend: str | None
) -> tuple[Array, Gradients]:
    """The values (P,), and the gradients of their sum, which are not differentiated."""
    if not _takes(table, x, y):
        return gradients_laid_out(form, table, x, y, backend)
    found: tuple[Array, Gradients]
    found = evaluate(_Values(form, table, backend), (True, True), x, y)
    return found


@dataclass(frozen=True)
class _Loop:
    """The loop over the chunks; see :func:`amidmath.rows.tables.in_boxes`, with arrays made anew.

    The last part of an axis ends where the axis does: it begins among pairs that the part before it
    has had, whose values come out once more and whose derivatives are not added again.
    """

    form: RowForm
    table: Table
    backend: str | None

    @partial(jax.jit, static_argnums=(0, 1))
    def run(
        self,
        needs: tuple[bool, bool],
        scale: Array | None,
        tangents: tuple[Array | None, Array | None] | None,
        x: Array,
        y: Array,
    ) -> tuple[Array, Gradients]:
        """Values (P,) and gradients of their sum; instead of the values, their tangents.

        Args:
            needs: by which rows partial derivatives are made.
            scale: (P,), what each value counts in the sum; None is 1.
            tangents: of x and y, where the values' tangents are wanted.
            x: rows (A, V).
            y: rows (B, V).
        """
        table, ofs = self.table, (self.table.of_x, self.table.of_y)
        axis, width = table.cut(rows_per_chunk(x))
        size, before = table.sizes[axis], table.sizes[:axis]
        parts = -(-size // width)
        lengths = (*(1 for _ in before), width, *table.sizes[axis + 1 :])
        both = table.apart(x, y, xp)
        moving = None
        if tangents is not None:
            by_x, by_y = (
                xp.zeros_like(a) if t is None else t for a, t in zip((x, y), tangents, strict=True)
            )
            moving = table.apart(by_x, by_y, xp)

        def chunk(i: Array, carried: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
            found, sums = carried
            lead = xp.unravel_index(i // parts, before) if before else ()
            fresh = (i % parts) * width
            start = xp.minimum(fresh, size - width)
            at: tuple[Any, ...] = (*lead, start, *(0 for _ in table.sizes[axis + 1 :]))

            def place(of: tuple[bool, ...]) -> tuple[Any, ...]:
                return (*(a if has else 0 for a, has in zip(at, of, strict=True)), 0)

            def rows(a: Array, of: tuple[bool, ...]) -> Array:
                own = (n if has else 1 for n, has in zip(lengths, of, strict=True))
                part = jax.lax.dynamic_slice(a, place(of), (*own, a.shape[-1]))
                return xp.broadcast_to(part, (*lengths, a.shape[-1])).reshape(-1, a.shape[-1])

            here = [rows(a, of) for a, of in zip(both, ofs, strict=True)]
            value, partials = closed_forms.run(self.form, tuple(here), needs, self.backend)
            if moving is not None:
                along = [rows(t, of) for t, of in zip(moving, ofs, strict=True)]
                products = (
                    xp.sum(p * t, axis=-1)
                    for p, t in zip(partials, along, strict=True)
                    if p is not None
                )
                value = sum(products, xp.zeros_like(value))
            found = jax.lax.dynamic_update_slice(found, value.reshape(lengths), at)
            factor = None
            if scale is not None:
                apart = scale.reshape(table.sizes)
                factor = jax.lax.dynamic_slice(apart, at, lengths)[..., None]
            new = (start + xp.arange(width) >= fresh).reshape(
                *(1 for _ in before), width, *(1 for _ in lengths[axis + 1 :]), 1
            )
            given = [(p, of) for p, of in zip(partials, ofs, strict=True) if p is not None]
            for j, (by, of) in enumerate(given if sums else ()):
                apart = by.reshape(*lengths, by.shape[-1])
                apart = apart if factor is None else apart * factor
                part = over_repeated(xp.where(new, apart, 0.0), of, xp)
                old = jax.lax.dynamic_slice(sums[j], place(of), part.shape)
                sums[j] = jax.lax.dynamic_update_slice(sums[j], old + part, place(of))
            return found, sums

        # What varies with a mesh axis does so from the start of the loop; no value is read.
        nothing = sum(xp.sum(a[:0]) for a in (x, y, scale, *(tangents or ())) if a is not None)
        found = xp.zeros(table.sizes, x.dtype) + nothing
        sums = []
        if moving is None:
            wanted = (a for a, need in zip(both, needs, strict=True) if need)
            sums = [xp.zeros_like(a) + nothing for a in wanted]
        count = math.prod(before) * parts
        found, sums = jax.lax.fori_loop(0, count, chunk, (found, sums))
        given = iter(sums)
        grads = (
            next(given).reshape(a.shape) if need and sums else None
            for a, need in zip((x, y), needs, strict=True)
        )
        return found.reshape(-1), tuple(grads)


@dataclass(frozen=True)
class _Values(_Loop):
    """Every value; each has a cotangent of its own, which the gradients must know."""

    def compute(
        self, needs: tuple[bool, ...], operands: tuple[Array, ...]
    ) -> tuple[Array, Partials]:
        """In one loop."""
        x, y = operands
        found: tuple[Array, Partials] = self.run((needs[0], needs[1]), None, None, x, y)
        return found

    def asks(self, moving: tuple[bool, ...]) -> tuple[bool, ...]:
        """For none: those of the sum are of no use."""
        return (False,) * len(moving)

    def tangent(
        self,
        value: Array,
        partials: Partials,
        operands: tuple[Array, ...],
        tangents: tuple[Array | None, ...],
    ) -> Array:
        """By another loop, forward or in reverse."""
        moving = tuple(t is not None for t in tangents)
        directions = [t for t in tangents if t is not None]
        if not directions:
            return xp.zeros_like(value)
        by = _Moved(self.form, self.table, self.backend, (moving[0], moving[1]))
        return mapped((value,), by, operands, directions)[0]


@dataclass(frozen=True)
class _Moved(MovedValues, _Loop):
    """How the values move with the rows that do."""

    moving: tuple[bool, bool]

    def push(self, known: Several, tangents: Several) -> Several:
        """The sum of partial derivatives times tangents."""
        given = iter(tangents)
        every = tuple(next(given) if moves else None for moves in self.moving)
        return (self.run(self.moving, None, (every[0], every[1]), *known)[0],)

    def compute(
        self, needs: tuple[bool, ...], operands: tuple[Array, ...]
    ) -> tuple[Several, Partials]:
        """In one loop."""
        cotangent, x, y = operands
        _, grads = self.run(self.moving, cotangent, None, x, y)
        return tuple(g for g in grads if g is not None), (None,) * len(needs)
