"""Students and teachers as the arguments describe them, on the mesh."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from datasets import Dataset
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG, TEACHER_FLAG
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.prepared import PreparedRows
from amidmath.integrations.common.teacher_cache.opening import open_for_run
from amidmath.integrations.common.text.tokenizers import load_tokenizer
from amidmath.integrations.common.text.vocabularies import compare_vocabularies
from amidmath.integrations.jax_loop.devices.mesh import place
from amidmath.integrations.jax_loop.models.families import family
from amidmath.integrations.jax_loop.models.lora import adapted, attach
from amidmath.integrations.jax_loop.models.model_files import LoadedModel, load_model
from amidmath.integrations.jax_loop.settings.arguments import Arguments
from amidmath.integrations.jax_loop.settings.config import JaxConfig
from amidmath.integrations.jax_loop.teachers.cached import CachedTeacher
from amidmath.integrations.jax_loop.teachers.teachers import ModelTeacher, Teacher


def as_cached(rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: JaxConfig) -> PreparedRows:
    """Tokenised rows as a cache numbers them and knows them again."""
    apart = config.packing and config.packing_strategy == "bfd"
    return PreparedRows(rows, tokenizer, padding_free=apart)


def load_student(arguments: Arguments, mesh: Mesh) -> LoadedModel:
    """The student on the mesh: weights in float32, or an adapter beside weights that stay."""
    config, computing = arguments.config, computing_dtype(arguments.config)
    loaded = load_model(
        STUDENT_FLAG,
        arguments.student,
        revision=arguments.script.model_revision,
        dtype=computing,
        param_dtype=computing if config.use_peft else jnp.float32,
        remat=config.gradient_checkpointing,
        sharding_of=partial(place, mesh),
    )
    loaded.decoder.mesh = mesh
    if config.use_peft:
        if loaded.adapts is not None:
            raise InputError(
                f"--use_peft: {arguments.student} is an adapter of {loaded.adapts}, and one on top "
                "of it could not be saved: merge it into its base first (peft's "
                "merge_and_unload), or leave --use_peft out"
            )
        tensors = adapted(family(loaded.hf_config.model_type), config.lora_target_modules)
        attach(
            loaded.decoder,
            tensors,
            config.lora_r,
            config.lora_scale,
            config.seed,
            sharding_of=partial(place, mesh),
        )
    return loaded


def computing_dtype(config: JaxConfig) -> Any:
    """bfloat16 where it is asked for, or where nothing is said and the device is no CPU."""
    wanted = jax.default_backend() != "cpu" if config.bf16 is None else config.bf16
    return jnp.bfloat16 if wanted else jnp.float32


def check_context(max_length: int, **models: LoadedModel) -> None:
    """Raise InputError if a sequence of max_length tokens does not fit a model's context."""
    for role, model in models.items():
        context = model.decoder.config.context
        if max_length > context:
            raise InputError(
                f"--max_length {max_length} is longer than the {role}'s context of {context} "
                f"tokens: set --max_length {context} or less"
            )


def check_tensor_axis(config: JaxConfig, size: int, logits: int) -> None:
    """Raise InputError unless the loss can be taken by parts of the vocabulary.

    Args:
        config: of the run.
        size: devices along the mesh's tensor axis.
        logits: how many the student gives.
    """
    if size > 1 and config.teacher_cache is not None:
        raise InputError(
            f"--mesh {config.mesh}: a cache's lists cannot be compared with a part of the "
            "vocabulary; leave tensor out of --mesh, or give --teacher_model_name_or_path in place "
            "of --teacher_cache"
        )
    if logits % size:
        raise InputError(
            f"--mesh {config.mesh}: {logits} logits cannot be shared by the {size} devices along "
            "tensor, which must divide them; leave tensor out of --mesh"
        )


def check_temperature(config: JaxConfig, *models: LoadedModel) -> None:
    """Raise InputError where a temperature that changes cannot be had without compiling anew."""
    if "temperature" not in config.recipe().schedules.by_name:
        return
    if config.label_weight:
        raise InputError(
            "--schedule temperature and --label_weight: labels are learned at temperature 1, and "
            "one set of logits serves both; leave one of them out"
        )
    if any(model.decoder.head().softcap for model in models):
        raise InputError(
            "--schedule temperature: the models cap their logits, which a temperature that "
            "changes would do before the cap; give a fixed --temperature"
        )


def load_teacher_model(name: str, config: JaxConfig, mesh: Mesh) -> LoadedModel:
    """The teacher's model on the mesh; its context has room for the rows."""
    computing = computing_dtype(config)
    model = load_model(
        TEACHER_FLAG,
        name,
        revision=config.teacher_model_revision,
        dtype=computing,
        param_dtype=computing if config.teacher_dtype == "auto" else config.teacher_dtype,
        sharding_of=partial(place, mesh),
    )
    model.decoder.mesh = mesh
    check_context(config.max_length, teacher=model)
    return model


def load_teacher(
    arguments: Arguments, student: LoadedModel, tokenizer: PreTrainedTokenizerBase, mesh: Mesh
) -> Teacher:
    """The teacher in memory, whose tokens are the student's; raises InputError otherwise."""
    config, name = arguments.config, str(arguments.teacher)
    theirs = load_tokenizer(TEACHER_FLAG, name, revision=config.teacher_model_revision)
    model = load_teacher_model(name, config, mesh)
    check_temperature(config, model)
    sizes = (student.decoder.config.vocabulary, model.decoder.config.vocabulary)
    found = compare_vocabularies(tokenizer.get_vocab(), theirs.get_vocab(), *sizes, config.vocab)
    if found.common < min(sizes):
        raise InputError(
            f"student and teacher share their first {found.common:,} tokens only, and both have "
            f"logits for {min(sizes):,}; the loss from hidden states in JAX needs all that both "
            "have logits for: cache the teacher (cache_teacher.py), which leaves others out"
        )
    if sizes[0] != sizes[1] and mesh.shape["tensor"] > 1:
        raise InputError(
            f"--vocab {config.vocab} with {sizes[0]} and {sizes[1]} logits cannot be spread over a "
            "tensor axis: leave it out of --mesh"
        )
    return ModelTeacher(model.decoder, name)


def open_cache(
    config: JaxConfig,
    student: LoadedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: tuple[Dataset, ...],
) -> tuple[Teacher, tuple[Dataset, ...]]:
    """The cache that the rows are in, and the rows with their numbers."""
    train, other = (as_cached(part, tokenizer, config) for part in rows)
    cached = open_for_run(
        config,
        train,
        other,
        recipe=config.recipe(),
        policy=config.data_policy(),
        eval_strategy=config.eval_strategy,
        logits=student.decoder.config.vocabulary,
    )
    return CachedTeacher(cached), cached.number(train, other)
