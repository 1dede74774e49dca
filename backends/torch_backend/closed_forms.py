"""torch: closed forms under autograd, torch.func and torch.compile."""

from dataclasses import dataclass, replace
from typing import Any

import array_api_compat.torch as xp
import torch

from amidmath.arrays.annotations import Array, ClosedForm, Partials
from amidmath.arrays.dispatch import scaled_sum
from amidmath.backends.torch_backend.autograd import (
    Kept,
    along,
    moves,
    refused,
    times,
    token_of,
    transformed,
)
from amidmath.backends.torch_backend.operators import among_fakes, recorded, value_and_partials
from amidmath.backends.torch_backend.rows import at_hand as at_hand
from amidmath.backends.torch_backend.rows import computed, plain, tracing
from amidmath.formulas.differentiated import Differentiated
from amidmath.pairs.sharded import ShardedRows
from amidmath.rows.forms import RowForm


def run(
    form: ClosedForm,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None = None,
    overwrite: bool = False,
) -> tuple[Array, Partials]:
    """The value and the partial derivatives that ``needs`` marks, outside autograd.

    With ``overwrite`` the first operand's gradient may take its place in memory.
    """
    if torch.compiler.is_dynamo_compiling():
        from amidmath.backends.torch_backend import dynamo as torch_dynamo

        with torch.no_grad():
            return torch_dynamo.value_and_partials(form, None, operands, needs, backend)
    if transformed() and any(moves(operand) for operand in operands):
        return _followed(form, operands, needs, backend)
    with torch.no_grad(), among_fakes(operands):
        return _evaluated(form, None, operands, needs, backend, overwrite)


def _followed(
    form: ClosedForm, operands: tuple[Array, ...], needs: tuple[bool, ...], backend: str | None
) -> tuple[Array, Partials]:
    """The same of rows, where ``torch.func`` or forward mode differentiates what comes out."""
    every = tuple(need or moves(a) for need, a in zip(needs, operands, strict=True))
    value, token, *partials = _ClosedForm.apply(How(form, -1, every, backend), *operands)
    given = iter(refused(token, partials))
    found = [next(given) if need else None for need in every]
    return value, tuple(p if need else None for p, need in zip(found, needs, strict=True))


def differentiable(
    form: ClosedForm, axis: int | None, operands: tuple[Array, ...], backend: str | None = None
) -> Array:
    """The closed form's value, with its partial derivatives as the gradient.

    With backend "reference" torch differentiates the core's own operations, as often as asked.
    """
    none = (False,) * len(operands)
    if backend == "reference":
        if torch.compiler.is_dynamo_compiling():
            from amidmath.backends.torch_backend import dynamo as torch_dynamo

            form = torch_dynamo.known(form)
        return form(*operands, needs=none, xp=_DIFFERENTIATED)[0]
    needs = tuple(moves(operand) for operand in operands)
    if not any(needs):
        return run(form, operands, none, backend)[0]
    if torch.compiler.is_dynamo_compiling():
        from amidmath.backends.torch_backend import dynamo as torch_dynamo

        return torch_dynamo.value(How(form, axis, needs, backend), operands)
    if tracing() and recorded(form, operands):  # where a function of Python would be recorded
        return value_and_partials(form, axis, operands, needs, backend)[0]
    with among_fakes(operands):
        return _ClosedForm.apply(How(form, axis, needs, backend), *operands)[0]


_DIFFERENTIATED = Differentiated(xp, torch.Tensor.detach)


def total(
    form: RowForm, scale: Any, operands: tuple[Array, ...], backend: str | None = None
) -> Array:
    """The sum of the rows' values times ``scale``, with the gradient made in its final scale."""
    needs = tuple(moves(operand) for operand in operands)
    # A loss scale comes with the cotangent: scaled before it, float16's gradients would underflow.
    half = any(a.dtype == torch.float16 for a in operands)
    late = half or tracing() or torch.compiler.is_dynamo_compiling()
    if isinstance(scale, torch.Tensor):
        scale = scale.detach()
    if late or backend == "reference" or not any(needs):
        return scaled_sum(differentiable(form, -1, operands, backend), scale, xp)
    with among_fakes(operands):
        if scale is not None:
            first = operands[0]
            double = torch.float64 in (first.dtype, operands[1].dtype)
            dtype = torch.float64 if double else torch.float32
            scale = torch.as_tensor(scale, dtype=dtype, device=first.device)
            form = replace(form, scaled=True)
        return _Total.apply(How(form, -1, needs, backend), scale, *operands)[0]


def _evaluated(
    form: ClosedForm,
    axis: int | None,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None,
    overwrite: bool = False,
) -> tuple[Array, Partials]:
    """By an operator that can be recorded, where something records."""
    if recorded(form, operands):
        return value_and_partials(form, axis, operands, needs, backend)
    return computed(form, operands, needs, backend, overwrite)


@dataclass(frozen=True)
class How:
    """Everything of a call that is no tensor; one leaf to ``torch.func``, whatever it holds.

    Args:
        form: what is computed.
        axis: the axis over which the tangent is summed, None for no sum.
        needs: which operands' partial derivatives are wanted.
        backend: "reference", "compiled" or None.
    """

    form: ClosedForm
    axis: int | None
    needs: tuple[bool, ...]
    backend: str | None


class _Total(torch.autograd.Function):
    """The sum over all rows, whose gradient usually needs no further scaling.

    The partial derivatives themselves become the gradients, in the first backward pass: nobody
    else may hold them, or autograd would copy them. Another pass, through a graph that was
    retained, computes them again from the operands.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(how: How, scale: Array | None, *operands: Array) -> Any:
        values, partials = _scaled(how, scale, operands)
        return (scaled_sum(values, scale, xp), token_of(operands[0]), *partials)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        ctx.how, ctx.scale, *operands = inputs
        ctx.dtype = output[0].dtype
        token, *partials = output[1:]
        ctx.mark_non_differentiable(*partials)
        ctx.set_materialize_grads(False)  # zeros for the partials would cost as much as they do
        ctx.own = all(plain(a) for a in output)
        ctx.partials = tuple(partials) if ctx.own else None
        ctx.kept = Kept(ctx, (token, *(operands if ctx.own else partials)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> Any:
        cotangent = cotangents[0]
        if cotangent is None:
            return (None,) * (2 + len(ctx.how.needs))
        token, *kept = ctx.kept.of(ctx)
        partials: tuple[Array, ...] = tuple(kept)
        if ctx.partials is not None:
            partials, ctx.partials = ctx.partials, None
        elif ctx.own:
            with torch.no_grad():
                _, partials = _scaled(ctx.how, ctx.scale, partials)
        if torch.is_grad_enabled():
            partials = refused(token, partials)
        # Where looking costs nothing; elsewhere it would wait for the device.
        if cotangent.requires_grad or not (at_hand(cotangent) and bool(cotangent == 1.0)):
            partials = tuple(times(p, cotangent) for p in partials)
        given = iter(partials)
        return (None, None, *(next(given) if need else None for need in ctx.how.needs))

    @staticmethod
    def jvp(ctx: Any, *tangents: Array | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        token, *kept = ctx.kept.of(ctx)
        partials = refused(token, kept if ctx.partials is None else ctx.partials)
        moved = along(partials, ctx.how.needs, tangents[2:], torch.sum, ctx.dtype)
        return (moved, torch.zeros_like(token), *(None for _ in partials))


def _scaled(
    how: How, scale: Array | None, operands: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    """Values, and the partial derivatives asked for, times the scale of the sum."""
    extra = () if scale is None else (scale.expand(operands[0].shape[0]),)
    asked = (*how.needs, *(False for _ in extra))
    values, partials = _evaluated(how.form, how.axis, (*operands, *extra), asked, how.backend)
    return values, tuple(p for p in partials if p is not None)


class _ClosedForm(torch.autograd.Function):
    """Keeps the partial derivatives that were asked for; the backward pass only scales them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(how: How, *operands: Array) -> Any:
        value, partials = _evaluated(how.form, how.axis, operands, how.needs, how.backend)
        return (value, token_of(operands[0]), *(p for p in partials if p is not None))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        ctx.how, ctx.dtype = inputs[0], output[0].dtype
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)  # zeros for the partials would cost as much as they do
        ctx.kept = Kept(ctx, output[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> Any:
        cotangent = cotangents[0]
        if cotangent is None:
            return (None,) * (1 + len(ctx.how.needs))
        if ctx.how.axis is not None:
            cotangent = cotangent.unsqueeze(ctx.how.axis)
        token, *partials = ctx.kept.of(ctx)
        if torch.is_grad_enabled():
            partials = refused(token, partials)
        given = iter(partials)
        grads = (times(next(given), cotangent) if need else None for need in ctx.how.needs)
        return (None, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Array | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if isinstance(ctx.how.form, ShardedRows):
            raise NotImplementedError(
                "no forward mode for a loss of an am.Shard: its tangent would be added up over the "
                "ranks; use reverse mode, or call the loss on the whole rows"
            )
        token, *partials = ctx.kept.of(ctx)
        axis = ctx.how.axis

        def summed(product: Array) -> Array:
            return product if axis is None else product.sum(dim=axis)

        partials = refused(token, partials)
        moved = along(partials, ctx.how.needs, tangents[1:], summed, ctx.dtype)
        return (moved, torch.zeros_like(token), *(None for _ in partials))
