"""torch: losses in chunks of rows as operators, for graphs; see :mod:`.operators`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import array_api_compat.torch as xp
import torch

from amidmath.arrays.annotations import Array
from amidmath.arrays.dispatch import scaled_sum
from amidmath.backends.torch_backend.autograd import refused, token_of
from amidmath.backends.torch_backend.chunk_call import Call, TorchLibrary, rows_of
from amidmath.backends.torch_backend.operators import outlined, restored
from amidmath.pairs.chunks import Chunks
from amidmath.rows import texts


def value(call: Call, scale: Array | None, arrays: Sequence[Array]) -> Array:
    """The sum times the scale, or single values, by the operator; differentiated once."""
    result: Array = linear(list(arrays), scale, *_told(call))[0]
    return result


def values_and_grads(
    call: Call, factor: Array | None, arrays: Sequence[Array]
) -> tuple[Array, dict[str, Array]]:
    """Single values, and gradients of their sum times a factor each, outside of autograd."""
    with torch.no_grad():
        told = _told(replace(call, reduced=False))
        values: Array = linear(list(arrays), None, *told)[0]
        factor = torch.ones_like(values) if factor is None else factor
        found = linear_gradients(list(arrays), factor, *told)
        return values, dict(zip(call.wanted, found, strict=True))


def _told(call: Call) -> tuple[Array | None, list[float], str]:
    """The call as the operators are told it."""
    if torch.compiler.is_dynamo_compiling():
        from amidmath.backends.torch_backend import dynamo as torch_dynamo

        text, found = texts.described(call, torch_dynamo.class_name, torch_dynamo.kept)
        return torch_dynamo.numbers_of(found), [0.0], text
    text, found = texts.described(call)
    return None, [*found, 0.0], text


@torch.library.custom_op("amidmath::linear", mutates_args=())
def linear(
    arrays: list[torch.Tensor],
    scale: torch.Tensor | None,
    numbers: torch.Tensor | None,
    constants: list[float],
    form: str,
) -> list[torch.Tensor]:
    """The sum or single values, a token, and of a sum the gradients that are wanted.

    Args:
        arrays: those of the call, in its order.
        scale: of the sum, None for 1.
        numbers: the call's, see :mod:`torch_operators`; None where ``constants`` has them.
        constants: the call's numbers, where they are none of a graph's.
        form: the call's text, see :mod:`amidmath.rows.texts`.
    """
    call: Call = restored(form, numbers, constants)
    token = token_of(arrays[0])
    if not call.reduced:
        return [call.run(arrays, (), None)[0], token]
    by_rows = None if call.late else rows_of(scale, arrays[0])
    values, grads = call.run(arrays, call.wanted, by_rows)
    return [scaled_sum(values, scale, xp), token, *(grads[k] for k in call.wanted)]


@torch.library.custom_op("amidmath::linear_gradients", mutates_args=())
def linear_gradients(
    arrays: list[torch.Tensor],
    factor: torch.Tensor,
    numbers: torch.Tensor | None,
    constants: list[float],
    form: str,
) -> list[torch.Tensor]:
    """The gradients of the sum of the values times a factor (N,); otherwise as :func:`linear`."""
    call: Call = restored(form, numbers, constants)
    _, grads = call.run(arrays, call.wanted, factor)
    return [grads[k] for k in call.wanted]


def _shapes(
    arrays: list[Array], numbers: Array | None, constants: list[float], form: str
) -> tuple[Call, Array, dict[str, Array]]:
    """The call, values and gradients of zero."""
    call: Call = outlined(form, numbers, constants)
    named = dict(zip(call.names, arrays, strict=True))
    library = TorchLibrary(call.autocast)
    values, grads = Chunks(call.form, named, call.wanted, None, library).start(named, call.wanted)
    return call, values, grads


@linear.register_fake
def _fake(
    arrays: list[torch.Tensor],
    scale: torch.Tensor | None,
    numbers: torch.Tensor | None,
    constants: list[float],
    form: str,
) -> list[torch.Tensor]:
    call, values, grads = _shapes(arrays, numbers, constants, form)
    token = token_of(arrays[0])
    if not call.reduced:
        return [values, token]
    return [values.new_empty(()), token, *(grads[k] for k in call.wanted)]


@linear_gradients.register_fake
def _fake_gradients(
    arrays: list[torch.Tensor],
    factor: torch.Tensor,
    numbers: torch.Tensor | None,
    constants: list[float],
    form: str,
) -> list[torch.Tensor]:
    call, _, grads = _shapes(arrays, numbers, constants, form)
    return [grads[k] for k in call.wanted]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Array]) -> None:
    arrays, scale, numbers, ctx.constants, ctx.form = inputs
    ctx.call = outlined(ctx.form, numbers, ctx.constants)
    ctx.dtypes = {k: a.dtype for k, a in zip(ctx.call.names, arrays, strict=True)}
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    beside = [a for a in (scale, numbers) if a is not None]
    ctx.has = (scale is not None, numbers is not None)
    ctx.save_for_backward(output[1], *beside, *(output[2:] if ctx.call.reduced else arrays))


def _backward(ctx: Any, cotangents: list[Array | None]) -> Any:
    call, factor = ctx.call, cotangents[0]
    none = (None,) * 4
    if factor is None:
        return ([None for _ in call.names], *none)
    token, *rest = ctx.saved_tensors
    scale, numbers = (rest.pop(0) if has else None for has in ctx.has)
    if call.reduced:
        if call.late and scale is not None:
            factor = factor * scale
        found = [grad.to(factor.dtype) * factor for grad in rest]
    else:
        found = linear_gradients(rest, factor, numbers, ctx.constants, ctx.form)
    typed = [g.to(ctx.dtypes[k]) for k, g in zip(call.wanted, found, strict=True)]
    if torch.is_grad_enabled():
        typed = list(refused(token, typed))
    wanted = dict(zip(call.wanted, typed, strict=True))
    return ([wanted.get(k) for k in call.names], *none)


linear.register_autograd(_backward, setup_context=_setup)
