"""torch: values that are differentiated once, by the partial derivatives that come with them.

Of the partial derivatives there are none: those of the formulas would not be right everywhere
(docs: design), and a kernel's cannot be had. So each value comes with a token, an empty tensor that
depends on the same operands, and a gradient that autograd records is made to depend on the token:
what comes to need a derivative of it is refused, and what does not goes on.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import torch
from torch._C._functorch import (
    get_unwrapped,
    is_functorch_wrapped_tensor,
    maybe_get_level,
    peek_interpreter_stack,
)
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

from amidmath.arrays.annotations import Array
from amidmath.arrays.dispatch import FIRST_ONLY

Several = tuple[Array, ...]


def transformed() -> bool:
    """Whether ``torch.func`` or forward mode is at work."""
    # torch has no public question for either.
    functions: bool = torch._C._are_functorch_transforms_active()
    if functions or torch.compiler.is_dynamo_compiling():
        return functions
    level: int = forward_ad._current_level
    return level >= 0


def moves(array: Array) -> bool:
    """Whether something is differentiated by the array, in reverse or forward mode."""
    recorded = torch.is_grad_enabled()
    if recorded and array.requires_grad:
        return True
    if not transformed():
        return False
    if torch.compiler.is_dynamo_compiling():
        # Dynamo does not see that torch.func.grad has made an argument of a function require one.
        return recorded and bool(array.view_as(array).requires_grad)
    # Each level of torch.func wraps the array once more, and shows what moves at its own alone.
    inner = array
    with ExitStack() as lowered:
        while True:
            if (recorded and inner.requires_grad) or tangent(inner) is not None:
                return True
            if not is_functorch_wrapped_tensor(inner):
                return False
            inner = get_unwrapped(inner)
            while _level() > max(maybe_get_level(inner), 0):
                lowered.enter_context(temporarily_pop_interpreter_stack())


def _level() -> int:
    """How many transformations of ``torch.func`` are at work."""
    top = peek_interpreter_stack()
    return 0 if top is None else int(top.level())


def tangent(array: Array) -> Array | None:
    """The array's tangent in forward mode."""
    found: Array | None = forward_ad.unpack_dual(array).tangent  # type: ignore[no-untyped-call]
    return found


def token_of(array: Array) -> Array:
    """An empty tensor beside the array, to be an output of what has the partial derivatives."""
    made: Array = array.new_empty((0,))
    return made


def refused(token: Array, partials: Sequence[Array]) -> Several:
    """The partial derivatives, as what depends on the token's operands in a way nobody knows."""
    if not partials:
        return ()
    found: Several = _Refused.apply(token, *partials)  # type: ignore[no-untyped-call]
    return found


class _Refused(torch.autograd.Function):
    """The tensors as they are, and no derivative of them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(token: Array, *partials: Array) -> Any:
        return tuple(partial.view_as(partial) for partial in partials)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Several) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> Any:
        if any(cotangent is not None for cotangent in cotangents):
            raise NotImplementedError(FIRST_ONLY)
        return (None,) * (1 + len(cotangents))

    @staticmethod
    def jvp(ctx: Any, *tangents: Array | None) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise NotImplementedError(FIRST_ONLY)


class Kept:
    """Tensors that a node of autograd's graph keeps for its derivatives.

    Tensors made in inference mode have no versions to keep watch of, and autograd does not save
    them; nothing is differentiated by them.
    """

    def __init__(self, ctx: Any, tensors: Sequence[Array]) -> None:
        """Keep the tensors, for forward mode too."""
        self._apart = {j: a for j, a in enumerate(tensors) if a.is_inference()}
        saved = tuple(a for j, a in enumerate(tensors) if j not in self._apart)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)  # the same, or vmap would take the axes of one for the other

    def of(self, ctx: FunctionCtx) -> Several:
        """The tensors kept."""
        saved = ctx.saved_tensors  # type: ignore[attr-defined]  # unpacked by being asked for
        given, count = iter(saved), len(self._apart) + len(saved)
        return tuple(self._apart[j] if j in self._apart else next(given) for j in range(count))


def times(partial: Array, cotangent: Array) -> Array:
    """The product in the partial's dtype, rounded once: no scalar of another dtype in it."""
    factor = cotangent.reshape((1,)) if cotangent.ndim == 0 else cotangent
    return (partial * factor).to(partial.dtype)


def along(
    partials: Sequence[Array],
    needs: Sequence[bool],
    tangents: Sequence[Array | None],
    summed: Callable[[Array], Array],
    like: torch.dtype,
) -> Array:
    """The value's tangent: the sum of the partial derivatives times those of the operands.

    Args:
        partials: those that there are.
        needs: which operands they are by.
        tangents: of all operands, None of one that does not move.
        summed: sums a product over what the value is summed over.
        like: its dtype.
    """
    moved, given = summed(partials[0].to(like) * 0.0), iter(partials)
    for need, direction in zip(needs, tangents, strict=True):
        by = next(given) if need else None
        if by is None or direction is None:
            continue
        moved = moved + summed(by.to(like) * direction.to(like))
    return moved
