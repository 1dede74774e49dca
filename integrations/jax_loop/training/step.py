"""The compiled optimiser step: loss, gradients over micro-batches, update; and held-out losses.

A model is split into its graph, the parameters that train and the others, which is what
``jax.jit`` takes without going through the module at every call. The state's buffers are donated:
the new ones take their place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import amidmath as am
from amidmath.integrations.jax_loop.loss.states import (
    Array,
    Batch,
    Positions,
    Reference,
    positions_of,
    reference_of,
    states_of,
)

Fixed = tuple[tuple[str, float], ...]
Sums = Callable[[Mapping[str, Array], am.Hidden, Any, Positions], Any]
"""Sums over all positions that count, as ``loss.compare.spread`` makes them."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state that an optimiser step changes, and the parameters beside it.

    Args:
        trained: the parameters that train.
        frozen: the others, and what else the module holds.
        optimizer: Optax's state.
    """

    trained: Any
    frozen: Any
    optimizer: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepResult:
    """The figures of a step.

    Args:
        loss: mean over the positions that count.
        grad_norm: of all gradients, before clipping; the step was made only if it is finite.
        statistics: sums of KL and overlap and the count, (3,); zeros where they were not asked for.
    """

    loss: Array
    grad_norm: Array
    statistics: Array


@dataclass(frozen=True)
class Steps:
    """The compiled functions of a run.

    Args:
        graph: of the student.
        teacher_graph: of the teacher; None where batches bring its lists.
        optimizer: Optax's.
        loss: sums of the loss.
        statistics: sums of KL, overlap and count.
        places: where the state lies, before a step and after it.
    """

    graph: Any
    teacher_graph: Any
    optimizer: optax.GradientTransformation
    loss: Sums
    statistics: Sums
    places: TrainState

    @cached_property
    def train(self) -> Any:
        """``train(state, teacher, batch, values, fixed, denominator, look)``: an optimiser step."""
        return jax.jit(
            self._train,
            static_argnames="fixed",
            donate_argnames="state",
            out_shardings=(self.places, None),
        )

    @cached_property
    def evaluate(self) -> Callable[..., Array]:
        """``evaluate(state, teacher, batch, values, fixed)``: sums over a held-out batch.

        Of the loss, positions, KL, overlap, and positions that these two are of: (5,).
        """
        return jax.jit(self._evaluate, static_argnames="fixed")

    def _train(
        self,
        state: TrainState,
        teacher: Any,
        batch: Batch,
        values: Mapping[str, Array],
        fixed: Fixed,
        denominator: Array,
        look: Array,
    ) -> tuple[TrainState, StepResult]:
        """One optimiser step.

        Args:
            state: donated.
            teacher: its parameters; None where they are the frozen ones, or there are none.
            batch: arrays with a leading axis of micro-batches, (A, B, L).
            values: of the parameters of the loss that have a schedule.
            fixed: the same of those that are a part of what is compiled.
            denominator: how many positions count in all micro-batches.
            look: whether KL and overlap are wanted.
        """
        every: dict[str, Any] = {**values, **dict(fixed)}

        def loss_of(trained: Any, micro: Batch) -> tuple[Array, Array]:
            student, reference, positions = self._seen(trained, state.frozen, teacher, micro)
            total = self.loss(every, student, reference, positions)
            statistics = jax.lax.cond(
                look,
                lambda: self.statistics({}, student, reference, positions),
                lambda: jnp.zeros(3, jnp.float32),
            )
            return total / denominator, statistics

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        count = next(iter(batch.values())).shape[0]
        if count == 1:
            micro = jax.tree.map(lambda a: a[0], batch)
            (loss, statistics), grads = gradient(state.trained, micro)
        else:

            def add(sums: Any, micro: Batch) -> tuple[Any, None]:
                (loss, statistics), grads = gradient(state.trained, micro)
                return jax.tree.map(jnp.add, sums, (loss, statistics, grads)), None

            zeros = jax.tree.map(jnp.zeros_like, state.trained)
            start = (jnp.zeros(()), jnp.zeros(3), zeros)
            (loss, statistics, grads), _ = jax.lax.scan(add, start, dict(batch))
        norm = optax.tree.norm(grads)

        def update() -> tuple[Any, Any]:
            changes, optimizer = self.optimizer.update(grads, state.optimizer, state.trained)
            return optax.apply_updates(state.trained, changes), optimizer

        trained, optimizer = jax.lax.cond(
            jnp.isfinite(norm), update, lambda: (state.trained, state.optimizer)
        )
        return TrainState(trained, state.frozen, optimizer), StepResult(loss, norm, statistics)

    def _evaluate(
        self,
        state: TrainState,
        teacher: Any,
        batch: Batch,
        values: Mapping[str, Array],
        fixed: Fixed,
    ) -> Array:
        student, reference, positions = self._seen(state.trained, state.frozen, teacher, batch)
        every: dict[str, Any] = {**values, **dict(fixed)}
        total = self.loss(every, student, reference, positions)
        looked = self.statistics({}, student, reference, positions)
        return jnp.concatenate([jnp.stack([total, jnp.sum(positions.mask)]), looked])

    def _seen(
        self, trained: Any, frozen: Any, teacher: Any, batch: Batch
    ) -> tuple[am.Hidden, Reference | None, Positions]:
        """Of a batch (B, L): the student's states, what the teacher says, and what counts."""
        theirs = frozen if teacher is None else teacher
        reference = reference_of(self.teacher_graph, theirs, batch)
        student = states_of(nnx.merge(self.graph, trained, frozen), batch)
        return student, reference, positions_of(batch)
