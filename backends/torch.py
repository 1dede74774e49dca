"""torch: closed forms under autograd, torch.func and torch.compile."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import array_api_compat.torch as xp
import torch
from torch._C._functorch import is_batchedtensor, is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.function import once_differentiable

from amidmath._dispatch import scaled_sum
from amidmath._rows import RowForm
from amidmath._typing import Array, ClosedForm, Partials
from amidmath.backends import choice

if TYPE_CHECKING:
    from amidmath.backends import cpu


def run(
    form: ClosedForm,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None = None,
) -> tuple[Array, Partials]:
    """The value and the partial derivatives that ``needs`` marks, outside autograd."""
    with torch.no_grad():
        return _evaluated(form, operands, needs, backend)


def differentiable(
    form: ClosedForm, axis: int | None, operands: tuple[Array, ...], backend: str | None = None
) -> Array:
    """The closed form's value, with its partial derivatives as the gradient.

    With backend "reference" torch differentiates the core's own operations, as often as asked.
    """
    none = (False,) * len(operands)
    if backend == "reference":
        return form(*operands, needs=none, xp=xp)[0]
    needs = tuple(operand.requires_grad for operand in operands)
    if not any(needs) or not torch.is_grad_enabled():
        return run(form, operands, none, backend)[0]
    return _ClosedForm.apply(form, axis, needs, backend, *operands)[0]


def total(
    form: RowForm, scale: Any, operands: tuple[Array, ...], backend: str | None = None
) -> Array:
    """The sum of the rows' values times ``scale``, with the gradient made in its final scale."""
    needs = tuple(operand.requires_grad for operand in operands)
    if backend == "reference" or not any(needs) or not torch.is_grad_enabled():
        return scaled_sum(differentiable(form, -1, operands, backend), scale, xp)
    if scale is not None:
        first = operands[0]
        double = torch.float64 in (first.dtype, operands[1].dtype)
        dtype = torch.float64 if double else torch.float32
        scale = torch.as_tensor(scale, dtype=dtype, device=first.device).detach()
        form = replace(form, scaled=True)
    return _Total.apply(form, needs, backend, scale, *operands)[0]


def _evaluated(
    form: ClosedForm, operands: tuple[Array, ...], needs: tuple[bool, ...], backend: str | None
) -> tuple[Array, Partials]:
    plain = all(type(a) in (torch.Tensor, torch.nn.Parameter) and at_hand(a) for a in operands)
    if plain:
        result = choice.compiled(_compiled, form, operands, needs, backend)
        if result is not None:
            return result
    elif backend == "compiled":
        first = operands[0]
        raise ValueError(
            "backend 'compiled' computes plain tensors on the CPU, outside of compile and "
            f"torch.func; got a {type(first).__name__} on {first.device}"
        )
    return form(*operands, needs=needs, xp=xp)


def _compiled(
    form: RowForm, operands: tuple[Array, ...], needs: tuple[bool, ...]
) -> tuple[Array, Partials]:
    from amidmath.backends import cpu

    rows, vocabulary = operands[0].shape
    held = [_side_by_side(a.detach()) for a in operands]  # copies live until the kernel has run
    double = torch.float64 in (operands[0].dtype, operands[1].dtype)

    def empty(which: int | None) -> tuple[Array, "cpu.View"]:
        if which is None:
            made = torch.empty(rows, dtype=torch.float64 if double else torch.float32)
        else:
            made = torch.empty(operands[which].shape, dtype=operands[which].dtype)
        return made, _view(made)

    views = [_view(a) for a in held]
    return cpu.run(form, needs, views, rows, vocabulary, empty, torch.get_num_threads())


def _side_by_side(a: Array) -> Array:
    """The tensor, or a copy where the numbers of a row do not lie side by side."""
    return a if a.ndim == 1 or a.shape[-1] == 1 or a.stride(-1) == 1 else a.contiguous()


def _view(a: Array) -> "cpu.View":
    from amidmath.backends import cpu

    name = str(a.dtype).removeprefix("torch.")
    return cpu.View(a.data_ptr(), a.stride(0) * a.element_size(), name)


def at_hand(array: Array) -> bool:
    """Whether the values can be read: on the CPU, and neither compiled, faked nor batched."""
    if torch.compiler.is_compiling() or array.device.type != "cpu":
        return False
    return not (is_fake(array) or is_batchedtensor(array) or is_functorch_wrapped_tensor(array))


class _Total(torch.autograd.Function):
    """The same for a sum over all rows, whose gradient usually needs no further scaling."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        form: RowForm,
        needs: tuple[bool, ...],
        backend: str | None,
        scale: Array | None,
        *operands: Array,
    ) -> Any:
        extra = () if scale is None else (scale.expand(operands[0].shape[0]),)
        asked = (*needs, *(False for _ in extra))
        values, partials = _evaluated(form, (*operands, *extra), asked, backend)
        return (scaled_sum(values, scale, xp), *(p for p in partials if p is not None))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        _, ctx.needs, *_ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # zeros for the partials would cost as much as they do
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # by the decorator
        ctx: Any, *cotangents: Array | None
    ) -> Any:
        cotangent = cotangents[0]
        if cotangent is None:
            return (None,) * (4 + len(ctx.needs))
        partials = iter(ctx.saved_tensors)
        # Where looking costs nothing; elsewhere it would wait for the device.
        unscaled = at_hand(cotangent) and bool(cotangent == 1.0)
        grads = []
        for needed in ctx.needs:
            partial = next(partials) if needed else None
            if partial is not None and not unscaled:
                partial = (partial * cotangent).to(partial.dtype)
            grads.append(partial)
        return (None, None, None, None, *grads)


class _ClosedForm(torch.autograd.Function):
    """Keeps the partial derivatives that were asked for; the backward pass only scales them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        form: ClosedForm,
        axis: int | None,
        needs: tuple[bool, ...],
        backend: str | None,
        *operands: Array,
    ) -> Any:
        value, partials = _evaluated(form, operands, needs, backend)
        return (value, *(p for p in partials if p is not None))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        _, ctx.axis, ctx.needs, _, *_ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # zeros for the partials would cost as much as they do
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable  # autograd sees constants in the partials; an error, not a wrong Hessian
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # by the decorator
        ctx: Any, *cotangents: Array | None
    ) -> Any:
        cotangent = cotangents[0]
        if cotangent is None:
            return (None,) * (4 + len(ctx.needs))
        if ctx.axis is not None:
            cotangent = cotangent.unsqueeze(ctx.axis)
        partials = iter(ctx.saved_tensors)
        grads = []
        for needed in ctx.needs:
            partial = next(partials) if needed else None
            grads.append(None if partial is None else (partial * cotangent).to(partial.dtype))
        return (None, None, None, None, *grads)
