"""torch: losses in chunks of rows under autograd, autocast, compile, with DTensor heads."""

from collections.abc import Sequence
from typing import Any

import array_api_compat.torch as xp
import torch

from amidmath.arrays.annotations import Array
from amidmath.arrays.checks import computing_dtype
from amidmath.arrays.dispatch import scaled_sum
from amidmath.backends.torch_backend import chunk_operators
from amidmath.backends.torch_backend.autograd import (
    Kept,
    along,
    moves,
    refused,
    token_of,
    transformed,
)
from amidmath.backends.torch_backend.chunk_call import TILE, Call, TorchLibrary, rows_of
from amidmath.backends.torch_backend.rows import at_hand, real, recording
from amidmath.pairs.chunked import ChunkedCall
from amidmath.pairs.chunks import Sums


def value(of: ChunkedCall) -> Array:
    """The reduced loss, or values in the shape of the positions, under autograd."""
    arrays = _plain(of)
    call = _call(of, arrays, tuple(name for name, array in arrays.items() if moves(array)))
    scale = _scale(of)
    if _recorded():
        result = chunk_operators.value(call, scale, tuple(arrays.values()))
    elif call.wanted:
        result = _Chunked.apply(call, scale, *arrays.values())[0]  # type: ignore[no-untyped-call]
    else:
        values, _ = call.run(tuple(arrays.values()), (), None)
        result = scaled_sum(values, scale, xp) if call.reduced else values
    return result if call.reduced else result.reshape(of.shape)


def _recorded() -> bool:
    """Whether operators are recorded, and the loop over the chunks would be unrolled."""
    return (torch.compiler.is_dynamo_compiling() or recording()) and not transformed()


def values_and_grads(of: ChunkedCall, wanted: Sequence[str]) -> Sums:
    """Values (N,), and the gradients of the loss by name; by a DTensor, of this rank's rows."""
    arrays = _plain(of)
    call = _call(of, arrays, tuple(wanted))
    scale = _scale(of)
    by_rows = None if call.late else rows_of(scale, arrays[of.form.numbers])
    several = tuple(arrays.values())
    if _recorded():
        values, grads = chunk_operators.values_and_grads(call, by_rows, several)
    else:
        values, grads = call.run(several, wanted, by_rows)
    factor = scale if call.late else None
    return values, {k: _finished(g, factor, of.arguments[k].dtype) for k, g in grads.items()}


_NAMES = {getattr(torch, n): n for n in ("float16", "bfloat16", "float32", "float64")}
"""What autocast takes."""


def _call(of: ChunkedCall, arrays: dict[str, Array], wanted: tuple[str, ...]) -> Call:
    hidden = arrays[of.form.numbers]
    kind = hidden.device.type
    autocast = _NAMES[torch.get_autocast_dtype(kind)] if torch.is_autocast_enabled(kind) else None
    late = TorchLibrary(autocast).multiplying_dtype(hidden) == torch.float16
    return Call(of.form, tuple(arrays), wanted, of.reduction != "none", autocast, late)


def _plain(of: ChunkedCall) -> dict[str, Array]:
    """The arrays as plain tensors; the teacher's must be constant."""
    arrays = {}
    for name, array in of.arrays.items():
        if name.startswith("teacher") and moves(array):
            raise ValueError(
                f"{name} must not require a gradient, since the teacher is constant here: pass "
                f"{name}.detach(), or turn requires_grad_(False) on the teacher"
            )
        arrays[name] = _gathered(name, array) if hasattr(array, "placements") else array
    return arrays


def _gathered(name: str, array: Any) -> Array:
    """A DTensor on every rank; its gradient is averaged over them, as by fully_shard."""
    from torch.distributed.tensor import Partial

    if ".head." not in name:
        raise TypeError(
            f"{name} must be a plain tensor, this rank's positions, got a DTensor: pass "
            f"{name}.to_local()"
        )
    size = array.device_mesh.size()
    whole = array.full_tensor(grad_placements=[Partial() for _ in array.placements])
    if size > 1 and whole.requires_grad:
        whole.register_hook(lambda grad: grad / size)
    return whole


def _scale(of: ChunkedCall) -> Array | None:
    """The scale as a tensor in the computing dtype."""
    if of.scale is None:
        return None
    pair = of.form.pair(of.arrays)
    dtype = computing_dtype(xp, *pair)
    if torch.compiler.is_dynamo_compiling():  # a product takes a number that is not known yet
        return (torch.ones((), dtype=dtype, device=pair[0].device) * of.scale).detach()
    return torch.as_tensor(of.scale, dtype=dtype, device=pair[0].device).detach()


def _finished(grad: Array, factor: Array | None, dtype: torch.dtype) -> Array:
    """The gradient times the factor, in place where it is wide enough, in its final dtype."""
    # Where looking costs nothing; elsewhere it would wait for the device.
    if factor is None or (at_hand(factor) and bool(factor == 1.0)):
        return grad.to(dtype)
    if not real(factor):
        return (grad.to(factor.dtype) * factor).to(dtype)
    if grad.dtype in (torch.float32, torch.float64):
        return grad.mul_(factor).to(dtype)
    # A factor of this dtype would be rounded.
    rows = max(1, TILE // max(1, grad[:1].numel()))
    for part in grad.split(rows):
        part.copy_(part.float() * factor)
    return grad.to(dtype)


class _Gradients(torch.autograd.Function):
    """Gradients of the sum of the values times a factor each; constants."""

    @staticmethod
    def forward(call: Call, factor: Array, *arrays: Array) -> Any:
        _, grads = call.run(arrays, call.wanted, factor)
        return tuple(grads[name] for name in call.wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """One after the other."""
        return _one_by_one(_Gradients, info.batch_size, in_dims, inputs)


class _Chunked(torch.autograd.Function):
    """Gradients of a sum are made with it, of single values in the backward pass."""

    @staticmethod
    def forward(call: Call, scale: Array | None, *arrays: Array) -> Any:
        token = token_of(arrays[0])
        if not call.reduced:
            return (call.run(arrays, (), None)[0], token)
        named = dict(zip(call.names, arrays, strict=True))
        values, grads = call.run(
            arrays, call.wanted, None if call.late else rows_of(scale, arrays[0])
        )
        if not call.late:
            grads = {k: g.to(named[k].dtype) for k, g in grads.items()}
        return (scaled_sum(values, scale, xp), token, *(grads[k] for k in call.wanted))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        ctx.call, ctx.scale, *arrays = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.kept = output[0].dtype, Kept(ctx, (output[1], *arrays))
        ctx.dtypes = {k: a.dtype for k, a in zip(ctx.call.names, arrays, strict=True)}
        # Not saved tensors: nobody else may hold them, so that they become .grad without a copy.
        ctx.grads = output[2:] if ctx.call.reduced else None

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> Any:
        call, factor = ctx.call, cotangents[0]
        if factor is None:
            return (None, None, *(None for _ in call.names))
        token, *arrays = ctx.kept.of(ctx)
        if call.reduced and ctx.scale is not None and (call.late or ctx.grads is None):
            factor = factor * ctx.scale
        if ctx.grads is not None:
            found, ctx.grads = ctx.grads, None
        else:
            # Single values, or once more through a graph that was retained.
            rows = factor.expand(arrays[0].shape[0])
            found = _Gradients.apply(call, rows, *arrays)  # type: ignore[no-untyped-call]
            factor = None
        grads, found = dict(zip(call.wanted, found, strict=True)), None
        with torch.no_grad():
            wanted = {k: _finished(grads.pop(k), factor, ctx.dtypes[k]) for k in call.wanted}
        if torch.is_grad_enabled():
            known = refused(token, tuple(wanted.values()))
            wanted = dict(zip(wanted, known, strict=True))
        return (None, None, *(wanted.get(k) for k in call.names))

    @staticmethod
    def jvp(ctx: Any, *tangents: Array | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        call, (token, *_) = ctx.call, ctx.kept.of(ctx)
        if not call.reduced:
            raise NotImplementedError(
                "forward mode is for the sum and the mean of a loss from hidden states, got "
                "reduction 'none': make the logits, and call the loss on them"
            )
        needs = tuple(name in call.wanted for name in call.names)
        in_order = (ctx.grads[call.wanted.index(k)] for k in call.names if k in call.wanted)
        moved = along(refused(token, tuple(in_order)), needs, tangents[2:], torch.sum, ctx.dtype)
        if call.late and ctx.scale is not None:
            moved = moved * ctx.scale
        return (moved, torch.zeros_like(token), *(None for _ in ctx.grads))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """One after the other."""
        return _one_by_one(_Chunked, info.batch_size, in_dims, inputs)


def _one_by_one(
    function: Any, count: int, dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> tuple[tuple[Array, ...], tuple[int, ...]]:
    """The results of a function along the axes of its inputs, stacked, as ``vmap`` has it."""
    found = []
    for j in range(count):
        pairs = zip(inputs, dims, strict=True)
        found.append(function.apply(*(a if dim is None else a.select(dim, j) for a, dim in pairs)))
    outputs = tuple(torch.stack(parts) for parts in zip(*found, strict=True))
    return outputs, (0,) * len(outputs)
