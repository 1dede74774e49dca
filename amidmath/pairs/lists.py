"""Logits of the student with a teacher's top-k lists."""

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array
from amidmath.inputs.top_k import TopK, checked
from amidmath.pairs.call import Batch, RowLoss
from amidmath.pairs.list_rows import SparseForm
from amidmath.pairs.logits import RowCall
from amidmath.rows import positions


def lists_call(loss: RowLoss, student: Array, teacher: TopK, batch: Batch) -> RowCall:
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
    return RowCall(
        xp=xp,
        shape=shape,
        reduction=batch.reduction,
        scale=positions.scale_of(batch.reduction, batch.denominator, beside, pair, keep, xp),
        inputs={"student": student},
        knobs=loss.knobs,
        form=SparseForm(block, temperature, len(knobs), masked=keep is not None),
        names=("student", "teacher.log_probs", "teacher.indices", *loss.knobs),
        operands=(rows, *top, *knobs, *(() if keep is None else (keep,))),
        backend=batch.backend,
    )
