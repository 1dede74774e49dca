"""The teacher of a loss in chunks: a layer that is multiplied out, its logits, or top-k lists.

A *teacher* has no arrays: it says how rows of the student's logits are compared with its own. It
is hashable, as JAX compiles once for each. Its arrays, by name, are a *source* of its rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from amidmath.arrays.annotations import Array, ClosedForm, Namespace
from amidmath.formulas.buckets import fold, unfold
from amidmath.inputs.head import Projection
from amidmath.pairs.layers import Layer, Library, Rows, side_of
from amidmath.pairs.list_rows import SparseForm
from amidmath.rows.forms import Block, RowForm

LOG_PROBS, INDICES = "teacher.log_probs", "teacher.indices"
"""The names of the arrays of lists."""


class Source(Protocol):
    """Where a teacher's rows come from."""

    def rows(self, at: Any, keep: Array | None) -> tuple[Array, ...]:
        """Those at a slice, or at indices; of rows that are not kept anything but a NaN."""
        ...


class Teacher(Protocol):
    """How rows are compared with a teacher's."""

    @property
    def numbers(self) -> str:
        """Which array it is whose dtype counts beside that of the student's hidden states."""
        ...

    @property
    def width(self) -> int:
        """How many numbers a row is multiplied out to."""
        ...

    def source(self, arrays: Mapping[str, Array], library: Library, step: int) -> Source:
        """Its rows, up to ``step`` at a time."""
        ...

    def takes_outputs(self, student: Projection) -> bool:
        """Whether outputs of layers do as they are, in their own dtypes, if they do here."""
        ...

    def operands(
        self, logits: Array, rows: tuple[Array, ...], dtype: Any, xp: Namespace
    ) -> tuple[Array, ...]:
        """The operands that the closed form compares, the student's first.

        Args:
            logits: the student's, (n, V).
            rows: of the source.
            dtype: to compute in; None for each in its own.
            xp: the namespace that computes.
        """
        ...

    def form(self, knobs: int, masked: bool, scaled: bool) -> ClosedForm:
        """The closed form; its arguments are those of :class:`amidmath.rows.forms.RowForm`."""
        ...

    def pulled_back(self, grad: Array, logits: Array, xp: Namespace) -> Array:
        """The gradient by the student's logits, from that by the first operand."""
        ...


@dataclass(frozen=True)
class DenseTeacher:
    """A teacher by whole rows; where vocabularies differ, all other tokens are one.

    Args:
        block: the loss by rows of logits.
        projection: the teacher's head without its arrays.
        numbers: the name of the array that its rows are made of.
    """

    block: Block
    projection: Projection
    numbers: str

    @property
    def width(self) -> int:
        """One for every token."""
        return self.projection.vocabulary

    def source(self, arrays: Mapping[str, Array], library: Library, step: int) -> Source:
        """A layer, or rows."""
        return _WholeRows(side_of("teacher", self.projection, arrays, library, step))

    def takes_outputs(self, student: Projection) -> bool:
        """Where both are logits over the same tokens."""
        return self.projection.plain and not self._bucketed(student.vocabulary)

    def operands(
        self, logits: Array, rows: tuple[Array, ...], dtype: Any, xp: Namespace
    ) -> tuple[Array, ...]:
        """Two rows of logits."""
        (outputs,) = rows
        if dtype is not None:
            outputs = xp.astype(outputs, dtype, copy=False)
        pair = (logits, self.projection.logits(outputs, xp))
        if not self._bucketed(logits.shape[-1]):
            return pair
        return tuple(fold(side, self._common(logits), xp) for side in pair)

    def form(self, knobs: int, masked: bool, scaled: bool) -> ClosedForm:
        """That of whole rows."""
        return RowForm(self.block, knobs, masked, scaled)

    def pulled_back(self, grad: Array, logits: Array, xp: Namespace) -> Array:
        """From one token to all that it stands for."""
        if not self._bucketed(logits.shape[-1]):
            return grad
        return unfold(grad, logits, self._common(logits), xp)

    def _bucketed(self, vocabulary: int) -> bool:
        return vocabulary != self.projection.vocabulary

    def _common(self, logits: Array) -> int:
        return min(int(logits.shape[-1]), self.projection.vocabulary)


@dataclass(frozen=True)
class _WholeRows:
    side: Layer | Rows

    def rows(self, at: Any, keep: Array | None) -> tuple[Array, ...]:
        """Outputs (n, V)."""
        return (self.side.outputs(self.side.states(at, keep)),)


@dataclass(frozen=True)
class SparseTeacher:
    """A teacher by its top-k lists.

    Args:
        temperature: divides the student's logits.
        block: the loss by rows of k + 1 logits, at temperature 1.
    """

    temperature: float
    block: Block

    numbers = LOG_PROBS
    width = 0

    def source(self, arrays: Mapping[str, Array], library: Library, step: int) -> Source:
        """The lists."""
        return _ListRows(arrays[LOG_PROBS], arrays[INDICES], library)

    def takes_outputs(self, student: Projection) -> bool:
        """Its form computes in its own dtype."""
        return True

    def operands(
        self, logits: Array, rows: tuple[Array, ...], dtype: Any, xp: Namespace
    ) -> tuple[Array, ...]:
        """The student's logits and the lists, whose own dtype says how well they add up to 1."""
        return (logits, *rows)

    def form(self, knobs: int, masked: bool, scaled: bool) -> ClosedForm:
        """That of k + 1 outcomes."""
        return SparseForm(self.block, self.temperature, knobs, masked, scaled)

    def pulled_back(self, grad: Array, logits: Array, xp: Namespace) -> Array:
        """The form's own."""
        return grad


@dataclass(frozen=True)
class _ListRows:
    log_probs: Array
    indices: Array
    library: Library

    def rows(self, at: Any, keep: Array | None) -> tuple[Array, ...]:
        """Log-probabilities and tokens (n, k); the form leaves out what is not kept."""
        take = self.library.take
        return take(self.log_probs, at), take(self.indices, at, -1)
