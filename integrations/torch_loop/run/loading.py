"""The way from arguments to a trainer: student, teacher and data, checked to fit together."""

import copy
import warnings
from typing import Any

import datasets
from accelerate import PartialState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import SFTTrainer

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG
from amidmath.integrations.common.cli.ranges import STEPS_TO_LOOK_AT, untrained
from amidmath.integrations.common.data.splits import load_splits
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.tasks.scores import UNFINISHED, TaskScores
from amidmath.integrations.common.text.tokenizers import load_tokenizer
from amidmath.integrations.torch_loop.models.model_files import (
    context_of,
    embeddings_of,
)
from amidmath.integrations.torch_loop.run.models import adapter_config, load_student, load_teacher
from amidmath.integrations.torch_loop.settings.arguments import Arguments
from amidmath.integrations.torch_loop.training.row_order import OrderedTrainer
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

# Preparing fewer rows than this takes seconds, and a dozen bars would hide the header.
ROWS_WITHOUT_BARS = 20_000


def prepare(arguments: Arguments) -> AMiDTrainer:
    """Load everything and find out whether it fits together, up to the first optimiser step.

    Raises:
        InputError: something does not.
    """
    config = arguments.config
    with PartialState().main_process_first():  # the others find what it has read
        train_rows, test_rows = load_splits(
            arguments.script, config.dataset_text_field, config.seed
        )
    bars_for_many(len(train_rows))
    tokenizer = load_tokenizer(
        STUDENT_FLAG, arguments.student, revision=arguments.model.model_revision
    )
    student = load_student(arguments)
    with PartialState().main_process_first():
        task_scores = TaskScores.read(
            arguments.scores, tokenizer, context_of(student), embeddings_of(student)
        )
    trainer = AMiDTrainer(
        student,
        load_teacher(arguments, student, tokenizer),
        config,
        task_scores,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        processing_class=tokenizer,
        peft_config=adapter_config(arguments.model),
    )
    check_best_metric(trainer)
    trainer.get_train_dataloader()
    trainer.create_optimizer_and_scheduler(num_training_steps=trainer.steps_to_train)
    check_trains(trainer)
    trainer.optimizer = trainer.lr_scheduler = None  # train makes them anew
    return trainer


def check_best_metric(trainer: AMiDTrainer) -> None:
    """Raise InputError unless evaluations give the figure that chooses the best checkpoint."""
    config, scores = trainer.settings, trainer.task_scores
    asked = config.metric_for_best_model
    if not asked:
        return
    known = ["loss", "kl", "overlap"]
    if trainer.vocab != "strict":
        known += ["outside_teacher", "outside_student"]
    if scores is not None:
        known += [*scores.task.metrics, UNFINISHED]
    if str(asked).removeprefix("eval_") not in known:
        raise InputError(
            f"--metric_for_best_model {asked}: evaluations give {', '.join(known)}; choose one of "
            "them"
        )


def check_trains(trainer: AMiDTrainer) -> None:
    """Raise InputError where no step would change a weight, the learning rate being 0."""
    groups: Any = getattr(trainer.optimizer, "param_groups", ())
    scheduler: Any = trainer.lr_scheduler
    if not groups or not all(isinstance(group.get("lr"), float) for group in groups):
        return  # Adafactor may choose its own, and an engine's optimiser is not here yet
    total = trainer.steps_to_train
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(min(total, STEPS_TO_LOOK_AT)):
            if any(group["lr"] > 0.0 for group in groups):
                return
            scheduler.step()
    if total <= STEPS_TO_LOOK_AT:
        raise InputError(untrained(trainer.settings, total))


def bars_for_many(rows: int) -> None:
    """Bars for preparing rows where that takes more than seconds."""
    if rows >= ROWS_WITHOUT_BARS:
        datasets.enable_progress_bars()


def cross_entropy_trainer(distilled: AMiDTrainer, arguments: Arguments) -> SFTTrainer:
    """A trainer that differs in the loss alone: same start, rows, order, steps and optimiser."""
    config = copy.copy(arguments.config)
    config.dataset_kwargs = {"skip_prepare_dataset": True}  # the rows are prepared already
    config.save_strategy, config.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    config.load_best_model_at_end = config.push_to_hub = False
    config.chat_template_path = None  # the tokenizer has it, and SFTTrainer would add tokens
    return OrderedTrainer(
        load_student(arguments),
        config,
        train_dataset=distilled.train_rows,
        processing_class=distilled.tokenizer,
        peft_config=adapter_config(arguments.model),
    )
