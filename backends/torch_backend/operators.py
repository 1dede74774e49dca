"""torch: closed forms as operators of its own, for whatever records operators instead of running.

``torch.compile``, ``torch.export``, ``make_fx``, ``torch.jit.trace`` and fake tensors see one
operator, ``amidmath::value_and_partials``, whose arguments are tensors, words and numbers. It runs
what the call would have run: a kernel, or the array core.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import array_api_compat.torch as xp
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from amidmath.arrays.annotations import Array, ClosedForm, Partials
from amidmath.arrays.checks import computing_dtype
from amidmath.backends.torch_backend.autograd import refused, times, token_of
from amidmath.backends.torch_backend.rows import computed, recording
from amidmath.formulas.means import LogTotal, Mean, Mixture
from amidmath.pairs.list_rows import SparseForm
from amidmath.rows import texts
from amidmath.rows.forms import RowForm

NAMED = (RowForm, SparseForm, Mean, Mixture, LogTotal)
"""Forms of which the operator knows the shapes; rows of shards compute as they always do."""

RECORDED = (torch.Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)


def recorded(form: ClosedForm, operands: Sequence[Array]) -> bool:
    """Whether these go to an operator: plain, fake or functional tensors that are looked at."""
    if torch.compiler.is_dynamo_compiling() or not isinstance(form, NAMED):
        return False
    if not (recording() or any(type(a) is FakeTensor for a in operands)):
        return False
    return all(type(a) in RECORDED for a in operands)


def among_fakes(operands: Sequence[Array]) -> AbstractContextManager[Any]:
    """In which tensors are made that go together with fake ones."""
    for operand in operands if not torch.compiler.is_dynamo_compiling() else ():
        if type(operand) is FakeTensor:
            mode: AbstractContextManager[Any] = operand.fake_mode
            return mode
    return nullcontext()


def value_and_partials(
    form: ClosedForm,
    axis: int | None,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None,
) -> tuple[Array, Partials]:
    """Value and partials of the closed form, by the operator; the value is differentiated once."""
    text, numbers = texts.described(form)
    constants = [*numbers, 0.0]  # torch loses count of the arguments where a list is empty
    found = operator(list(operands), None, constants, text, axis, marks_of(needs), backend or "")
    return found[0], partials_of(found, needs)


def marks_of(needs: Sequence[bool]) -> str:
    """A word for ``needs``, since ``torch.jit.trace`` takes no list of them."""
    return "".join("y" if need else "n" for need in needs)


def restored(text: str, numbers: Array | None, constants: list[float]) -> Any:
    """The form that an operator was told of, to compute it."""
    return texts.restored(text, constants if numbers is None else numbers.tolist())


def outlined(text: str, numbers: Array | None, constants: list[float]) -> Any:
    """The same for its shapes alone: numbers in a graph's tensor are not looked at."""
    return texts.restored(text, constants if numbers is None else [0.5] * numbers.shape[0])


def _marked(marks: str) -> tuple[bool, ...]:
    return tuple(mark == "y" for mark in marks)


def partials_of(found: Sequence[Array], needs: Sequence[bool]) -> Partials:
    """The operator's partial derivatives, an operand each."""
    given = iter(found[2:])
    return tuple(next(given) if need else None for need in needs)


@torch.library.custom_op("amidmath::value_and_partials", mutates_args=())
def operator(
    operands: list[torch.Tensor],
    numbers: torch.Tensor | None,
    constants: list[float],
    form: str,
    axis: int | None,
    marks: str,
    backend: str,
) -> list[torch.Tensor]:
    """The value, a token, and the partial derivatives that are wanted.

    Args:
        operands: those of the form.
        numbers: the form's, in float64 on the CPU; None where ``constants`` has them.
        constants: the form's numbers, where they are none of a graph's.
        form: its text, see :mod:`amidmath.rows.texts`.
        axis: over which the tangent is summed, None for no sum.
        marks: "y" for each operand whose partial derivative is wanted, "n" for the others.
        backend: "reference", "compiled", or nothing.
    """
    made, needs = restored(form, numbers, constants), _marked(marks)
    with torch.no_grad():
        value, partials = computed(made, tuple(operands), needs, backend or None)
    token = token_of(operands[0])
    given = (p for p, need in zip(partials, needs, strict=True) if need and p is not None)
    return _apart([value, token, *given], operands)


def _apart(outputs: list[Array], operands: Sequence[Array]) -> list[Array]:
    """The outputs in order in memory of their own, as the shapes of :func:`_fake` promise."""
    taken = {a.untyped_storage().data_ptr() for a in operands}
    found = []
    for output in outputs:
        plain = output.contiguous()
        place = plain.untyped_storage().data_ptr()
        if place in taken and plain.numel():
            plain = plain.clone(memory_format=torch.contiguous_format)
            place = plain.untyped_storage().data_ptr()
        taken.add(place)
        found.append(plain)
    return found


@operator.register_fake
def _fake(
    operands: list[torch.Tensor],
    numbers: torch.Tensor | None,
    constants: list[float],
    form: str,
    axis: int | None,
    marks: str,
    backend: str,
) -> list[torch.Tensor]:
    made, needs = outlined(form, numbers, constants), _marked(marks)
    first = operands[0]
    if isinstance(made, (RowForm, SparseForm)):
        dtype = computing_dtype(xp, *operands[:2])
        value = first.new_empty((first.shape[0],), dtype=dtype)
    else:
        value = made(*operands, needs=(False,) * len(operands), xp=xp)[0]
    partials = (a.new_empty(a.shape) for a, need in zip(operands, needs, strict=True) if need)
    return [value, token_of(first), *partials]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Array]) -> None:
    _, _, _, _, ctx.axis, marks, _ = inputs
    ctx.needs = _marked(marks)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, cotangents: list[Array | None]) -> Any:
    cotangent = cotangents[0]
    none = (None,) * 6
    if cotangent is None:
        return ([None for _ in ctx.needs], *none)
    token, *partials = ctx.saved_tensors
    if torch.is_grad_enabled():
        partials = refused(token, partials)
    if ctx.axis is not None:
        cotangent = cotangent.unsqueeze(ctx.axis)
    given = iter(partials)
    return ([times(next(given), cotangent) if need else None for need in ctx.needs], *none)


operator.register_autograd(_backward, setup_context=_setup)


@operator.register_vmap
def _vmap(
    info: Any,
    dims: tuple[Any, ...],
    operands: list[Array],
    numbers: Array | None,
    constants: list[float],
    form: str,
    axis: int | None,
    marks: str,
    backend: str,
) -> tuple[list[Array], list[int]]:
    """Batches of rows are rows; other forms take more axes in front."""
    size = info.batch_size
    front = [
        a.expand(size, *a.shape) if dim is None else a.movedim(dim, 0)
        for a, dim in zip(operands, dims[0], strict=True)
    ]
    made = outlined(form, numbers, constants)
    by_rows = isinstance(made, (RowForm, SparseForm))
    if by_rows:
        front = [a.reshape(-1, *a.shape[2:]) for a in front]
    elif axis is not None:
        axis += 1
        form, _ = texts.described(replace(made, axis=axis))
    found = operator(front, numbers, constants, form, axis, marks, backend)
    token = found.pop(1)
    if by_rows:
        found = [a.reshape(size, -1, *a.shape[1:]) for a in found]
    found.insert(1, token.expand(size, 0))
    return found, [0] * len(found)
