"""What a loss from hidden states computes of the outputs of both heads' layers, by rows."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from amidmath import _dispatch
from amidmath._buckets import fold, unfold
from amidmath._checks import computing_dtype
from amidmath._cross_entropy import cross_entropy
from amidmath._head import Projection
from amidmath._rows import Block, RowForm
from amidmath._typing import Array, Namespace


@dataclass(frozen=True)
class LinearForm:
    """What is computed, without the arrays; hashable, JAX compiles once for each.

    Args:
        block: the loss by rows of logits.
        knobs: the names of its knobs, in order.
        student: the student's head without its arrays.
        teacher: the teacher's.
        label_weight: what the cross-entropy counts.
        ignore_index: the label of rows without one.
        chunk_rows: how many rows make a chunk.
    """

    block: Block
    knobs: tuple[str, ...]
    student: Projection
    teacher: Projection
    label_weight: float
    ignore_index: int
    chunk_rows: int

    def rows(
        self,
        student: Array,
        teacher: Array,
        small: Mapping[str, Array],
        scale: Array | None,
        wanted: Collection[str],
        xp: Namespace,
    ) -> tuple[Array, dict[str, Array]]:
        """Values and gradients of some rows.

        Args:
            student: the outputs (n, V) of the student's layer.
            teacher: those of the teacher's.
            small: the rows of the knobs, of ``labels`` and of ``keep``, where there are any.
            scale: (n,), a factor of the gradients; None is 1.
            wanted: "outputs" for the gradient by the student's outputs, and names of knobs.
            xp: the namespace that computes.

        Returns:
            Values (n,) in the computing dtype, and what was wanted by name.
        """
        common = min(self.student.vocabulary, self.teacher.vocabulary)
        bucketed = self.student.vocabulary != self.teacher.vocabulary
        labels = small.get("labels")
        outputs = student
        if bucketed or labels is not None or not (self.student.plain and self.teacher.plain):
            dtype = computing_dtype(xp, student, teacher)
            outputs, teacher = (xp.astype(a, dtype, copy=False) for a in (student, teacher))
        student, teacher = self.student.logits(outputs, xp), self.teacher.logits(teacher, xp)
        pair = (student, teacher)
        if bucketed:
            pair = (fold(student, common, xp), fold(teacher, common, xp))
        extras = [a for a in (small.get("keep"), scale) if a is not None]
        form = RowForm(self.block, len(self.knobs), "keep" in small, scale is not None)
        need = "outputs" in wanted
        needs = (need, False, *(k in wanted for k in self.knobs), *(False for _ in extras))
        knobs = (small[k] for k in self.knobs)
        values, partials = _dispatch.value_and_partials(form, needs, *pair, *knobs, *extras)
        grads = {k: p for k, p in zip(self.knobs, partials[2:], strict=False) if p is not None}
        grad = partials[0]
        if grad is not None and bucketed:
            grad = unfold(grad, student, common, xp)
        if labels is not None:
            value, by_label = cross_entropy(student, labels, self.ignore_index, need=need, xp=xp)
            values = values + self.label_weight * value
            if by_label is not None:
                weight = self.label_weight if scale is None else self.label_weight * scale[:, None]
                grad = grad + weight * by_label
        if grad is not None:
            grads["outputs"] = self.student.pulled_back(grad, outputs, xp)
        return values, grads
