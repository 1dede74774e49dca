"""The computation of a chunk: outputs of the student's head and a teacher's rows to losses."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from amidmath.arrays import dispatch
from amidmath.arrays.annotations import Array, Namespace
from amidmath.arrays.checks import computing_dtype
from amidmath.formulas.cross_entropy import cross_entropy
from amidmath.inputs.head import Projection
from amidmath.pairs.teachers import Teacher


@dataclass(frozen=True)
class ChunkForm:
    """The computation, without the arrays; hashable, JAX compiles once for each.

    Args:
        student: the student's head without its arrays.
        numbers: the name of the array that the student's rows are made of, its hidden states or
            its logits.
        teacher: what its rows are compared with, and by what loss.
        knobs: the names of the loss's knobs, in order.
        label_weight: what the cross-entropy counts.
        ignore_index: the label of rows without one.
        chunk_rows: how many rows make a chunk.
    """

    student: Projection
    numbers: str
    teacher: Teacher
    knobs: tuple[str, ...]
    label_weight: float
    ignore_index: int
    chunk_rows: int

    def pair(self, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
        """The arrays of both sides by whose dtypes is computed."""
        return arrays[self.numbers], arrays[self.teacher.numbers]

    def rows(
        self,
        outputs: Array,
        others: tuple[Array, ...],
        small: Mapping[str, Array],
        scale: Array | None,
        wanted: Collection[str],
        xp: Namespace,
    ) -> tuple[Array, dict[str, Array]]:
        """Values and gradients of some rows.

        Args:
            outputs: those (n, V) of the student's layer.
            others: the teacher's rows, as its source gives them.
            small: the rows of the knobs, of ``labels`` and of ``keep``, where there are any.
            scale: (n,), a factor of the gradients; None is 1.
            wanted: "outputs" for the gradient by the student's outputs, and names of knobs.
            xp: the namespace that computes.

        Returns:
            Values (n,) in the computing dtype, and what was wanted by name.
        """
        labels, teacher = small.get("labels"), self.teacher
        dtype = None
        if labels is not None or not (self.student.plain and teacher.takes_outputs(self.student)):
            dtype = computing_dtype(xp, outputs, others[0])
            outputs = xp.astype(outputs, dtype, copy=False)
        logits = self.student.logits(outputs, xp)
        compared = teacher.operands(logits, others, dtype, xp)
        extras = [a for a in (small.get("keep"), scale) if a is not None]
        form = teacher.form(len(self.knobs), "keep" in small, scale is not None)
        need = "outputs" in wanted
        constant = (False for _ in compared[1:])
        needs = (need, *constant, *(k in wanted for k in self.knobs), *(False for _ in extras))
        knobs = (small[k] for k in self.knobs)
        values, partials = dispatch.value_and_partials(form, needs, *compared, *knobs, *extras)
        by_knobs = zip(self.knobs, partials[len(compared) :], strict=False)
        grads = {k: p for k, p in by_knobs if p is not None}
        grad = partials[0]
        if grad is not None:
            grad = teacher.pulled_back(grad, logits, xp)
        if labels is not None:
            value, by_label = cross_entropy(logits, labels, self.ignore_index, need=need, xp=xp)
            values = values + self.label_weight * value
            if by_label is not None:
                weight = self.label_weight if scale is None else self.label_weight * scale[:, None]
                grad = grad + weight * by_label
        if grad is not None:
            grads["outputs"] = self.student.pulled_back(grad, outputs, xp)
        return values, grads
