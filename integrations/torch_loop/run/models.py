"""Students and teachers as the arguments describe them."""

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy
from trl import ModelConfig, get_peft_config, get_quantization_config

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG, TEACHER_FLAG
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.prepared import PreparedRows
from amidmath.integrations.common.teacher_cache.opening import open_for_run
from amidmath.integrations.common.teacher_cache.store import data_arguments
from amidmath.integrations.common.text.tokenizers import load_tokenizer
from amidmath.integrations.common.text.vocabularies import compare_vocabularies
from amidmath.integrations.torch_loop.models.model_files import (
    freeze_embeddings,
    load_model,
    logits_of_model,
)
from amidmath.integrations.torch_loop.settings.arguments import Arguments
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.teachers.cached import CachedTeacher
from amidmath.integrations.torch_loop.teachers.teachers import Teacher
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

GivenTeacher = PreTrainedModel | str | Callable[[AMiDTrainer], Teacher]


def adapter_config(model: ModelConfig) -> Any:
    """The adapter that the arguments describe; None where they ask for none.

    TRL gives PEFT the only name of several as an expression that whole module names must match.
    """
    config: Any = get_peft_config(model)
    names = getattr(config, "target_modules", None)
    if isinstance(names, str) and names != "all-linear" and re.fullmatch(r"[\w.]+", names):
        config.target_modules = {names}
    return config


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
    """The teacher as AMiDTrainer takes it; raises InputError where it does not fit."""
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
