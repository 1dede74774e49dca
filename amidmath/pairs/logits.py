"""Logits of the student with logits of the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from amidmath.arrays import checks, dispatch
from amidmath.arrays.annotations import Array
from amidmath.pairs.call import Batch, Call, RowLoss
from amidmath.rows import positions
from amidmath.rows.forms import RowForm


@dataclass(frozen=True, eq=False)
class LogitsCall(Call):
    """A loss of two arrays of logits; see :class:`amidmath.pairs.call.Call`.

    Args:
        form: what is computed of the rows.
        operands: rows of both, of the knobs, and whether each is kept where there is a mask.
        backend: what computes.
        overwrite: whether the gradient may be written where the student's logits are.
    """

    form: RowForm
    operands: tuple[Array, ...]
    backend: str | None
    overwrite: bool

    def value(self) -> Array:
        """Differentiable by both and by the knobs."""
        if self.reduction == "none":
            values = dispatch.apply(self.form, -1, *self.operands, backend=self.backend)
            return self.xp.reshape(values, self.shape)
        return dispatch.total(self.form, self.scale, *self.operands, backend=self.backend)

    def partials(self, wanted: Sequence[str]) -> tuple[Array, dict[str, Array]]:
        """By the closed form."""
        return row_partials(
            self,
            self.form,
            ("student", "teacher", *self.knobs),
            self.operands,
            wanted,
            self.backend,
            self.overwrite,
        )


def row_partials(
    call: Call,
    form: Any,
    names: Sequence[str],
    operands: tuple[Array, ...],
    wanted: Sequence[str],
    backend: str | None,
    overwrite: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Values and gradients of a closed form by rows, whose first operands have the names."""
    from_scale: tuple[Array, ...] = ()
    if call.scale is not None:
        form = replace(form, scaled=True)
        from_scale = (positions.row_scale(call.scale, operands[:2], call.xp),)
    every = (*operands, *from_scale)
    needs = (*(name in wanted for name in names), *(False for _ in every[len(names) :]))
    values, grads = dispatch.value_and_partials(
        form, needs, *every, backend=backend, overwrite=overwrite
    )
    found = zip(names, grads, strict=False)
    return values, {name: grad for name, grad in found if grad is not None}


def logits_call(
    loss: RowLoss, student: Array, teacher: Array, batch: Batch, overwrite: bool
) -> LogitsCall:
    """The call of a loss with two arrays of logits."""
    xp, shape, rows = positions.logit_rows(student=student, teacher=teacher)
    beside = ("student", student)
    knobs = positions.knob_rows(loss.knobs, beside, shape, checks.computing_dtype(xp, *rows), xp)
    keep = positions.mask_rows(batch.mask, beside, shape, xp)
    scale = positions.scale_of(batch.reduction, batch.denominator, beside, rows, keep, xp)
    return LogitsCall(
        xp=xp,
        shape=shape,
        reduction=batch.reduction,
        scale=scale,
        inputs={"student": student, "teacher": teacher},
        knobs=loss.knobs,
        form=RowForm(loss.block, len(knobs), keep is not None),
        operands=(*rows, *knobs, *(() if keep is None else (keep,))),
        backend=batch.backend,
        overwrite=overwrite,
    )
