"""The loss of a batch from what teacher and student say of it, inside of a compiled step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

import amidmath as am
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.measures import (
    KL_TO_TEACHER,
    SAMPLE,
    TOTAL_VARIATION,
    to_reference,
)
from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.rows.marks import STUDENT_ROWS
from amidmath.integrations.jax_loop.loss.compare import Comparer
from amidmath.integrations.jax_loop.loss.states import Array, Positions, Reference, cooled, held


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
        student: am.Hidden,
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
        if "temperature" in values and isinstance(reference, am.Hidden):
            # A loss's own temperature is a part of what is compiled.
            student = cooled(student, values["temperature"])
            reference = cooled(reference, values["temperature"])
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

    def overlaps(self, student: am.Hidden, reference: Reference, positions: Positions) -> Array:
        """Σ min(p, q) of every position, (B, L), a constant; 1 where it does not count."""
        loss = self._measure(TOTAL_VARIATION, reference)
        return 1.0 - self.compare(loss, held(student), reference, positions.mask, "none")

    def statistics(self, student: am.Hidden, reference: Reference, positions: Positions) -> Array:
        """Sums of KL(p‖q) and of the overlap, and the count: an array (3,), a constant.

        Over up to ``SAMPLE`` positions that count, spread over the batch, so that looking costs
        little.
        """
        chosen = sampled(positions.mask)
        measure = self.compare if self.measure is None else self.measure
        kl, distance = (
            measure(self._measure(loss, reference), held(student), reference, chosen)
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
        student: am.Hidden,
        reference: Reference | None,
        positions: Positions,
    ) -> Array:
        """The sum over the positions that count."""
        del values, reference
        targets = jnp.where(positions.mask, positions.targets, 0)
        logits = student.head.logits(student.states)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(jnp.where(positions.mask, nll, 0.0))

    def statistics(self, student: am.Hidden, reference: Any, positions: Positions) -> Array:
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
