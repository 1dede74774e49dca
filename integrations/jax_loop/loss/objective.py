"""The loss of a batch from what teacher and student say of it, inside of a compiled step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

import amidmath as am
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.measures import (
    KL_TO_TEACHER,
    SAMPLE,
    TOTAL_VARIATION,
    first_tokens,
    to_reference,
)
from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.rows.marks import NO_LABEL, STUDENT_ROWS

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class States:
    """Hidden states (B, L, H) after the last norm, and the head that makes logits of them.

    Args:
        hidden: the states.
        weight: the head's, (V, H); bias, softcap and scale as of :class:`amidmath.Head`.
    """

    hidden: Array
    weight: Array
    bias: Array | None = None
    softcap: float | None = field(default=None, metadata={"static": True})
    scale: float = field(default=1.0, metadata={"static": True})

    @classmethod
    def of(cls, hidden: Array, head: am.Head) -> "States":
        """From a head without a low-rank part."""
        return cls(hidden, head.weight, head.bias, head.softcap, head.scale)

    @property
    def head(self) -> am.Head:
        """The head."""
        return am.Head(self.weight, bias=self.bias, softcap=self.softcap, scale=self.scale)

    def first(self, tokens: int | None) -> "States":
        """States of logits for the first so many tokens alone; None for all."""
        return States.of(self.hidden, first_tokens(self.head, tokens))

    def logits(self, hidden: Array) -> Array:
        """The logits (…, V) of some hidden states (…, H), whole, in float32."""
        outputs = jnp.matmul(hidden, self.weight.T.astype(hidden.dtype))
        outputs = outputs.astype(jnp.float32)
        if self.bias is not None:
            outputs += self.bias.astype(jnp.float32)
        logits: Array = self.head.projection.logits(outputs, jnp)
        return logits

    def held(self) -> "States":
        """The same, without gradients."""
        constant: States = jax.tree.map(jax.lax.stop_gradient, self)
        return constant

    def cooled(self, temperature: Array) -> "States":
        """States whose logits are divided by a temperature; not with a soft cap."""
        bias = None if self.bias is None else self.bias / temperature
        return replace(self, hidden=self.hidden / temperature, bias=bias)


Reference = States | am.TopK
"""What a teacher says of a batch: hidden states with a head, or its most probable tokens."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Positions:
    """What of a batch the loss needs beside states.

    Args:
        mask: (B, L), which positions count.
        targets: (B, L), the token that each predicts, -100 for none.
        source: (B,), who wrote a row (``STUDENT_ROWS``); None for anyone.
    """

    mask: Array
    targets: Array
    source: Array | None = None


class Comparer(Protocol):
    """How one loss is taken over the positions of a mask; see :class:`Whole`."""

    def __call__(
        self,
        loss: am.Loss,
        student: States,
        reference: Reference,
        mask: Array,
        reduction: str = "sum",
        *,
        labels: Array | None = None,
        label_weight: float = 0.0,
    ) -> Array:
        """The sum over the positions, or every position's value for "none"."""
        ...


@dataclass(frozen=True)
class Whole:
    """One device has the whole vocabulary.

    Args:
        vocab: "common" where a side's further tokens are one more token.
        tokens: how many first tokens are compared, where all others are left out.
    """

    vocab: str = "strict"
    tokens: int | None = None

    def __call__(
        self,
        loss: am.Loss,
        student: States,
        reference: Reference,
        mask: Array,
        reduction: str = "sum",
        *,
        labels: Array | None = None,
        label_weight: float = 0.0,
    ) -> Array:
        """See :class:`Comparer`."""
        others: dict[str, Any] = {"mask": mask, "reduction": reduction}
        if label_weight and labels is not None:
            if self.tokens is not None:
                labels = jnp.where(labels < self.tokens, labels, NO_LABEL)
            others |= {"labels": labels, "label_weight": label_weight}
        teacher: Any = reference
        if isinstance(reference, States):
            held = reference.held()
            vocab = "common" if self.vocab == "common" and self.tokens is None else "strict"
            teacher = am.Hidden(held.hidden, first_tokens(held.head, self.tokens), vocab)
        head = first_tokens(student.head, self.tokens)
        value: Array = loss(am.Hidden(student.hidden, head), teacher, **others)
        return value


@dataclass(frozen=True)
class Objective:
    """A recipe as a function of states.

    Args:
        recipe: the method, its parameters and schedules.
        compare: how one loss is taken.
        label_weight: what cross-entropy with the labels adds; 0 for none.
        measure: how KL and overlap are taken for the log; None for as the loss.
    """

    recipe: Recipe
    compare: Comparer
    label_weight: float = 0.0
    measure: Comparer | None = None

    def loss(
        self,
        values: Mapping[str, Any],
        student: States,
        reference: Reference,
        positions: Positions,
    ) -> Array:
        """The sum of the loss over the positions that count, a scalar.

        Args:
            values: of the parameters that have a schedule, at this step.
            student: the student's states.
            reference: the teacher's.
            positions: the rest.
        """
        overlap = None
        if self.recipe.schedules.per_token:
            overlap = self.overlaps(student, reference, positions)
        if "temperature" in values and isinstance(reference, States):
            # A loss's own temperature is a part of what is compiled.
            student = student.cooled(values["temperature"])
            reference = reference.cooled(values["temperature"])
            values = {**values, "temperature": 1.0}
        losses = self.recipe.losses_at(values, overlap)
        total = jnp.zeros((), jnp.float32)
        for name, mask in _masks(losses, positions).items():
            total += self.compare(
                losses[name],
                student,
                reference,
                mask,
                labels=positions.targets,
                label_weight=self.label_weight,
            )
        return total

    def overlaps(self, student: States, reference: Reference, positions: Positions) -> Array:
        """Σ min(p, q) of every position, (B, L), a constant; 1 where it does not count."""
        loss = self._measure(TOTAL_VARIATION, reference)
        return 1.0 - self.compare(loss, student.held(), reference, positions.mask, "none")

    def statistics(self, student: States, reference: Reference, positions: Positions) -> Array:
        """Sums of KL(p‖q) and of the overlap, and the count: an array (3,), a constant.

        Over up to ``SAMPLE`` positions that count, spread over the batch, so that looking costs
        little.
        """
        chosen = sampled(positions.mask)
        measure = self.compare if self.measure is None else self.measure
        kl, distance = (
            measure(self._measure(loss, reference), student.held(), reference, chosen)
            for loss in (KL_TO_TEACHER, TOTAL_VARIATION)
        )
        count = jnp.sum(chosen)
        return jnp.stack([kl, count - distance, count]).astype(jnp.float32)

    def _measure(self, loss: am.AMiD, reference: Reference) -> am.AMiD:
        return to_reference(loss, reference, float(self.recipe.params["temperature"]))


@dataclass(frozen=True)
class CrossEntropy:
    """Plain cross-entropy with the labels, as a baseline; all logits of a batch are held."""

    def loss(
        self,
        values: Mapping[str, Any],
        student: States,
        reference: Reference | None,
        positions: Positions,
    ) -> Array:
        """The sum over the positions that count."""
        del values, reference
        targets = jnp.where(positions.mask, positions.targets, 0)
        logits = student.logits(student.hidden)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(jnp.where(positions.mask, nll, 0.0))

    def statistics(self, student: States, reference: Any, positions: Positions) -> Array:
        """There is no teacher to compare with."""
        del student, reference, positions
        return jnp.zeros(3, jnp.float32)


def traceable(recipe: Recipe) -> frozenset[str]:
    """Which scheduled parameters can be arrays, so that no value of theirs compiles anew.

    The others (an order of a divergence, a weight of a sum) shape what is computed.
    """

    def fits(name: str, value: float) -> bool:
        try:
            others = {k: v for k, v in recipe.values(0, 2).items() if k != name}
            jax.eval_shape(
                lambda x: (recipe.losses_at({**others, name: x}), x)[1], jnp.float32(value)
            )
        except (InputError, TypeError):
            return False
        return True

    values = recipe.values(0, 2)
    return frozenset(name for name in values if name == "temperature" or fits(name, values[name]))


def in_chunks(function: Callable[[Any], Any], rows: Any, step: int) -> Any:
    """What a function gives of every ``step`` positions, stacked.

    Args:
        function: of a tree of rows (step, …).
        rows: a tree of arrays (B, L, …). What fills up the last chunk is zeros, a mask of which
            counts nothing.
        step: how many positions at a time.
    """

    def cut(array: Array) -> Array:
        flat = array.reshape(-1, *array.shape[2:])
        filled = jnp.pad(flat, ((0, -len(flat) % step), *((0, 0),) * (flat.ndim - 1)))
        return filled.reshape(-1, step, *flat.shape[1:])

    return jax.lax.map(function, jax.tree.map(cut, rows))


def sampled(mask: Array) -> Array:
    """Up to ``SAMPLE`` of the positions of a mask (B, L), spread over it."""
    flat = mask.reshape(-1)
    rank = jnp.cumsum(flat) - 1
    stride = jnp.maximum((jnp.sum(flat) + SAMPLE - 1) // SAMPLE, 1)
    return (flat & (rank % stride == 0)).reshape(mask.shape)


def _masks(losses: Mapping[str, am.Loss], positions: Positions) -> dict[str, Array]:
    """The positions of each loss."""
    mask = positions.mask
    if "any" in losses:
        return {"any": mask}
    if positions.source is None:
        raise ValueError(f"the losses {sorted(losses)} need a batch with a source for every row")
    by_student = (positions.source == STUDENT_ROWS)[:, None]
    return {"teacher": mask & ~by_student, "student": mask & by_student}
