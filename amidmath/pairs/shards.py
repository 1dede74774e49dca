"""Shards of the student's logits with shards of the teacher's, of one vocabulary over ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from amidmath.arrays import checks, dispatch, libraries
from amidmath.arrays.adapters import adapter_of
from amidmath.arrays.annotations import Array, Namespace
from amidmath.inputs.shard import Shard
from amidmath.pairs.call import Batch, Call, RowLoss
from amidmath.pairs.labels import label_rows
from amidmath.pairs.sharded import Labels, Ranks, ShardedRows
from amidmath.rows import positions
from amidmath.rows.forms import RowForm


@dataclass(frozen=True, eq=False)
class ShardsCall(Call):
    """A loss of two shards; see :class:`amidmath.pairs.call.Call`.

    Args:
        form: what is computed of the rows.
        operands: rows of both, of the knobs, and whether each is kept where there is a mask.
        labelled: the labels, the first token here and the size of the vocabulary, where there are
            labels.
    """

    form: ShardedRows
    operands: tuple[Array, ...]
    labelled: tuple[Array, ...]

    def value(self) -> Array:
        """Differentiable by the parts here, and by the knobs."""
        values = self.form.ranks.values(self.form, (*self.operands, *self.labelled))
        if self.reduction == "none":
            return self.xp.reshape(values, self.shape)
        return dispatch.scaled_sum(values, self.scale, self.xp)

    def partials(self, wanted: Sequence[str]) -> tuple[Array, dict[str, Array]]:
        """By the closed form; the backward pass does not communicate."""
        form, operands = self.form, self.operands
        if self.scale is not None:
            form = replace(form, rows=replace(form.rows, scaled=True))
            operands = (*operands, positions.row_scale(self.scale, operands[:2], self.xp))
        names = ("student.logits", "teacher.logits", *self.knobs)
        every = (*operands, *self.labelled)
        needs = (*(name in wanted for name in names), *(False for _ in every[len(names) :]))
        values, grads = form.ranks.partials(form, every, needs)
        found = zip(names, grads, strict=False)
        return values, {name: grad for name, grad in found if grad is not None}

    def shaped(self, leaf: str, grad: Array) -> Array:
        """A gradient by logits as what they were, a DTensor's as one."""
        if leaf in self.knobs:
            return super().shaped(leaf, grad)
        given = self.arguments[leaf]
        grad = self.xp.reshape(grad, (*self.shape, grad.shape[-1]))
        return self.form.ranks.whole(grad, given)


def shards_call(loss: RowLoss, student: Shard, teacher: Shard, batch: Batch) -> ShardsCall:
    """The call of a loss with two shards."""
    ranks = _ranks(student, teacher)
    mask = batch.mask
    given = {"student.logits": student.logits, "teacher.logits": teacher.logits}
    checks.namespace(**given, **({} if mask is None else {"mask": mask}))
    local = {name: ranks.shard(name, array) for name, array in given.items()}
    xp, shape, rows = positions.logit_rows(**local)
    beside = ("student.logits", local["student.logits"])
    if mask is not None:
        mask = ranks.replica("mask", mask)
    knobs = positions.knob_rows(loss.knobs, beside, shape, checks.computing_dtype(xp, *rows), xp)
    keep = positions.mask_rows(mask, beside, shape, xp)
    labels: Labels | None = None
    labelled: tuple[Array, ...] = ()
    if batch.labels is not None:
        first, vocabulary = _place(rows[0], ranks, xp)
        whole = ranks.replica("labels", batch.labels)
        found = label_rows(whole, beside, keep, vocabulary, batch.ignore_index, xp)
        labels = Labels(batch.label_weight, batch.ignore_index)
        nothing = xp.zeros_like(found)
        labelled = (found, nothing + first, nothing + vocabulary)
    return ShardsCall(
        xp=xp,
        shape=shape,
        reduction=batch.reduction,
        scale=positions.scale_of(batch.reduction, batch.denominator, beside, rows, keep, xp),
        inputs={"student": student, "teacher": teacher},
        knobs=loss.knobs,
        form=ShardedRows(
            RowForm(loss.block, len(knobs), keep is not None),
            ranks,
            student.rows_per_chunk,
            labels,
        ),
        operands=(*rows, *knobs, *(() if keep is None else (keep,))),
        labelled=labelled,
    )


def _ranks(student: Shard, teacher: Shard) -> Ranks:
    """The ranks that both sides lie on."""
    for field in ("ranks", "rows_per_chunk"):
        here, there = getattr(student, field), getattr(teacher, field)
        if here != there:
            raise ValueError(
                f"student.{field} and teacher.{field} must be the same, got {here!r} and {there!r}"
            )
    ranks: Ranks = adapter_of(student.logits).ranks(student.ranks, student.logits)
    return ranks


def _place(logits: Array, ranks: Ranks, xp: Namespace) -> tuple[Any, Any]:
    """The token of the first entry here, and the size of the whole vocabulary."""
    device = libraries.device(logits)
    here = xp.arange(1, device=device) * 0 + logits.shape[-1]
    sizes = ranks.gathered(here)[:, 0]
    before = xp.arange(sizes.shape[0], device=device) < ranks.index
    # A sum over the ranks, which JAX knows to be the same on all of them.
    return xp.sum(xp.where(before, sizes, 0)), ranks.total(here)[0]
