"""torch: closed forms under autograd, torch.func and torch.compile."""

from typing import Any

import array_api_compat.torch as xp
import torch
from torch._C._functorch import is_batchedtensor, is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.function import once_differentiable

from amidmath._typing import Array, ClosedForm, Partials


def run(
    form: ClosedForm, operands: tuple[Array, ...], needs: tuple[bool, ...]
) -> tuple[Array, Partials]:
    """The value and the partial derivatives that ``needs`` marks, outside autograd."""
    with torch.no_grad():
        return form(*operands, needs=needs, xp=xp)


def differentiable(form: ClosedForm, axis: int | None, operands: tuple[Array, ...]) -> Array:
    """The closed form's value, with its partial derivatives as the gradient."""
    needs = tuple(operand.requires_grad for operand in operands)
    if not any(needs) or not torch.is_grad_enabled():
        return run(form, operands, (False,) * len(operands))[0]
    return _ClosedForm.apply(form, axis, needs, *operands)[0]


def at_hand(array: Array) -> bool:
    """Whether the values can be read: on the CPU, and neither compiled, faked nor batched."""
    if torch.compiler.is_compiling() or array.device.type != "cpu":
        return False
    return not (is_fake(array) or is_batchedtensor(array) or is_functorch_wrapped_tensor(array))


class _ClosedForm(torch.autograd.Function):
    """Keeps the partial derivatives that were asked for; the backward pass only scales them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        form: ClosedForm,
        axis: int | None,
        needs: tuple[bool, ...],
        *operands: Array,
    ) -> Any:
        value, partials = form(*operands, needs=needs, xp=xp)
        return (value, *(p for p in partials if p is not None))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        _, ctx.axis, ctx.needs, *_ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable  # autograd sees constants in the partials; an error, not a wrong Hessian
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # by the decorator
        ctx: Any, *cotangents: Array
    ) -> Any:
        cotangent = cotangents[0]
        if ctx.axis is not None:
            cotangent = cotangent.unsqueeze(ctx.axis)
        partials = iter(ctx.saved_tensors)
        grads = []
        for needed in ctx.needs:
            partial = next(partials) if needed else None
            grads.append(None if partial is None else (partial * cotangent).to(partial.dtype))
        return (None, None, None, *grads)
