"""torch.compile: closed forms as operators in its graphs, whose Python it then need not trace.

The numbers of a form go as a tensor. A number of Python's would be a constant of the graph, and
another α another graph; as a tensor's, Dynamo makes a graph for all of them the second time it
meets another one.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from amidmath.arrays.annotations import Array, ClosedForm, Partials
from amidmath.backends.torch_backend.autograd import times, transformed
from amidmath.backends.torch_backend.operators import NAMED, marks_of, operator, partials_of
from amidmath.backends.torch_backend.rows import computed
from amidmath.rows import texts


def value_and_partials(
    form: ClosedForm,
    axis: int | None,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None,
) -> tuple[Array, Partials]:
    """Value and partials of the closed form, by the operator, or by operations that are traced."""
    if _traced(form):
        return computed(known(form), operands, needs, backend)
    text, numbers = texts.described(form, class_name, kept)
    found = operator(
        list(operands), numbers_of(numbers), [0.0], text, axis, marks_of(needs), backend or ""
    )
    return found[0], partials_of(found, needs)


def value(how: Any, operands: tuple[Array, ...]) -> Array:
    """The value, by the operator, or by operations that are traced."""
    if _traced(how.form):
        how = replace(how, form=known(how.form))
        # Views, of which Dynamo knows that they require a gradient, as torch.func has it.
        operands = tuple([a.view_as(a) for a in operands])
        found: Array = _Traced.apply(how, *operands)[0]  # type: ignore[no-untyped-call]
        return found
    return value_and_partials(how.form, how.axis, operands, how.needs, how.backend)[0]


def known(value: Any) -> Any:
    """A form for Dynamo to trace, which then needs to know its numbers: a graph for each."""
    if isinstance(value, float):
        return _number(f"{value}")
    if isinstance(value, tuple):
        return tuple([known(part) for part in value])
    if is_dataclass(value):
        cls: Any = type(value)
        return cls(*[known(getattr(value, field.name)) for field in fields(value)])
    return value


def _traced(form: ClosedForm) -> bool:
    """Whether Dynamo traces the form: inside ``torch.func``, and where ranks take part."""
    return transformed() or not isinstance(form, NAMED)


class _Traced(torch.autograd.Function):
    """A closed form that is differentiated once, in reverse mode; Dynamo traces it."""

    @staticmethod
    def forward(how: Any, *operands: Array) -> Any:
        value, partials = computed(how.form, operands, how.needs, how.backend)
        return (value, *(p for p in partials if p is not None))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        ctx.how = inputs[0]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # by the decorator
        ctx: Any, *cotangents: Array | None
    ) -> Any:
        cotangent = cotangents[0]
        if cotangent is None:
            return (None,) * (1 + len(ctx.how.needs))
        if ctx.how.axis is not None:
            cotangent = cotangent.unsqueeze(ctx.how.axis)
        given = iter(ctx.saved_tensors)
        grads = (times(next(given), cotangent) if need else None for need in ctx.how.needs)
        return (None, *grads)


def numbers_of(numbers: Sequence[float]) -> Array:
    """Numbers that may be symbols, as a tensor of a graph."""
    one = torch.ones((), dtype=torch.float64, device="cpu")
    # A product is an operation whose number Dynamo turns into a tensor; a tensor's item is none.
    return torch.stack([one * number for number in (*numbers, 0.0)])


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def class_name(cls: type) -> str:
    """As it is, instead of traced."""
    return texts.class_name(cls)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def kept(value: Any) -> str:
    """Likewise."""
    return texts.kept(value)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _number(text: str) -> float:
    """Likewise."""
    return float(text)
