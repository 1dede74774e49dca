"""Losses of a student against a teacher: what every one is, and their weighted sums."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array
from amidmath.inputs.hidden import Hidden
from amidmath.inputs.shard import Shard
from amidmath.inputs.top_k import TopK
from amidmath.losses.sum_block import SumBlock
from amidmath.pairs.call import Batch
from amidmath.pairs.choose import call_of
from amidmath.rows.forms import Block
from amidmath.values.operators import Algebra, product
from amidmath.values.value import Value

Student: TypeAlias = Array | Hidden | Shard
Teacher: TypeAlias = Array | Hidden | TopK | Shard


class Loss(Algebra, Value, ABC):
    """A loss of a student against a teacher, in nats per position.

    Losses add and subtract, and are multiplied and divided by numbers and by arrays that broadcast
    to the positions: ``0.5 * am.AMiD(order="pr") + 0.5 * am.AMiD(order="qr")``, ``sum(losses)``.
    With a negative weight the whole is no divergence any more, and may be negative; infinite parts
    of opposite signs make NaN.

    They are values: they cannot be changed, and are equal where their class and parameters are.
    Parameters that are arrays are compared where their numbers are at hand, and then there is no
    hash. In JAX a loss is a pytree, and its leaves are the parameters that are arrays: it can be
    an argument of what is jitted or differentiated, be mapped over, and be carried through a scan.
    ``torch.func`` takes it likewise. If it was made before JAX was imported, JAX knows it once
    another one is made, or one is called with JAX's arrays.
    """

    @property
    @abstractmethod
    def block(self) -> Block:
        """Rows of student and teacher logits, then the knobs, to values and gradients."""

    @property
    def knobs(self) -> dict[str, Array]:
        """The parameters that are arrays, by name, in the order in which the block takes them."""
        return {}

    @property
    def weighted_parts(self) -> Sequence[tuple[float | Array, "Loss"]]:
        """Weights and losses that add up to this one."""
        return ((1.0, self),)

    def plus(self, other: "Loss") -> "Loss":
        """The sum of two losses."""
        return WeightedSum((*self.weighted_parts, *other.weighted_parts))

    def times(self, factor: float | Array) -> "Loss":
        """The loss times a number, or times an array, which are checked already."""
        parts = self.weighted_parts
        return WeightedSum(tuple((product(factor, weight), loss) for weight, loss in parts))

    def untempered(self) -> tuple[float, Block]:
        """The temperature of the loss, and its block at temperature 1.

        A tail can be added up at one temperature only, and a list holds the teacher at one.
        """
        temperature = float(getattr(self, "temperature", 1.0))
        if temperature == 1.0:
            return 1.0, self.block
        at_one: Any = replace(self, temperature=1.0)  # type: ignore[type-var]
        return temperature, at_one.block

    def __call__(
        self,
        student: Student,
        teacher: Teacher,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        labels: Array | None = None,
        label_weight: float = 1.0,
        ignore_index: int = -100,
        backend: str | None = None,
    ) -> Array:
        """The loss of a batch, differentiable with respect to its inputs and the array knobs.

        Student and teacher are each one of

        | input | student | teacher |
        |---|---|---|
        | logits, an array (..., V) | with logits, Hidden, TopK | with logits, Hidden |
        | :class:`Hidden`, states (..., H) and a head | with logits, Hidden, TopK | likewise |
        | :class:`TopK`, lists (..., k) and their tail | | with logits, Hidden |
        | :class:`Shard`, this rank's part of logits | with a Shard | with a Shard |

        Both are differentiated by where both are logits or both are shards; elsewhere the teacher
        is constant: a torch tensor that requires a gradient is an error, JAX gives zeros (for a
        TopK, an error there too).

        Args:
            student: see the table; of plain, dense arrays of a real floating dtype.
            teacher: the same positions, library and device.
            mask: boolean or 0/1, of shape (...) or one that broadcasts to it; positions that are
                False or 0 are left out, and never read. None keeps all.
            reduction: "mean" over the positions kept, "sum", or "none" for one value a position
                (0 where left out).
            denominator: what the sum is divided by instead of the number of positions kept, a
                positive number or scalar array; for "mean" only (gradient accumulation, data
                parallel).
            labels: shape (...), integers. Adds ``label_weight`` times the cross-entropy of the
                student's logits, at temperature 1 and over its own whole vocabulary, to the loss
                of every position that is kept and has a label, before the reduction: for "mean"
                the same denominator divides both. The teacher is then constant but in shards.
            label_weight: what the cross-entropy counts.
            ignore_index: marks positions without a label.
            backend: None for the fastest that there is; of two arrays of logits without labels
                also "reference" for the array core, which torch and JAX then differentiate
                operation by operation, as often as asked (a TopK takes it too), and "compiled"
                for a row kernel (CPU, CUDA) or an error that says why not.

        Returns:
            A scalar array, or shape (...) for "none", in float32 (float64 if an input is). 0 when
            no position is kept, or there is none.

        Raises:
            TypeError: not plain arrays, of different libraries, or of a wrong dtype; kinds of
                inputs that do not go together.
            ValueError: shapes or devices that differ, vocabularies of two sizes, an unknown
                reduction, a denominator without reduction "mean", or a backend that is unknown or
                cannot compute this. Where values are at hand, on the CPU and outside of jit and
                compile: a label outside the student's vocabulary, or lists that cannot be;
                elsewhere the loss of such a position is NaN.
            ModuleNotFoundError: backend "compiled" without its compiler (llvmlite, Triton).
        """
        batch = Batch(
            mask=mask,
            reduction=reduction,
            denominator=denominator,
            labels=labels,
            label_weight=checks.number("label_weight", label_weight),
            ignore_index=ignore_index,
            backend=backend,
        )
        return call_of(self, student, teacher, batch).value()

    def value_and_grad(
        self,
        student: Student,
        teacher: Teacher,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        labels: Array | None = None,
        label_weight: float = 1.0,
        ignore_index: int = -100,
        wrt: str | tuple[str, ...] = "student",
        backend: str | None = None,
        overwrite_student: bool = False,
    ) -> tuple[Array, Any]:
        """The loss and its gradient with respect to the student, on any library.

        Args:
            student: as for calling the loss; so are the other arguments.
            teacher: the same positions.
            mask: positions to keep.
            reduction: "mean", "sum" or "none".
            denominator: divides the sum, for "mean".
            labels: for the cross-entropy.
            label_weight: what it counts.
            ignore_index: marks positions without a label.
            wrt: what to differentiate by: "student"; "student.states" or "student.head" alone, of
                a Hidden; "teacher", where it is not constant; or a parameter of the loss that is an
                array ("alpha", "lam"); or several of them in a tuple.
            backend: as for calling the loss; the gradient is the closed form's in any case.
            overwrite_student: whether the gradient with respect to the student's logits may
                be written where they are, which saves memory of their size. It is where a kernel
                computes it (NumPy, torch, CuPy) and they can be written to; in any case they are
                not to be used afterwards, and must share no memory with the other arguments.

        Returns:
            The value, and d value/d ``wrt`` in the form of that argument, its shapes and dtypes: an
            array, a Hidden or a Shard, a Head for "student.head" (a tuple of them for a tuple). For
            "none", the gradient of each position's value, and by a head that of their sum.
            By a torch DTensor of a head, the whole gradient of this rank's positions, as a plain
            tensor.

        Raises:
            TypeError: as for calling the loss.
            ValueError: as for calling the loss; also an unknown name in ``wrt``.
            ModuleNotFoundError: backend "compiled" without its compiler (llvmlite, Triton).
        """
        batch = Batch(
            mask=mask,
            reduction=reduction,
            denominator=denominator,
            labels=labels,
            label_weight=checks.number("label_weight", label_weight),
            ignore_index=ignore_index,
            backend=backend,
        )
        return call_of(self, student, teacher, batch, overwrite_student).value_and_grad(wrt)


@dataclass(frozen=True, eq=False, repr=False)
class WeightedSum(Loss):
    """A weighted sum of losses, itself a loss; what ``+``, ``-``, ``*`` and ``/`` of losses make.

    GKD's loss, for one, is ``beta * am.AMiD(order="pr", lam=beta) + (1 - beta) *
    am.AMiD(order="qr", lam=beta)``.

    Weights that are arrays are parameters of the loss, as α and λ are: they can change without
    compiling anew, and the derivative by one is its part's value.

    Source: docs: gradients, G8.

    Args:
        parts: weights and losses; a weight is a number, or an array that broadcasts to the
            positions.

    Raises:
        TypeError: a part that is not a weight and a loss.
        ValueError: no part, or a weight that is not finite.

    Example:
        >>> import numpy as np, amidmath as am
        >>> loss = 0.5 * am.AMiD(order="pr", lam=0.5) + 0.5 * am.AMiD(order="qr", lam=0.5)
        >>> value, _ = loss.value_and_grad(np.zeros((1, 4)), np.eye(1, 4))
        >>> print(f"{value:.6f}")
        0.027812
    """

    parts: tuple[tuple[float | Array, Loss], ...]

    def __post_init__(self) -> None:
        """Check the parts."""
        if not self.parts:
            raise ValueError("parts must have at least one weight and loss, got ()")
        checked = []
        for j, (weight, loss) in enumerate(self.parts):
            if not isinstance(loss, Loss):
                raise TypeError(f"parts[{j}] must be a weight and a loss, got {loss!r}")
            checked.append((checks.factor(f"parts[{j}]", weight), loss))
        object.__setattr__(self, "parts", tuple(checked))

    @property
    def weighted_parts(self) -> tuple[tuple[float | Array, Loss], ...]:
        """The parts."""
        return self.parts

    def untempered(self) -> tuple[float, Block]:
        """The temperature that all parts share, and the block of the sum at temperature 1.

        Raises:
            ValueError: parts at different temperatures.
        """
        temperatures = sorted({loss.untempered()[0] for _, loss in self.parts})
        if len(temperatures) > 1:
            raise ValueError(
                "a teacher's list is at one temperature, and so must be the parts of a sum of "
                f"losses, got {', '.join(map(str, temperatures))}; call each part with a list of "
                "its own"
            )
        blocks = (
            (None if checks.is_array(weight) else weight, loss.untempered()[1], len(loss.knobs))
            for weight, loss in self.parts
        )
        return temperatures[0], SumBlock(tuple(blocks))

    @property
    def block(self) -> Block:
        """The parts' blocks, added up."""
        return SumBlock(
            tuple(
                (None if checks.is_array(weight) else weight, loss.block, len(loss.knobs))
                for weight, loss in self.parts
            )
        )

    @property
    def knobs(self) -> dict[str, Array]:
        """The array parameters of each part: ``parts[j].weight``, ``parts[j].alpha`` and so on."""
        found: dict[str, Array] = {}
        for j, (weight, loss) in enumerate(self.parts):
            own = {"weight": weight} if checks.is_array(weight) else {}
            found |= {f"parts[{j}].{name}": knob for name, knob in (own | loss.knobs).items()}
        return found
