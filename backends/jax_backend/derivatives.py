"""JAX: values that are differentiated once, by the partial derivatives that come with them.

A rule computes a value and partial derivatives; :func:`evaluate` has JAX differentiate the value by
them, in forward and reverse mode. Of the partial derivatives there are none: those of the formulas
would not be right everywhere (docs: design), and a kernel's cannot be had. So their tangents are a
primitive that has no value: what comes to need one is refused, and what does not (a gradient in
``stop_gradient``, the value of ``value_and_grad``) goes on.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol, TypeAlias

import jax
import jax.numpy as xp
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from amidmath.arrays.annotations import Array, Partials
from amidmath.arrays.dispatch import FIRST_ONLY


class Rule(Protocol):
    """How something is computed and differentiated once; hashable, JAX compiles once for each."""

    def compute(self, needs: tuple[bool, ...], operands: tuple[Array, ...]) -> tuple[Any, Partials]:
        """The value, one array or several, and the partial derivatives that ``needs`` marks."""
        ...

    def asks(self, moving: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which partial derivatives the tangent is made of, where those operands move."""
        ...

    def tangent(
        self,
        value: Any,
        partials: Partials,
        operands: tuple[Array, ...],
        tangents: tuple[Array | None, ...],
    ) -> Any:
        """The value's tangent; None is that of an operand that does not move."""
        ...


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def evaluate(rule: Rule, needs: tuple[bool, ...], *operands: Array) -> tuple[Any, Partials]:
    """The rule's value and partial derivatives, the value differentiable."""
    with quiet():
        spread = any(_spread(operand) for operand in operands)
        compute = partial(_compiled, rule) if spread else rule.compute
        return compute(needs, operands)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(
    rule: Rule, needs: tuple[bool, ...], operands: tuple[Array, ...]
) -> tuple[Any, Partials]:
    return rule.compute(needs, operands)


def _spread(array: Array) -> bool:
    """Whether an array is on several devices, which the core's own arrays cannot be put on."""
    return not isinstance(array, Tracer) and len(array.devices()) > 1


@partial(evaluate.defjvp, symbolic_zeros=True)
def _evaluate_tangent(
    rule: Rule, needs: tuple[bool, ...], operands: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    moved = tuple(t if _moves(t) else None for t in tangents)
    asked = rule.asks(tuple(t is not None for t in moved))
    more = tuple(n or a for n, a in zip(needs, asked, strict=True))
    value, partials = evaluate(rule, more, *operands)
    with quiet():
        along = rule.tangent(value, partials, operands, moved)
        given = tuple(p if n else None for p, n in zip(partials, needs, strict=True))
        directions = [t for t in moved if t is not None]
        none = jax.tree.map(lambda p: refused(p, directions), given)
    return (value, given), (along, none)


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero) and tangent.dtype != jax.dtypes.float0


def product(by: Array, tangent: Array, dtype: Any) -> Array:
    """A partial derivative times a tangent, not rounded to half precision."""
    return by.astype(dtype) * tangent.astype(dtype)


def along_all(value: Array, partials: Partials, tangents: Sequence[Array | None]) -> Array:
    """The tangent of a number, from partial derivatives in the shapes of the operands."""
    moved = xp.zeros_like(value)
    for by, tangent in zip(partials, tangents, strict=True):
        if by is not None and tangent is not None:
            moved = moved + xp.sum(product(by, tangent, value.dtype))
    return moved


def at_front(arrays: Sequence[Array], axes: Sequence[int | None]) -> list[Array]:
    """The arrays with the axis that ``vmap`` goes over in front; repeated where there is none."""
    (size,) = {a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None}
    return [
        xp.broadcast_to(a, (size, *a.shape)) if axis is None else xp.moveaxis(a, axis, 0)
        for a, axis in zip(arrays, axes, strict=True)
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what JAX can be told to look for in the caller's code.

    The formulas meet infinities and NaNs on their way that are none of the result's, and broadcast
    as the Array API says.
    """
    with ExitStack() as stack:
        stack.enter_context(jax.debug_nans(False))
        stack.enter_context(jax.debug_infs(False))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


# ---------------------------------------------------------------------------------------------
# Tangents that are computed, and transposed, where they come to be needed


Several: TypeAlias = tuple[Array, ...]


class LinearMap(Protocol):
    """A linear map of tangents, which may depend on known arrays; hashable."""

    def push(self, known: Several, tangents: Several) -> Several:
        """Where it leads."""
        ...

    def pull(self, known: Several, cotangents: Several) -> Several:
        """Its transpose: a cotangent for every tangent."""
        ...


@dataclass(frozen=True)
class Transposed:
    """The transpose of a map."""

    inner: LinearMap

    def push(self, known: Several, tangents: Several) -> Several:
        """Back."""
        return self.inner.pull(known, tangents)

    def pull(self, known: Several, cotangents: Several) -> Several:
        """And forth."""
        return self.inner.push(known, cotangents)


@dataclass(frozen=True)
class _Refused:
    """Neither is to be had."""

    def push(self, known: Several, tangents: Several) -> NoReturn:
        """Say what has it."""
        raise RuntimeError(FIRST_ONLY)

    def pull(self, known: Several, cotangents: Several) -> NoReturn:
        """Say what has it."""
        raise RuntimeError(FIRST_ONLY)


@dataclass(frozen=True)
class _Mapped:
    """The map of each of several, as ``vmap`` has it; ``axes`` are those of what is known."""

    inner: LinearMap
    axes: tuple[int | None, ...]

    def push(self, known: Several, tangents: Several) -> Several:
        """Each its own."""
        pushed: Several = jax.vmap(self.inner.push, in_axes=(self.axes, 0))(known, tangents)
        return pushed

    def pull(self, known: Several, cotangents: Several) -> Several:
        """Each its own."""
        pulled: Several = jax.vmap(self.inner.pull, in_axes=(self.axes, 0))(known, cotangents)
        return pulled


def refused(array: Array, tangents: Sequence[Array]) -> Array:
    """The tangent of an array that has none, where these are those of what it depends on."""
    return _bound((array,), _Refused(), (), tangents)[0] if tangents else xp.zeros_like(array)


def mapped(
    arrays: Sequence[Array], by: LinearMap, known: Sequence[Array], tangents: Sequence[Array]
) -> Several:
    """The tangents of arrays, by a linear map of those of what they depend on."""
    # All vary with the mesh axes with which the arrays do; no value is read.
    nothing: Array = sum(array[:0].astype(xp.float32).sum() for array in arrays)
    one = 1.0 + nothing
    return _bound(arrays, by, known, [t * one.astype(t.dtype) for t in tangents])


_tangents_p: Any = Primitive("amidmath_tangents")
_tangents_p.multiple_results = True


def _bound(
    arrays: Sequence[Array], by: LinearMap, known: Sequence[Array], tangents: Sequence[Array]
) -> Several:
    """The primitive's results are of the types of the arrays, of which no value is read."""
    counts = (len(arrays), len(known))
    return tuple(_tangents_p.bind(*arrays, *known, *tangents, by=by, counts=counts))


def _parted(operands: Sequence[Any], counts: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Arrays, what is known, and tangents."""
    first, second = counts[0], sum(counts)
    return tuple(operands[:first]), tuple(operands[first:second]), tuple(operands[second:])


def _push(*operands: Array, by: LinearMap, counts: tuple[int, int]) -> list[Array]:
    _, known, tangents = _parted(operands, counts)
    with quiet():
        return list(by.push(known, tangents))


def _abstract(*operands: Any, by: LinearMap, counts: tuple[int, int]) -> list[Any]:
    arrays, _, _ = _parted(operands, counts)
    return [array.update(weak_type=False) for array in arrays]


def _tangents_of_tangents(
    operands: Sequence[Array], moved: Sequence[Any], *, by: LinearMap, counts: tuple[int, int]
) -> tuple[Several, Several]:
    """Linear in the tangents, and without derivatives by what is known."""
    arrays, known, tangents = _parted(operands, counts)
    _, by_known, by_tangents = _parted(moved, counts)
    results = _bound(arrays, by, known, tangents)
    along = tuple(xp.zeros_like(result) for result in results)
    if any(type(t) is not ad.Zero for t in by_tangents):
        along = _bound(arrays, by, known, _dense(by_tangents))
    directions = [t for t in by_known if type(t) is not ad.Zero]
    if directions:
        along = tuple(a + refused(a, directions) for a in along)
    return results, along


def _dense(tangents: Sequence[Any]) -> Several:
    """Zeros in full."""
    return tuple(ad.instantiate_zeros(t) for t in tangents)  # type: ignore[no-untyped-call]


def _transpose(
    cotangents: Sequence[Any], *operands: Any, by: LinearMap, counts: tuple[int, int]
) -> list[Array | None]:
    _, known, _ = _parted(operands, counts)
    pulled = by.pull(known, _dense(cotangents))
    return [*(None for _ in range(sum(counts))), *pulled]


def _batch(
    operands: Sequence[Array],
    axes: Sequence[int | None],
    *,
    by: LinearMap,
    counts: tuple[int, int],
) -> tuple[Several, tuple[int, ...]]:
    _, known, _ = _parted(operands, counts)
    _, of_known, _ = _parted(axes, counts)
    arrays, _, tangents = _parted(at_front(operands, axes), counts)
    results = _bound(arrays, _Mapped(by, of_known), known, tangents)
    return results, (0,) * len(results)


_tangents_p.def_impl(_push)
_tangents_p.def_abstract_eval(_abstract)
mlir.register_lowering(_tangents_p, mlir.lower_fun(_push, multiple_results=True))
ad.primitive_jvps[_tangents_p] = _tangents_of_tangents
ad.primitive_transposes[_tangents_p] = _transpose
batching.primitive_batchers[_tangents_p] = _batch
