"""Logits of the student with a teacher's top-k lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amidmath.arrays import checks, dispatch
from amidmath.arrays.annotations import Array
from amidmath.inputs.top_k import TopK, checked
from amidmath.pairs.call import Batch, Call, RowLoss
from amidmath.pairs.list_rows import SparseForm
from amidmath.pairs.logits import row_partials
from amidmath.rows import positions


@dataclass(frozen=True, eq=False)
class ListsCall(Call):
    """A loss of logits and top-k lists; see :class:`amidmath.pairs.call.Call`.

    Args:
        form: what is computed of the rows.
        operands: rows of the student, of the lists and of the knobs, and whether each is kept
            where there is a mask.
        backend: None or "reference".
    """

    form: SparseForm
    operands: tuple[Array, ...]
    backend: str | None

    def value(self) -> Array:
        """Differentiable by the student's logits and by the knobs."""
        if self.reduction == "none":
            values = dispatch.apply(self.form, -1, *self.operands, backend=self.backend)
            return self.xp.reshape(values, self.shape)
        # Its form is one of rows but for the operands, which is all that is asked of it.
        form: Any = self.form
        return dispatch.total(form, self.scale, *self.operands, backend=self.backend)

    def partials(self, wanted: Sequence[str]) -> tuple[Array, dict[str, Array]]:
        """By the closed form."""
        names = ("student", "teacher.log_probs", "teacher.indices", *self.knobs)
        return row_partials(self, self.form, names, self.operands, wanted, self.backend)


def lists_call(loss: RowLoss, student: Array, teacher: TopK, batch: Batch) -> ListsCall:
    """The call of a loss with the student's logits and a teacher's lists."""
    if batch.backend == "compiled":
        raise ValueError(
            "backend 'compiled' computes losses of whole rows, not of an am.TopK; leave it out"
        )
    temperature, block = loss.untempered()
    xp, shape, (rows,) = positions.logit_rows(student=student)
    beside = ("student", student)
    keep = positions.mask_rows(batch.mask, beside, shape, xp)
    top = checked("teacher", teacher, beside, int(rows.shape[-1]), keep, xp)
    pair = (rows, top.log_probs)
    knobs = positions.knob_rows(loss.knobs, beside, shape, checks.computing_dtype(xp, *pair), xp)
    return ListsCall(
        xp=xp,
        shape=shape,
        reduction=batch.reduction,
        scale=positions.scale_of(batch.reduction, batch.denominator, beside, pair, keep, xp),
        inputs={"student": student},
        knobs=loss.knobs,
        form=SparseForm(block, temperature, len(knobs), masked=keep is not None),
        operands=(rows, *top, *knobs, *(() if keep is None else (keep,))),
        backend=batch.backend,
    )
