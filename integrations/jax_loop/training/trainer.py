"""The loop: batches from where the data policy says, compiled steps, logs, checkpoints."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from amidmath.integrations.common.errors import not_finite
from amidmath.integrations.common.rows.batches import Batches, counted
from amidmath.integrations.common.run.checkpoints import ExtraState, step_of
from amidmath.integrations.common.tasks.scores import TaskScores, with_prefix
from amidmath.integrations.common.text.vocabularies import measured_first
from amidmath.integrations.jax_loop.devices.mesh import on_mesh
from amidmath.integrations.jax_loop.evaluation.task_scores import student_scores
from amidmath.integrations.jax_loop.logs.log import RunLog
from amidmath.integrations.jax_loop.loss.compare import comparer, spread
from amidmath.integrations.jax_loop.loss.objective import CrossEntropy, Objective, traceable
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.settings.config import JaxConfig
from amidmath.integrations.jax_loop.teachers.teachers import Teacher, compared_with
from amidmath.integrations.jax_loop.training import checkpoints
from amidmath.integrations.jax_loop.training.optimizers import (
    decays,
    learning_rate,
    optimizer,
    placed_like,
    trained_parameters,
)
from amidmath.integrations.jax_loop.training.rollouts import Rollouts
from amidmath.integrations.jax_loop.training.step import Fixed, Steps, TrainState


class JaxTrainer:
    """Trains a student on a distillation loss at every position that counts.

    Args:
        student: the model; its parameters are where they are to be.
        teacher: a model in memory, or a cache of its most probable tokens.
        config: the loss, the data policy and the training.
        batches: of the training rows; every process has them all.
        held_out: of the held-out rows, once.
        mesh: of devices.
        end_tokens: which tokens end an answer.
        objective: in place of the recipe's, for a baseline.
        task_scores: a task on which the student's answers are scored at every evaluation.

    Raises:
        InputError: what does not fit together.
    """

    def __init__(
        self,
        student: Decoder,
        teacher: Teacher,
        config: JaxConfig,
        batches: Batches,
        held_out: Callable[[], Iterable[Mapping[str, Any]]],
        mesh: Mesh,
        end_tokens: Sequence[int],
        objective: Objective | CrossEntropy | None = None,
        task_scores: TaskScores | None = None,
    ) -> None:
        self.config, self.teacher, self.mesh = config, teacher, mesh
        self.batches, self.held_out = batches, held_out
        self.recipe, self.policy = config.recipe(), config.data_policy()
        self.total = steps_of(config, batches)
        self.step = 0
        trains = trained_parameters(config)
        parts: Any = nnx.split(student, trains, ...)  # its stub knows no filters
        self.graph, trained, frozen = parts
        rule = optimizer(config, self.total, decays)
        self.state = TrainState(trained, frozen, placed_like(rule, trained, mesh))
        distils = objective is None
        measured = self._objective(student) if objective is None else objective
        self.steps = Steps(
            self.graph,
            teacher.graph,
            rule,
            spread(mesh, measured.loss, by_vocabulary=distils),
            spread(mesh, lambda values, *seen: measured.statistics(*seen)),
            jax.tree.map(lambda array: array.sharding, self.state),
        )
        self.traced = traceable(self.recipe)
        self.rollouts = Rollouts(self, batches.rows, end_tokens)
        self.task_scores, self.logs = task_scores, RunLog()

    def _objective(self, student: Decoder) -> Objective:
        ours, vocab = student.config.vocabulary, self.config.vocab
        theirs, tokens = compared_with(self.teacher, ours, vocab, self.recipe)
        return Objective(
            self.recipe,
            comparer(self.mesh, vocab, tokens),
            self.config.label_weight,
            comparer(self.mesh, vocab, measured_first(ours, theirs, tokens)),
        )

    @property
    def student(self) -> Decoder:
        """The student as it is now."""
        merged: Decoder = nnx.merge(self.graph, self.state.trained, self.state.frozen)
        return merged

    def train(self, checkpoint: Path | None = None) -> None:
        """Train to the last step, from a checkpoint if one is given.

        Raises:
            InputError: the checkpoint does not fit.
            TrainingError: a gradient that is not finite.
            DiskFullError: a checkpoint could not be written.
        """
        folder = Path(str(self.config.output_dir))
        checkpoints.clear_leftovers(folder)
        self.logs.clock.start()
        if checkpoint is not None:
            self._restore(checkpoint)
        elif self.config.eval_on_start:
            self.evaluate()
        while self.step < self.total:
            self.make_step()
            ends_epoch = self.step % self.batches.steps_per_epoch == 0 or self.step == self.total
            if self.step % self.config.logging_steps == 0 or self.step == self.total:
                self._log_step()
            if self._due(self.config.eval_strategy, self.config.eval_steps, ends_epoch):
                self.evaluate()
            if self._due(self.config.save_strategy, self.config.save_steps, ends_epoch):
                self._save(folder)

    def evaluate(self) -> dict[str, float]:
        """Loss, KL, overlap on the held-out rows and scores of answers on a task, logged.

        The data policy hears of the loss.
        """
        sums = np.zeros(5)
        values, fixed = self.scheduled()
        for batch in self.held_out():
            placed = on_mesh(self.mesh, batch, self.teacher.with_lists)
            found = self.steps.evaluate(
                self.state, self.teacher.parameters, placed, values, fixed=fixed
            )
            sums += np.asarray(found, np.float64)
        total, count, kl, overlap, looked = sums
        logs = {"eval_loss": total / count if count else math.nan}
        if looked:
            logs |= {"eval_kl": kl / looked, "eval_overlap": overlap / looked}
        if self.task_scores is not None:
            logs |= with_prefix("eval", self.scores(self.task_scores))
        self.policy.observe_evaluation(logs["eval_loss"])
        self.log(dict(logs))
        return logs

    def scores(self, asked: TaskScores) -> dict[str, float]:
        """The scores of the student's answers as it is now; all processes must call it."""
        ends, size = self.rollouts.end_tokens, self.config.per_device_eval_batch_size
        return student_scores(asked, self.student, ends, size)

    def make_step(self) -> None:
        """Make one optimiser step.

        Raises:
            TrainingError: the gradient is not finite; the student is as it was.
        """
        source = self.policy.choose(self.step, self.total, self.rollouts.buffer)
        batch = self.rollouts.batch(source, self.batches.step(self.step))
        count, tokens = int(counted(batch).sum()), int((batch["segments"] > 0).sum())
        looks = self.recipe.schedules.needs_overlap or (
            (self.step + 1) % self.config.logging_steps == 0
        )
        values, fixed = self.scheduled()
        self.state, result = self.steps.train(
            self.state,
            self.teacher.parameters,
            on_mesh(self.mesh, batch, self.teacher.with_lists, lead=1),
            values,
            fixed=fixed,
            denominator=jnp.float32(max(count, 1)),
            look=jnp.asarray(looks),
        )
        loss, norm = float(result.loss), float(result.grad_norm)
        if not math.isfinite(norm):
            raise not_finite(self.step + 1, norm)
        kl, overlap, looked = (float(x) for x in result.statistics)
        last = dict(self.recipe.values(self.step, self.total))
        if looked:
            last |= {"kl": kl / looked, "overlap": overlap / looked}
        self.logs.figures.add(loss, tokens, {**last, "grad_norm": norm})
        mean = overlap / looked if looked else math.nan
        self.recipe.schedules.observe({"loss": loss, "overlap": mean})
        self.step += 1
        self.logs.advance(self.step)

    def _log_step(self) -> None:
        """The mean loss since the last log, and what the last step said."""
        figures, rate = self.logs.figures, learning_rate(self.config, self.total)
        self.log(
            {
                "loss": figures.mean_loss(),
                "learning_rate": float(np.asarray(rate(self.step - 1))),
                **figures.last,
                "num_tokens": figures.tokens,
            }
        )

    def log(self, logs: dict[str, Any]) -> None:
        """Tell of figures at this step."""
        epoch = round(self.step / self.batches.steps_per_epoch, 4)
        self.logs.line(self.step, {**logs, "epoch": epoch})

    def scheduled(self) -> tuple[dict[str, jax.Array], Fixed]:
        """The scheduled parameters of this step: arrays, and those that are compiled in."""
        step = min(self.step, self.total - 1)
        values = self.recipe.values(step, self.total)
        arrays = {k: jnp.float32(v) for k, v in values.items() if k in self.traced}
        return arrays, tuple((k, v) for k, v in values.items() if k not in self.traced)

    def _due(self, when: str, every: int, ends_epoch: bool) -> bool:
        if when == "steps":
            return self.step % every == 0
        return when == "epoch" and ends_epoch

    def extra_states(self) -> dict[str, ExtraState]:
        """The states that belong in a checkpoint beside the arrays."""
        return {
            "schedules": self.recipe.schedules,
            "policy": self.policy,
            "rollouts": self.rollouts,
            **self.logs.extra_states(),
        }

    def checkpointed(self) -> dict[str, Any]:
        """The arrays that belong in a checkpoint: what does not train is read from the student."""
        return {"trained": self.state.trained, "optimizer": self.state.optimizer}

    def _save(self, folder: Path) -> None:
        limit = self.config.save_total_limit
        checkpoints.save(folder, self.step, self.checkpointed(), self.extra_states(), limit)

    def _restore(self, checkpoint: Path) -> None:
        found = checkpoints.restore(checkpoint, self.checkpointed(), self.extra_states())
        self.state = TrainState(found["trained"], self.state.frozen, found["optimizer"])
        self.step = step_of(checkpoint)


def steps_of(config: JaxConfig, batches: Batches) -> int:
    """How many optimiser steps a run has."""
    if config.max_steps > 0:
        return config.max_steps
    return math.ceil(config.num_train_epochs * batches.steps_per_epoch)
