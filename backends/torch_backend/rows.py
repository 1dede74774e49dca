"""torch: rows by a kernel or by the array core, outside of autograd."""

from functools import partial
from typing import TYPE_CHECKING

import array_api_compat.torch as xp
import torch
from torch._C._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_level,
)
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch._subclasses.fake_tensor import is_fake

from amidmath.arrays.annotations import Array, ClosedForm, Partials
from amidmath.backends import choice
from amidmath.backends.torch_backend.autograd import tangent
from amidmath.rows.forms import RowForm

if TYPE_CHECKING:
    from amidmath.backends.llvm_kernels import kernels as llvm_kernels


def computed(
    form: ClosedForm,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None,
    overwrite: bool = False,
) -> tuple[Array, Partials]:
    """The value and the partial derivatives that ``needs`` marks."""
    first = operands[0]
    kernel = _KERNELS.get(first.device.type)
    if kernel is not None and all(plain(a) for a in operands):
        compiler, run_rows = kernel
        run_rows = partial(run_rows, overwrite=overwrite)
        result = choice.compiled(compiler, run_rows, form, operands, needs, backend)
        if result is not None:
            _note_overwritten(first, result[1][0])
            return result
    elif backend == "compiled":
        raise ValueError(
            "backend 'compiled' computes plain tensors on the CPU and CUDA, outside of compile "
            f"and torch.func; got a {type(first).__name__} on {first.device}"
        )
    return form(*_batched(operands, needs), needs=needs, xp=xp)


def _batched(operands: tuple[Array, ...], needs: tuple[bool, ...]) -> tuple[Array, ...]:
    """The operands; those of which ``vmap`` has one derivative a batch, as batches themselves.

    So is then the memory for the derivatives, which a chunk of rows after the other is put into.
    """
    if torch.compiler.is_dynamo_compiling() or not any(is_batchedtensor(a) for a in operands):
        return operands
    levels = [_levels(a) for a in operands]
    every = set().union(*levels)
    nothing = [torch.zeros_like(a.reshape(-1)[:1]) for a in operands]
    return tuple(
        sum(nothing, a).to(a.dtype) if need and own != every else a
        for a, need, own in zip(operands, needs, levels, strict=True)
    )


def _levels(array: Array) -> set[int]:
    """The levels of ``vmap`` that go over it."""
    found = set()
    while is_functorch_wrapped_tensor(array):
        if is_batchedtensor(array):
            found.add(maybe_get_level(array))
        array = get_unwrapped(array)
    return found


def _on_cuda(
    form: RowForm, operands: tuple[Array, ...], needs: tuple[bool, ...], overwrite: bool
) -> tuple[Array, Partials]:
    from amidmath.backends.triton_kernels import kernels as triton_kernels

    return triton_kernels.run(form, operands, needs, overwrite)


def _on_cpu(
    form: RowForm, operands: tuple[Array, ...], needs: tuple[bool, ...], overwrite: bool
) -> tuple[Array, Partials]:
    from amidmath.backends.llvm_kernels import kernels as llvm_kernels

    rows, vocabulary = operands[0].shape
    held = [side_by_side(a.detach()) for a in operands]  # copies live until the kernel has run
    double = torch.float64 in (operands[0].dtype, operands[1].dtype)

    def empty(which: int | None) -> tuple[Array, "llvm_kernels.View"]:
        if which is None:
            dtype = torch.float64 if double else torch.float32
            made = torch.empty(rows, dtype=dtype, device="cpu")
        else:
            like = operands[which]
            made = torch.empty(like.shape, dtype=like.dtype, device="cpu")
        return made, _view(made)

    views = [_view(a) for a in held]
    over = (held[0], views[0]) if overwrite and writable(operands[0]) else None
    return llvm_kernels.run(
        form, needs, views, rows, vocabulary, empty, torch.get_num_threads(), over
    )


def _note_overwritten(first: Array, grad: Array | None) -> None:
    """Let autograd know, if the gradient lies where the operand was, which it may have saved."""
    if grad is not None and grad.data_ptr() == first.data_ptr() and not first.is_inference():
        torch.autograd.graph.increment_version(first)


_KERNELS = {"cpu": (choice.CPU, _on_cpu), "cuda": (choice.TRITON, _on_cuda)}
"""By the type of device."""


def side_by_side(a: Array) -> Array:
    """The tensor, or a copy where the numbers of a row do not lie side by side."""
    return a if _together(a) else a.contiguous()


def writable(a: Array) -> bool:
    """Whether each number of rows that lie side by side has a place of its own."""
    return _together(a) and bool(a.shape[0] == 1 or a.stride(0) >= a.shape[1])


def _together(a: Array) -> bool:
    return bool(a.ndim == 1 or a.shape[-1] == 1 or a.stride(-1) == 1)


def _view(a: Array) -> "llvm_kernels.View":
    from amidmath.backends.llvm_kernels import kernels as llvm_kernels

    name = str(a.dtype).removeprefix("torch.")
    return llvm_kernels.View(a.data_ptr(), a.stride(0) * a.element_size(), name)


def at_hand(array: Array) -> bool:
    """Whether the values can be read: on the CPU, and neither compiled, faked nor batched."""
    return array.device.type == "cpu" and real(array)


def recording() -> bool:
    """Whether something looks at each operator that runs, and may record it."""
    modes: int = torch._C._len_torch_dispatch_stack()
    before: int = _len_torch_dispatch_stack_pre_dispatch()  # type: ignore[no-untyped-call]
    return modes > 0 or before > 0 or tracing()


def tracing() -> bool:
    """Whether ``torch.jit.trace`` does."""
    return torch._C._get_tracing_state() is not None


def real(array: Array) -> bool:
    """Whether there are values in memory: neither compiled, recorded, faked nor batched."""
    if torch.compiler.is_dynamo_compiling() or recording():
        return False
    return not (is_fake(array) or is_batchedtensor(array) or is_functorch_wrapped_tensor(array))


def plain(array: Array) -> bool:
    """Whether a kernel may read it: a tensor of torch's own, with values, and no tangent."""
    if type(array) not in (torch.Tensor, torch.nn.Parameter) or not real(array):
        return False
    return tangent(array) is None
