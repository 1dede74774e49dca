"""From arguments to a trainer: student, teacher and data, checked to fit together."""

import copy
from collections.abc import Callable
from typing import Any

import datasets
from accelerate import PartialState
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging as transformers_logging
from trl import SFTTrainer, get_peft_config, get_quantization_config

from amidmath.integrations.shared.command_line import STUDENT_FLAG, TEACHER_FLAG
from amidmath.integrations.shared.data import load_splits
from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.policy_base import Source
from amidmath.integrations.shared.vocabularies import compare_vocabularies
from amidmath.integrations.torch_loop.arguments import Arguments
from amidmath.integrations.torch_loop.config import AMiDConfig
from amidmath.integrations.torch_loop.models import (
    freeze_embeddings,
    load_model,
    load_tokenizer,
)
from amidmath.integrations.torch_loop.prepared import PreparedRows, model_fingerprint
from amidmath.integrations.torch_loop.teacher_cache import CachedTeacher
from amidmath.integrations.torch_loop.teachers import Teacher
from amidmath.integrations.torch_loop.trainer import AMiDTrainer

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
    fewer_bars(len(train_rows))
    tokenizer = load_tokenizer(
        STUDENT_FLAG, arguments.student, revision=arguments.model.model_revision
    )
    student = load_student(arguments)
    trainer = AMiDTrainer(
        student,
        load_teacher(arguments, student, tokenizer),
        config,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(arguments.model),
    )
    trainer.get_train_dataloader()
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.optimizer = trainer.lr_scheduler = None  # train makes them anew
    return trainer


def load_student(arguments: Arguments) -> PreTrainedModel:
    """The student as the arguments describe it."""
    model = arguments.model
    settings = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype or "float32",
        "quantization_config": get_quantization_config(model),
    }
    student = load_model(STUDENT_FLAG, arguments.student, **(settings | arguments.model_init))
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
        student.config.get_text_config().vocab_size,
        teacher.config.get_text_config().vocab_size,
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


def fewer_bars(rows: int) -> None:
    """No bars for loading, nor for preparing rows where that takes seconds."""
    if rows < ROWS_WITHOUT_BARS:
        datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()


def _open_cache(arguments: Arguments, trainer: AMiDTrainer) -> CachedTeacher:
    """The cache of the trainer's rows, which then carry their numbers."""
    config = arguments.config
    if trainer.policy.sources != {Source.DATASET}:
        raise InputError(
            f"--policy {trainer.policy.name} needs a teacher that can judge new sequences; a cache "
            "knows the dataset's rows only: leave out --teacher_cache, or give --policy off_policy"
        )
    if config.eval_strategy != IntervalStrategy.NO:
        raise InputError(
            f"--eval_strategy {IntervalStrategy(config.eval_strategy).value}: a cache knows the "
            "training rows only; leave it out with --teacher_cache"
        )
    if "temperature" in trainer.recipe.schedules.by_name:
        raise InputError(
            "--schedule temperature: a cache was taken at one temperature; leave one of them out"
        )
    prepared = PreparedRows(trainer.train_rows, trainer.plain_collator, trainer.tokenizer)
    name = arguments.teacher
    expect = {
        **prepared.fingerprints,
        "model": None if name is None else model_fingerprint(name, config.teacher_model_revision),
    }
    ours = trainer.student.config.get_text_config().vocab_size
    cached = CachedTeacher.open(
        str(config.teacher_cache),
        expect,
        rows=len(trainer.train_rows),
        temperature=float(trainer.recipe.params["temperature"]),
        common=ours if config.vocab == "common" else None,
    )
    theirs = cached.store.header.vocabulary
    if ours != theirs and config.vocab == "strict":
        raise InputError(
            f"the student gives {ours} logits and the cached teacher {theirs}: one is padded. "
            "--vocab common compares the tokens that both have, and the others as one"
        )
    trainer.train_dataset = prepared.numbered
    return cached


def cross_entropy_trainer(distilled: AMiDTrainer, arguments: Arguments) -> SFTTrainer:
    """A trainer that differs in the loss alone: same start, rows, order, steps and optimiser."""
    config = copy.copy(arguments.config)
    config.dataset_kwargs = {"skip_prepare_dataset": True}  # the rows are prepared already
    config.save_strategy, config.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    config.load_best_model_at_end = config.push_to_hub = False
    return SFTTrainer(
        load_student(arguments),
        config,
        train_dataset=distilled.train_rows,
        processing_class=distilled.tokenizer,
        peft_config=get_peft_config(arguments.model),
    )
