"""A distillation in torch; see :mod:`amidmath.integrations.common.run.distill`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, set_seed
from trl import SFTTrainer

from amidmath.integrations.common.cli.memory import EVALUATION, TRAINING, within_memory
from amidmath.integrations.common.evaluation.quality import Quality
from amidmath.integrations.common.rows.prepared import ROW
from amidmath.integrations.common.run.model_card import Card
from amidmath.integrations.common.run.record import Record
from amidmath.integrations.common.run.run_folder import METRICS
from amidmath.integrations.common.tasks.scores import TaskScores
from amidmath.integrations.common.text.vocabularies import compared_in_words
from amidmath.integrations.torch_loop.devices.engines import BeforeFirstStep, whole_weights
from amidmath.integrations.torch_loop.devices.processes import Launched, on_main_process
from amidmath.integrations.torch_loop.devices.shares import own_batches
from amidmath.integrations.torch_loop.evaluation.quality import evaluate
from amidmath.integrations.torch_loop.evaluation.task_scores import student_scores
from amidmath.integrations.torch_loop.logs.callbacks import MetricsLog, ProgressBar, Speed
from amidmath.integrations.torch_loop.models.model_files import logits_of_model
from amidmath.integrations.torch_loop.run.header import print_header
from amidmath.integrations.torch_loop.run.loading import cross_entropy_trainer, prepare
from amidmath.integrations.torch_loop.run.memory import estimate_of
from amidmath.integrations.torch_loop.run.records import card, record
from amidmath.integrations.torch_loop.settings.arguments import Arguments
from amidmath.integrations.torch_loop.teachers.cached import CachedTeacher
from amidmath.integrations.torch_loop.teachers.teachers import ModelTeacher, Teacher
from amidmath.integrations.torch_loop.training.checkpoints import save_model
from amidmath.integrations.torch_loop.training.collators import Carrying
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer


@dataclass(frozen=True)
class TorchLoop:
    """A :class:`amidmath.integrations.common.run.distill.Loop` for torch."""

    arguments: Arguments
    processes = Launched()

    def record(self) -> Record:
        """The run, to be compared with what its folder holds."""
        return record(self.arguments)

    def load(self, console: Console) -> "TorchRun":
        """Models and data, found to fit together up to the first optimiser step."""
        del console  # what is to be known of rows is said by the trainer
        return TorchRun(self.arguments, prepare(self.arguments))


@dataclass(frozen=True)
class TorchTraining:
    """A :class:`amidmath.integrations.common.run.distill.Training` by one of TRL's trainers.

    Args:
        trainer: prepared.
        folder: of the run.
        asked: the task on which its model's answers are scored.
    """

    trainer: SFTTrainer
    folder: Path
    asked: TaskScores | None

    @property
    def model(self) -> PreTrainedModel:
        """The model as it is now."""
        return cast("PreTrainedModel", self.trainer.model)

    def train(
        self, title: str, name: str, checkpoint: Path | None, at_start: Callable[[], None]
    ) -> None:
        """Train with our progress bar and metrics file in place of the default printing."""
        trainer = self.trainer
        trainer.add_callback(BeforeFirstStep(at_start))
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(Speed())
        trainer.add_callback(MetricsLog(self.folder / METRICS, name))
        if not trainer.args.disable_tqdm:
            trainer.add_callback(ProgressBar(title))
        set_seed(trainer.args.seed)  # preparing has drawn from the generators
        with within_memory("training", TRAINING):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def scores(self) -> dict[str, float] | None:
        """The scores of the model's answers on the run's task; None if it has no task."""
        return None if self.asked is None else student_scores(self.asked, self.trainer)


@dataclass(frozen=True)
class TorchRun:
    """A :class:`amidmath.integrations.common.run.distill.Run` in torch.

    Args:
        arguments: the arguments.
        trainer: at its first step.
    """

    arguments: Arguments
    trainer: AMiDTrainer

    @property
    def student(self) -> TorchTraining:
        """The student, which the distillation loss trains."""
        return self._training(self.trainer)

    @property
    def is_sharded(self) -> bool:
        """Whether an engine shares weights out, so that the student runs only while it trains."""
        return self.trainer.is_sharded

    def baseline(self) -> TorchTraining:
        """A student from the same start, on the same rows in the same order, by cross-entropy."""
        return self._training(cross_entropy_trainer(self.trainer, self.arguments))

    def _training(self, trainer: SFTTrainer) -> TorchTraining:
        return TorchTraining(trainer, self.arguments.output_dir, self.trainer.task_scores)

    def print_header(self, console: Console) -> None:
        """Say what is about to happen, a line a fact."""
        print_header(console, self.trainer, self.arguments)

    def memory(self) -> str:
        """An estimate of what a training step takes, in words."""
        return estimate_of(self.trainer, self.arguments.script.baseline).describe()

    def judge(self, models: Mapping[str, PreTrainedModel], limit: int | None) -> dict[str, Quality]:
        """Figures of some models, and of a teacher in memory, on the first held-out rows."""
        trainer, args, rows = self.trainer, self.trainer.args, self.trainer.eval_rows
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        batches = own_batches(
            cast("Any", rows),
            Carrying(trainer.plain_collator, (ROW,)),
            args.per_device_eval_batch_size,
        )
        bar = tqdm(
            list(batches),
            desc=f"evaluating {' and '.join(models)}",
            unit="batch",
            leave=False,
            dynamic_ncols=True,
            disable=args.disable_tqdm or not trainer.is_world_process_zero(),
        )
        with within_memory("evaluating", EVALUATION):
            return evaluate(models, self._reference(), bar, args.device, trainer.vocab)

    def compared_in_words(self) -> str:
        """Over which tokens student and teacher were compared, to follow "in nats a token"."""
        teacher = self._reference()
        if isinstance(teacher, CachedTeacher):
            return f", {teacher.rows.compared()}"
        if isinstance(teacher, ModelTeacher):
            ours, theirs = logits_of_model(self.trainer.student), logits_of_model(teacher.model)
            return compared_in_words(ours, theirs, self.trainer.vocab)
        return ""

    def _reference(self) -> Teacher | None:
        """The teacher of held-out rows: a model, or a cache if it has those rows."""
        teacher = self.trainer.teacher
        if isinstance(teacher, CachedTeacher):
            return teacher if teacher.rows.held_out is not None else None
        return teacher

    def save(self, folder: Path) -> None:
        """Write the student as it is now, put together where an engine has it in parts."""
        trainer, weights = self.trainer, whole_weights(self.trainer)
        on_main_process(lambda: save_model(folder, trainer.student, trainer.tokenizer, weights))

    def card(self, figures: Mapping[str, Mapping[str, float]]) -> Card:
        """The student's model card, once it is trained."""
        return card(self.arguments, self.trainer.state, figures)

    def publish(self) -> None:
        """Send the run to a hub, if that was asked for."""
        if self.trainer.args.push_to_hub:
            self.trainer.push_to_hub(dataset_name=self.arguments.script.dataset_name)
