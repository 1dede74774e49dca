"""Logits of the student with logits of the teacher, and calls that one closed form computes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from amidmath.arrays import checks, dispatch
from amidmath.arrays.annotations import Array
from amidmath.pairs.call import Batch, Call, RowLoss
from amidmath.rows import positions
from amidmath.rows.forms import RowForm


@dataclass(frozen=True, eq=False)
class RowCall(Call):
    """A loss by a closed form of rows; see :class:`amidmath.pairs.call.Call`.

    Args:
        form: a :class:`amidmath.rows.forms.RowForm`, or a form that is one but for its operands.
        names: those of the first operands, by which gradients are asked for.
        operands: rows of both sides and of the knobs, and whether each is kept where there is a
            mask.
        backend: what computes.
        overwrite: whether the gradient may be written where the student's logits are.
    """

    form: Any
    names: tuple[str, ...]
    operands: tuple[Array, ...]
    backend: str | None
    overwrite: bool = False

    def value(self) -> Array:
        """Differentiable by what the form has derivatives for."""
        if self.reduction == "none":
            values = dispatch.apply(self.form, -1, *self.operands, backend=self.backend)
            return self.xp.reshape(values, self.shape)
        return dispatch.total(self.form, self.scale, *self.operands, backend=self.backend)

    def partials(self, wanted: Sequence[str]) -> tuple[Array, dict[str, Array]]:
        """By the closed form."""
        form, operands = self.form, self.operands
        if self.scale is not None:
            form = replace(form, scaled=True)
            operands = (*operands, positions.row_scale(self.scale, operands[:2], self.xp))
        needs = tuple(name in wanted for name in self.names)
        needs = (*needs, *(False for _ in operands[len(needs) :]))
        values, grads = dispatch.value_and_partials(
            form, needs, *operands, backend=self.backend, overwrite=self.overwrite
        )
        found = zip(self.names, grads, strict=False)
        return values, {name: grad for name, grad in found if grad is not None}


def logits_call(
    loss: RowLoss, student: Array, teacher: Array, batch: Batch, overwrite: bool
) -> RowCall:
    """The call of a loss with two arrays of logits."""
    xp, shape, rows = positions.logit_rows(student=student, teacher=teacher)
    beside = ("student", student)
    knobs = positions.knob_rows(loss.knobs, beside, shape, checks.computing_dtype(xp, *rows), xp)
    keep = positions.mask_rows(batch.mask, beside, shape, xp)
    scale = positions.scale_of(batch.reduction, batch.denominator, beside, rows, keep, xp)
    return RowCall(
        xp=xp,
        shape=shape,
        reduction=batch.reduction,
        scale=scale,
        inputs={"student": student, "teacher": teacher},
        knobs=loss.knobs,
        form=RowForm(loss.block, len(knobs), keep is not None),
        names=("student", "teacher", *loss.knobs),
        operands=(*rows, *knobs, *(() if keep is None else (keep,))),
        backend=batch.backend,
        overwrite=overwrite,
    )
