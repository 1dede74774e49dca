"""A distillation in JAX; see :mod:`amidmath.integrations.common.run.distill`."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from tqdm.auto import tqdm

from amidmath.integrations.common.cli.memory import EVALUATION, TRAINING, within_memory
from amidmath.integrations.common.evaluation.quality import Quality
from amidmath.integrations.common.run.checkpoints import step_of
from amidmath.integrations.common.run.model_card import Card
from amidmath.integrations.common.run.progress import MetricsFile
from amidmath.integrations.common.run.record import Record
from amidmath.integrations.common.run.run_folder import METRICS, STUDENT
from amidmath.integrations.common.tasks.scores import TaskScores
from amidmath.integrations.common.text.vocabularies import compared_in_words
from amidmath.integrations.jax_loop.devices.processes import Joined, is_main, together
from amidmath.integrations.jax_loop.logs.trackers import forget, reporting
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.run.header import print_header
from amidmath.integrations.jax_loop.run.loading import Prepared, cross_entropy_trainer, prepare
from amidmath.integrations.jax_loop.run.memory import memory_in_words
from amidmath.integrations.jax_loop.run.records import card, record
from amidmath.integrations.jax_loop.settings.arguments import Arguments
from amidmath.integrations.jax_loop.teachers.cached import CachedTeacher
from amidmath.integrations.jax_loop.teachers.teachers import ModelTeacher
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer


@dataclass(frozen=True)
class JaxLoop:
    """A :class:`amidmath.integrations.common.run.distill.Loop` for JAX."""

    arguments: Arguments
    processes = Joined()

    def record(self) -> Record:
        """The run, to be compared with what its folder holds."""
        return record(self.arguments)

    def load(self, console: Console) -> "JaxRun":
        """Models and data, found to fit together up to the first optimiser step."""
        say = partial(console.print, highlight=False, soft_wrap=True)
        return JaxRun(self.arguments, prepare(self.arguments, say))


@dataclass(frozen=True)
class JaxTraining:
    """A :class:`amidmath.integrations.common.run.distill.Training` by our trainer.

    Args:
        trainer: prepared.
        arguments: the arguments.
        asked: the task on which its model's answers are scored.
    """

    trainer: JaxTrainer
    arguments: Arguments
    asked: TaskScores | None

    @property
    def model(self) -> Decoder:
        """The model as it is now."""
        return self.trainer.student

    def train(
        self, title: str, name: str, checkpoint: Path | None, at_start: Callable[[], None]
    ) -> None:
        """Train with a progress bar, a metrics file, and trackers if some are asked for."""
        at_start()
        trainer, folder, config = self.trainer, self.arguments.output_dir, self.arguments.config
        if name == STUDENT and checkpoint is None and is_main():
            forget(folder)
        trainer.logs.metrics = MetricsFile(folder / METRICS, name)
        trainer.logs.metrics.is_writer = is_main()
        groups = record(self.arguments).arguments.values()
        report = reporting(
            (config.report_to or ()) if is_main() else (),
            model=name,
            run_name=config.run_name or folder.absolute().name,
            project=config.project,
            folder=folder,
            step=None if checkpoint is None else step_of(checkpoint),
            arguments={k: v for group in groups for k, v in group.items()},
        )
        with ExitStack() as stack:
            with together():
                trainer.logs.report = stack.enter_context(report)
            hidden = config.disable_tqdm or not is_main()
            stack.enter_context(trainer.logs.bar(trainer.total, title, hidden))
            with within_memory("training", TRAINING):
                trainer.train(checkpoint)

    def scores(self) -> dict[str, float] | None:
        """The scores of the model's answers on the run's task; None if it has no task."""
        return None if self.asked is None else self.trainer.scores(self.asked)


@dataclass(frozen=True)
class JaxRun:
    """A :class:`amidmath.integrations.common.run.distill.Run` in JAX.

    Args:
        arguments: the arguments.
        prepared: trainer, tokenizer and rows.
    """

    arguments: Arguments
    prepared: Prepared
    is_sharded = False  # a mesh's devices judge a student in parts, too

    @property
    def student(self) -> JaxTraining:
        """The student, which the distillation loss trains."""
        return self._training(self.prepared.trainer)

    def baseline(self) -> JaxTraining:
        """A student from the same start, on the same rows in the same order, by cross-entropy."""
        return self._training(cross_entropy_trainer(self.prepared, self.arguments))

    def _training(self, trainer: JaxTrainer) -> JaxTraining:
        return JaxTraining(trainer, self.arguments, self.prepared.trainer.task_scores)

    def print_header(self, console: Console) -> None:
        """Say what is about to happen, a line a fact."""
        print_header(console, self.prepared, self.arguments)

    def memory(self) -> str:
        """The memory that XLA has planned for a training step, in words."""
        return memory_in_words(self.prepared)

    def judge(self, models: Mapping[str, Decoder], limit: int | None) -> dict[str, Quality]:
        """Figures of some models, and of a teacher in memory, on the first held-out rows."""
        bar = tqdm(
            self.prepared.held_out(limit),
            desc=f"evaluating {' and '.join(models)}",
            unit="batch",
            leave=False,
            dynamic_ncols=True,
            disable=self.arguments.config.disable_tqdm or not is_main(),
        )
        with within_memory("evaluating", EVALUATION):
            return self.prepared.judge(models, bar)

    def compared_in_words(self) -> str:
        """Over which tokens student and teacher were compared, to follow "in nats a token"."""
        trainer, teacher = self.prepared.trainer, self.prepared.trainer.teacher
        if isinstance(teacher, CachedTeacher):
            return f", {teacher.rows.compared()}" if teacher.rows.held_out is not None else ""
        if isinstance(teacher, ModelTeacher):
            ours, theirs = (m.config.vocabulary for m in (trainer.student, teacher.model))
            return compared_in_words(ours, theirs, trainer.config.vocab)
        return ""

    def save(self, folder: Path) -> None:
        """Write the student as it is now."""
        self.prepared.save(folder, self.arguments)

    def card(self, figures: Mapping[str, Mapping[str, float]]) -> Card:
        """The student's model card, once it is trained."""
        return card(self.arguments, self.prepared.trainer, figures)

    def publish(self) -> None:
        """Nothing: there is no flag for it in JAX."""
