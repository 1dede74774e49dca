"""The loop: batches from where the data policy says, compiled steps, logs, checkpoints."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

from amidmath.integrations.common.errors import TrainingError
from amidmath.integrations.common.evaluation.task_scores import TaskScores, with_prefix
from amidmath.integrations.common.policies.base import Source
from amidmath.integrations.common.rows.batches import Batches, counted
from amidmath.integrations.common.run.checkpoints import ExtraState, step_of
from amidmath.integrations.common.run.progress import (
    Clock,
    LiveWords,
    MetricsFile,
    resident_bytes,
)
from amidmath.integrations.common.text.vocabularies import measured_first
from amidmath.integrations.jax_loop.devices.mesh import comparer, on_mesh, spread
from amidmath.integrations.jax_loop.evaluation.task_scores import student_scores
from amidmath.integrations.jax_loop.logs.trackers import Report
from amidmath.integrations.jax_loop.loss.objective import CrossEntropy, Objective, traceable
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.settings.arguments import JaxConfig
from amidmath.integrations.jax_loop.teachers.teachers import Teacher, compared_with
from amidmath.integrations.jax_loop.training import checkpoints
from amidmath.integrations.jax_loop.training.optimizers import learning_rate, optimizer
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
        """See the class."""
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
        ours = student.config.vocabulary
        theirs, tokens = compared_with(teacher, ours, config.vocab, self.recipe)
        of_recipe = Objective(
            self.recipe,
            comparer(mesh, config.vocab, tokens),
            config.label_weight,
            comparer(mesh, config.vocab, measured_first(ours, theirs, tokens)),
        )
        measured = of_recipe if objective is None else objective
        self.steps = Steps(
            self.graph,
            teacher.graph,
            rule,
            spread(mesh, measured.loss, objective is None),
            spread(mesh, lambda values, *seen: measured.statistics(*seen)),
            jax.tree.map(lambda array: array.sharding, self.state),
        )
        self.traced = traceable(self.recipe)
        self.rollouts = Rollouts(self, batches.rows, end_tokens)
        self.clock, self.figures = Clock(), Figures()
        self.task_scores, self.words = task_scores, LiveWords()
        self.metrics: MetricsFile | None = None
        self.report: Report | None = None
        self.bar: Any = None

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
        self.clock.start()
        if checkpoint is not None:
            self._restore(checkpoint)
        elif self.config.eval_on_start:
            self.evaluate()
        while self.step < self.total:
            self._step()
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
        values, fixed = self._values()
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
            logs |= with_prefix("eval", student_scores(self.task_scores, self))
        self.policy.observe_evaluation(logs["eval_loss"])
        self._log(dict(logs))
        return logs

    def _step(self) -> None:
        """One optimiser step."""
        source = self.policy.choose(self.step, self.total, self.rollouts.buffer)
        batch = self.rollouts.batch(source, self.batches.step(self.step))
        count, tokens = int(counted(batch).sum()), int((batch["segments"] > 0).sum())
        looks = self.recipe.schedules.needs_overlap or (
            (self.step + 1) % self.config.logging_steps == 0
        )
        values, fixed = self._values()
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
            raise TrainingError(
                f"step {self.step + 1}: the gradient's norm is {norm}, so the step was not made "
                f"and nothing was saved of it; the student is that of step {self.step}. A lower "
                "--learning_rate, or an --alpha below 1 (whose assistant covers all tokens that "
                "teacher or student do), helps against it; earlier checkpoints are kept"
            )
        kl, overlap, looked = (float(x) for x in result.statistics)
        figures = self.figures
        figures.last = dict(self.recipe.values(self.step, self.total))
        if looked:
            figures.last |= {"kl": kl / looked, "overlap": overlap / looked}
        figures.last["grad_norm"] = norm
        figures.loss_sum += loss
        figures.steps += 1
        figures.tokens += tokens
        mean = overlap / looked if looked else math.nan
        self.recipe.schedules.observe({"loss": loss, "overlap": mean})
        self.step += 1
        if self.bar is not None:
            self.bar.update(self.step - self.bar.n)

    def _log_step(self) -> None:
        """The mean loss since the last log, and what the last step said."""
        figures, rate = self.figures, learning_rate(self.config, self.total)
        logs = {
            "loss": figures.loss_sum / figures.steps,
            "learning_rate": float(np.asarray(rate(self.step - 1))),
            **figures.last,
            "num_tokens": figures.tokens,
        }
        figures.loss_sum, figures.steps = 0.0, 0
        self._log(logs)

    def _log(self, logs: dict[str, Any]) -> None:
        logs["epoch"] = round(self.step / self.batches.steps_per_epoch, 4)
        logs |= self.clock.fields(logs, memory_in_use())
        if self.metrics is not None:
            self.metrics.append(self.step, logs)
        if self.report is not None:
            self.report.log(self.step, logs)
        words = self.words.of(logs)
        if self.bar is not None and words is not None:
            self.bar.set_postfix_str(words)

    def _values(self) -> tuple[dict[str, jax.Array], Fixed]:
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
        """What belongs in a checkpoint beside the arrays."""
        states: dict[str, ExtraState] = {
            "schedules": self.recipe.schedules,
            "policy": self.policy,
            "rollouts": self.rollouts,
            "figures": self.figures,
            "clock": self.clock,
        }
        if self.metrics is not None:
            states["metrics"] = self.metrics
        return states

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

    @contextmanager
    def progress(self, title: str, hidden: bool = False) -> Iterator[None]:
        """A bar of the steps, with the figures that are logged, while the block runs."""
        self.bar = tqdm(
            total=self.total, desc=title, unit="step", dynamic_ncols=True, disable=hidden
        )
        try:
            yield
        finally:
            self.bar.close()
            self.bar = None

    def compiled_step(self) -> Any:
        """The training step as XLA has compiled it, of the first batch; nothing is run."""
        batch = self.rollouts.batch(Source.DATASET, self.batches.step(0))
        placed = on_mesh(self.mesh, batch, self.teacher.with_lists, lead=1)
        values, fixed = self._values()
        lowered = self.steps.train.lower(
            self.state,
            self.teacher.parameters,
            placed,
            values,
            fixed=fixed,
            denominator=jnp.float32(1),
            look=jnp.asarray(False),
        )
        return lowered.compile()


@dataclass
class Figures:
    """The sums behind what is logged."""

    loss_sum: float = 0.0
    steps: int = 0
    tokens: int = 0
    last: dict[str, float] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """All of them."""
        return {
            "loss_sum": self.loss_sum,
            "steps": self.steps,
            "tokens": self.tokens,
            "last": dict(self.last),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on adding to them."""
        self.loss_sum, self.steps = state["loss_sum"], state["steps"]
        self.tokens, self.last = state["tokens"], dict(state["last"])


def steps_of(config: JaxConfig, batches: Batches) -> int:
    """How many optimiser steps a run has."""
    if config.max_steps > 0:
        return config.max_steps
    return math.ceil(config.num_train_epochs * batches.steps_per_epoch)


def trained_parameters(config: JaxConfig) -> nnx.filterlib.Filter:
    """Which parameters train: the adapter, all, or all but embeddings (and a head tied to them)."""
    if config.use_peft:
        return nnx.LoRAParam
    if not config.freeze_embeddings:
        return nnx.Param
    return nnx.All(nnx.Param, nnx.Not(nnx.PathContains("embedding")))


def placed_like(rule: optax.GradientTransformation, trained: Any, mesh: Mesh) -> Any:
    """An optimiser's first state: what belongs to a parameter lies where that does."""
    everywhere = NamedSharding(mesh, P())

    def beside(leaf: jax.ShapeDtypeStruct, parameter: jax.Array) -> Any:
        return parameter.sharding if leaf.shape == parameter.shape else everywhere

    places = optax.tree.map_params(
        rule,
        beside,
        jax.eval_shape(rule.init, trained),
        trained,
        transform_non_params=lambda leaf: everywhere,
    )
    # Compiled, so that it is made where it lies, and no process waits for another one.
    return jax.jit(rule.init, out_shardings=places)(trained)


def decays(parameters: Any) -> Any:
    """Which parameters weight decay applies to: matrices, not biases and norms."""

    def is_matrix(parameter: nnx.Variable[Any]) -> bool:
        axes = [axis for axis in parameter.get_metadata("axes") if axis != "layer"]
        return len(axes) > 1

    return jax.tree.map(is_matrix, parameters, is_leaf=lambda x: isinstance(x, nnx.Variable))


def memory_in_use() -> int:
    """Bytes: allocated on the first device where it says so, or the resident set."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_in_use" in statistics:
        return int(statistics["bytes_in_use"])
    return resident_bytes()
