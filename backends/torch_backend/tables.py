"""torch: values of pairs of rows, a chunk of pairs at a time, under autograd and in graphs.

A graph (``torch.compile`` and the like) has two operators for it, which are told the form and the
table by a text; see :mod:`amidmath.backends.torch_backend.operators`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat.torch as xp
import torch
from torch._subclasses.fake_tensor import FakeTensor

from amidmath.arrays.annotations import Array
from amidmath.arrays.dispatch import value_and_partials
from amidmath.backends.torch_backend.autograd import (
    Kept,
    moves,
    refused,
    times,
    token_of,
    transformed,
)
from amidmath.backends.torch_backend.operators import (
    RECORDED,
    marks_of,
    outlined,
    restored,
)
from amidmath.backends.torch_backend.rows import recording
from amidmath.rows import texts
from amidmath.rows.forms import RowForm
from amidmath.rows.tables import (
    Gradients,
    Table,
    chunks_pay,
    gradients_laid_out,
    in_boxes,
    values_laid_out,
)


@dataclass(frozen=True)
class How:
    """Everything of a call that is no tensor.

    Args:
        form: two rows to a value.
        table: how the rows are paired.
        needs: whether the gradients by x and by y are wanted.
        backend: "compiled", "reference" or None.
    """

    form: RowForm
    table: Table
    needs: tuple[bool, bool]
    backend: str | None

    def run(self, x: Array, y: Array, scale: Array | None) -> tuple[Array, list[Array]]:
        """Values, and the gradients that are wanted."""
        with torch.no_grad():
            value, grads = in_boxes(self.form, self.table, self.needs, x, y, scale, self.backend)
        return value, [g for g in grads if g is not None]


def _takes(table: Table, x: Array, y: Array) -> bool:
    """Whether pairs go by the chunk: not inside of ``torch.func`` or forward mode."""
    if transformed() or not chunks_pay(table, x):
        return False
    return all(type(a) in RECORDED for a in (x, y))


def values(form: RowForm, table: Table, x: Array, y: Array, backend: str | None) -> Array:
    """The values (P,), differentiated once."""
    if backend == "reference" or not _takes(table, x, y):
        return values_laid_out(form, table, x, y, backend)
    how = How(form, table, (moves(x), moves(y)), backend)
    if _recorded(x, y):
        found: Array = operator(x, y, *_told(how))[0]
        return found
    if not any(how.needs):
        return how.run(x, y, None)[0]
    applied: Array = _Values.apply(how, x, y)[0]  # type: ignore[no-untyped-call]
    return applied


def value_and_gradients(
    form: RowForm, table: Table, x: Array, y: Array, backend: str | None
) -> tuple[Array, Gradients]:
    """The values (P,), and the gradients of their sum, outside of autograd."""
    if not _takes(table, x, y):
        return gradients_laid_out(form, table, x, y, backend)
    how = How(form, table, (True, True), backend)
    with torch.no_grad():
        if _recorded(x, y):
            value, *grads = gradients(x, y, None, *_told(how))
        else:
            value, grads = how.run(x, y, None)
    return value, tuple(grads)


def _recorded(x: Array, y: Array) -> bool:
    """Whether operators are recorded, and the loop over the chunks would be unrolled."""
    if torch.compiler.is_dynamo_compiling() or recording():
        return True
    return any(type(a) is FakeTensor for a in (x, y))


class _Values(torch.autograd.Function):
    """Values, whose partial derivatives the backward pass makes, once it has the cotangents."""

    @staticmethod
    def forward(how: How, x: Array, y: Array) -> tuple[Array, Array]:
        plain = How(how.form, how.table, (False, False), how.backend)
        return plain.run(x, y, None)[0], token_of(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        ctx.how, x, y = inputs
        ctx.set_materialize_grads(False)
        ctx.kept = Kept(ctx, (output[1], x, y))

    @staticmethod
    def backward(ctx: Any, *cotangents: Array | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        cotangent = cotangents[0]
        if cotangent is None:
            return (None, None, None)
        token, x, y = ctx.kept.of(ctx)
        if cotangent.requires_grad and torch.is_grad_enabled():
            return (None, *_linear(ctx.how, x, y, token, cotangent))
        _, found = ctx.how.run(x.detach(), y.detach(), cotangent.detach())
        return (None, *_once(ctx.how.needs, found, token, cotangent))


def _linear(how: How, x: Array, y: Array, token: Array, cotangent: Array) -> Gradients:
    """Gradients that the cotangent is differentiated by, for which all pairs are laid out."""
    rows = tuple(how.table.laid_out(x.detach(), y.detach(), xp))
    _, partials = value_and_partials(how.form, how.needs, *rows, backend=how.backend)
    given = iter(refused(token, [p for p in partials if p is not None]))
    weighted = [times(next(given), cotangent[:, None]) if n else None for n in how.needs]
    return how.table.summed(weighted, (x.shape, y.shape), xp)


def _once(
    needs: Sequence[bool], grads: Sequence[Array], token: Array, cotangent: Array
) -> list[Array | None]:
    """Gradients by what needs them, which nobody differentiates again, by the cotangent either."""
    if torch.is_grad_enabled():
        grads = refused(token + cotangent[:0].to(token.dtype), grads)
    given = iter(grads)
    return [next(given) if need else None for need in needs]


def _told(how: How) -> tuple[Array | None, list[float], str, str, str]:
    """The call as the operators are told it."""
    what, marks = (how.form, how.table), marks_of(how.needs)
    if torch.compiler.is_dynamo_compiling():
        from amidmath.backends.torch_backend import dynamo as torch_dynamo

        text, found = texts.described(what, torch_dynamo.class_name, torch_dynamo.kept)
        return torch_dynamo.numbers_of(found), [0.0], text, marks, how.backend or ""
    text, found = texts.described(what)
    return None, [*found, 0.0], text, marks, how.backend or ""


def _restored(
    numbers: Array | None, constants: list[float], form: str, marks: str, backend: str
) -> How:
    needs = tuple(mark == "y" for mark in marks)
    made, table = restored(form, numbers, constants)
    return How(made, table, (needs[0], needs[1]), backend or None)


@torch.library.custom_op("amidmath::table", mutates_args=())
def operator(
    x: torch.Tensor,
    y: torch.Tensor,
    numbers: torch.Tensor | None,
    constants: list[float],
    form: str,
    marks: str,
    backend: str,
) -> list[torch.Tensor]:
    """The values (P,) and a token.

    Args:
        x: rows (A, V).
        y: rows (B, V).
        numbers: the form's, in float64 on the CPU; None where ``constants`` has them.
        constants: the form's numbers, where they are none of a graph's.
        form: the text of the form and the table.
        marks: "y" for each of x and y by which gradients are wanted, "n" for the others.
        backend: "compiled", "reference", or nothing.
    """
    how = _restored(numbers, constants, form, "nn", backend)
    return [how.run(x, y, None)[0], token_of(x)]


@torch.library.custom_op("amidmath::table_gradients", mutates_args=())
def gradients(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: torch.Tensor | None,
    numbers: torch.Tensor | None,
    constants: list[float],
    form: str,
    marks: str,
    backend: str,
) -> list[torch.Tensor]:
    """The values (P,), and the wanted gradients of their sum, each times a scale (P,)."""
    value, grads = _restored(numbers, constants, form, marks, backend).run(x, y, scale)
    return [value, *grads]


@operator.register_fake
def _fake(
    x: torch.Tensor,
    y: torch.Tensor,
    numbers: torch.Tensor | None,
    constants: list[float],
    form: str,
    marks: str,
    backend: str,
) -> list[torch.Tensor]:
    _, table = outlined(form, numbers, constants)
    return [x.new_empty((table.pairs,)), token_of(x)]


@gradients.register_fake
def _fake_gradients(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: torch.Tensor | None,
    numbers: torch.Tensor | None,
    constants: list[float],
    form: str,
    marks: str,
    backend: str,
) -> list[torch.Tensor]:
    _, table = outlined(form, numbers, constants)
    wanted = (a.new_empty(a.shape) for a, mark in zip((x, y), marks, strict=True) if mark == "y")
    return [x.new_empty((table.pairs,)), *wanted]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Array]) -> None:
    x, y, numbers, *ctx.told = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], x, y, *(() if numbers is None else (numbers,)))


def _backward(ctx: Any, cotangents: list[Array | None]) -> Any:
    cotangent, none = cotangents[0], (None,) * 5
    if cotangent is None:
        return (None, None, *none)
    token, x, y, *numbers = ctx.saved_tensors
    marks = ctx.told[2]
    _, *found = gradients(x, y, cotangent, numbers[0] if numbers else None, *ctx.told)
    return (*_once([mark == "y" for mark in marks], found, token, cotangent), *none)


operator.register_autograd(_backward, setup_context=_setup)
