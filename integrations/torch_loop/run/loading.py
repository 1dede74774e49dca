"""From arguments to a trainer: student, teacher and data, checked to fit together."""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any, cast

import datasets
import torch
from accelerate import PartialState
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import ModelConfig, SFTTrainer, get_peft_config, get_quantization_config

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG, TEACHER_FLAG
from amidmath.integrations.common.cli.ranges import STEPS_TO_LOOK_AT, untrained
from amidmath.integrations.common.data.splits import load_splits
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.evaluation.task_scores import UNFINISHED, TaskScores
from amidmath.integrations.common.rows.prepared import PreparedRows
from amidmath.integrations.common.teacher_cache.cached_rows import open_for_run
from amidmath.integrations.common.teacher_cache.store import data_arguments
from amidmath.integrations.common.text.tokenizers import load_tokenizer
from amidmath.integrations.common.text.vocabularies import compare_vocabularies
from amidmath.integrations.torch_loop.models.model_files import (
    context_of,
    embeddings_of,
    freeze_embeddings,
    load_model,
    logits_of_model,
)
from amidmath.integrations.torch_loop.settings.arguments import Arguments
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.teachers.cached import CachedTeacher
from amidmath.integrations.torch_loop.teachers.teachers import Teacher
from amidmath.integrations.torch_loop.training.row_order import OrderedTrainer
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

# Preparing fewer rows than this takes seconds, and a dozen bars would hide the header.
ROWS_WITHOUT_BARS = 20_000

GivenTeacher = PreTrainedModel | str | Callable[[AMiDTrainer], Teacher]


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


def adapter_config(model: ModelConfig) -> Any:
    """The adapter that the arguments describe; None where they ask for none.

    TRL gives PEFT the only name of several as an expression that whole module names must match.
    """
    config: Any = get_peft_config(model)
    names = getattr(config, "target_modules", None)
    if isinstance(names, str) and names != "all-linear" and re.fullmatch(r"[\w.]+", names):
        config.target_modules = {names}
    return config


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


def load_student(arguments: Arguments) -> PreTrainedModel:
    """The student as the arguments describe it."""
    model = arguments.model
    settings = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype or "float32",
        "quantization_config": get_quantization_config(model),
    }
    settings |= arguments.model_init
    trains_all = not model.use_peft and settings["quantization_config"] is None
    keeps_wide = trains_all and arguments.config.master_weights
    if keeps_wide and settings["dtype"] != "auto":
        settings["dtype"] = "float32"
    student = load_model(STUDENT_FLAG, arguments.student, **settings)
    if keeps_wide and student.dtype in (torch.bfloat16, torch.float16):
        cast("torch.nn.Module", student).float()
    if getattr(student, "_hf_peft_config_loaded", False):
        raise InputError(
            f"{STUDENT_FLAG}: {arguments.student} is an adapter, which would not be trained, or be "
            "dropped under a new one: merge it into its base first (peft's merge_and_unload)"
        )
    if arguments.config.freeze_embeddings:
        freeze_embeddings(student)
    return student


def load_teacher(
    arguments: Arguments, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> GivenTeacher:
    """What AMiDTrainer takes as the teacher; raises InputError where it does not fit."""
    config = arguments.config
    if config.teacher_is_base:
        return "base"
    if config.teacher_cache is not None:
        return lambda trainer: _open_cache(arguments, trainer)
    name = str(arguments.teacher)
    theirs = load_tokenizer(TEACHER_FLAG, name, revision=config.teacher_model_revision)
    teacher = load_teacher_model(name, config)
    compare_vocabularies(
        tokenizer.get_vocab(),
        theirs.get_vocab(),
        logits_of_model(student),
        logits_of_model(teacher),
        config.vocab,
    )
    return teacher


def load_teacher_model(name: str, config: AMiDConfig) -> PreTrainedModel:
    """The teacher as the arguments describe it."""
    quantization: dict[str, Any] = {}
    if config.teacher_load_in_8bit or config.teacher_load_in_4bit:
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=config.teacher_load_in_8bit, load_in_4bit=config.teacher_load_in_4bit
        )
    return load_model(
        TEACHER_FLAG,
        name,
        revision=config.teacher_model_revision,
        dtype=config.teacher_dtype,
        **quantization,
    )


def bars_for_many(rows: int) -> None:
    """Bars for preparing rows where that takes more than seconds."""
    if rows >= ROWS_WITHOUT_BARS:
        datasets.enable_progress_bars()


def _open_cache(arguments: Arguments, trainer: AMiDTrainer) -> CachedTeacher:
    """The cache of the trainer's rows, which then carry their numbers."""
    config = arguments.config
    train, held_out = (
        PreparedRows(
            rows, trainer.tokenizer, getattr(trainer.plain_collator, "padding_free", False)
        )
        for rows in (trainer.train_rows, trainer.eval_rows)
    )
    cached = open_for_run(
        config,
        train,
        held_out,
        recipe=trainer.recipe,
        policy=trainer.policy,
        eval_strategy=IntervalStrategy(config.eval_strategy).value,
        logits=logits_of_model(trainer.student),
        arguments=data_arguments(arguments.script, config),
    )
    trainer.train_dataset, trainer.eval_dataset = cached.number(train, held_out)
    return CachedTeacher(cached)


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
