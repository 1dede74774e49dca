"""JAX: rows of which the lowering decides what computes them, and how many at a time.

A trace knows neither the platform nor the devices that a program is for, nor whether it is for
another process (``jax.export``). So rows are a primitive that stands for the array core. Its
lowering calls the CPU's kernel where the program is for one CPU device, or for one in each of the
places that ``shard_map`` goes over, and writes the array core out elsewhere.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as xp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.backends.jax_backend import ffi as jax_cpu
from amidmath.backends.jax_backend.derivatives import at_front, quiet
from amidmath.compiler.graph import UnsupportedError
from amidmath.rows import forms
from amidmath.rows.forms import Chunked


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def rows(
    form: Chunked, needs: tuple[bool, ...], kernel: str | None, insisted: bool, *operands: Array
) -> tuple[Array, Partials]:
    """Values and partial derivatives of all rows.

    Args:
        form: what is computed.
        needs: which operands' partial derivatives are wanted.
        kernel: what :func:`amidmath.backends.jax_backend.ffi.kernel` gave.
        insisted: whether to raise where the kernel cannot be called.
        *operands: those of the form, each with an axis of rows in front.
    """
    (value, *given), there = _bind(operands, form, needs, kernel, insisted)
    new = iter(given)
    return value, tuple(next(new) if given else None for given in there)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def in_chunks(
    form: Chunked, needs: tuple[bool, ...], step: int, names: Namespace, *operands: Array
) -> tuple[Array, Partials]:
    """The rows a chunk at a time in one compiled loop; arrays here cannot be written into."""
    if operands[0].shape[0] <= step:
        return form.chunk(*operands, needs=needs, xp=names)

    def one_row(row: tuple[Array, ...]) -> tuple[Array, Partials]:
        return form.chunk(*row, needs=needs, xp=names)

    mapped: tuple[Array, Partials] = jax.lax.map(one_row, operands, batch_size=step)
    return mapped


_rows_p: Any = Primitive("amidmath_rows")
_rows_p.multiple_results = True


def _bind(
    operands: Sequence[Array],
    form: Chunked,
    needs: tuple[bool, ...],
    kernel: str | None,
    insisted: bool,
) -> tuple[list[Array], list[bool]]:
    """Values and the partial derivatives that there are, and which those are.

    What their types are, mesh axes and all, is what they are where the core computes them.
    """
    core = _over_batches(partial(form.chunk, needs=needs, xp=xp), operands[0].ndim - 2)
    traced, (_, partials) = jax.make_jaxpr(core, return_shape=True)(*operands)
    params = {"form": form, "needs": needs, "kernel": kernel, "insisted": insisted}
    results = _rows_p.bind(*operands, **params, results=tuple(traced.out_avals))
    return results, [p is not None for p in partials]


def _over_batches(f: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """The function of rows, over so many axes in front."""
    for _ in range(axes):
        f = jax.vmap(f)
    return f


def _impl(*operands: Array, **params: Any) -> list[Array]:
    """Compiled, where nothing else is (``jax_disable_jit``)."""
    with jax.disable_jit(False):
        computed: list[Array] = jax.jit(partial(_rows_p.bind, **params))(*operands)
    return computed


def _abstract(*_: Any, results: tuple[Any, ...], **__: Any) -> list[Any]:
    return list(results)


def _batch(
    operands: Sequence[Array], axes: Sequence[int | None], *, results: Any, **params: Any
) -> tuple[list[Array], list[int]]:
    del results
    found, _ = _bind(at_front(operands, axes), **params)
    return found, [0] * len(found)


def _lower(
    ctx: Any,
    *operands: Any,
    form: Chunked,
    needs: tuple[bool, ...],
    kernel: str | None,
    insisted: bool,
    results: Any,
    chunk: int | None = None,
    why_not: str | None = "the program is not for a CPU",
) -> Any:
    """The array core, unless the kernel was insisted on: why it is not called."""
    if insisted and why_not is not None:
        raise ValueError(f"backend 'compiled' runs in JAX on a CPU that is by itself: {why_not}")
    *batch, _, size = ctx.avals_in[0].shape
    step = max(1, (chunk or forms.ACCELERATOR_CHUNK) // max(1, size * math.prod(batch)))
    core = _over_batches(partial(in_chunks, form, needs, step, xp), len(batch))

    def flat(*arrays: Array) -> list[Array]:
        found: list[Array] = jax.tree.leaves(core(*arrays))
        return found

    with quiet():
        return mlir.lower_fun(flat, multiple_results=True)(ctx, *operands)


def _lower_for_cpu(ctx: Any, *operands: Any, kernel: str | None, **params: Any) -> Any:
    """A call of the kernel, where there is one and it may be called."""
    why_not = jax_cpu.why_not(ctx.module_context)
    rows = math.prod(ctx.avals_in[0].shape[:-1])
    if kernel is not None and why_not is None and rows > 0:
        try:
            return jax_cpu.lower(ctx, operands, kernel)
        except UnsupportedError as reason:
            why_not = f"cannot compute {reason}"
    return _lower(ctx, *operands, kernel=kernel, chunk=forms.CPU_CHUNK, why_not=why_not, **params)


_rows_p.def_impl(_impl)
_rows_p.def_abstract_eval(_abstract)
batching.primitive_batchers[_rows_p] = _batch
mlir.register_lowering(_rows_p, _lower)
mlir.register_lowering(_rows_p, _lower_for_cpu, platform="cpu")
