"""From arguments to a trainer: student, teacher and data, checked to fit together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from datasets import Dataset
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG, TEACHER_FLAG
from amidmath.integrations.common.cli.ranges import STEPS_TO_LOOK_AT, untrained
from amidmath.integrations.common.data.splits import load_splits
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.evaluation.task_scores import TaskScores
from amidmath.integrations.common.rows.batches import Batch, Batches, held_out
from amidmath.integrations.common.rows.from_dataset import prepare_rows
from amidmath.integrations.common.rows.prepared import PreparedRows
from amidmath.integrations.common.teacher_cache.cached_rows import open_for_run
from amidmath.integrations.common.text.tokenizers import load_tokenizer, padding, vocabulary_size
from amidmath.integrations.common.text.vocabularies import compare_vocabularies
from amidmath.integrations.jax_loop.devices.mesh import make_mesh, place, row_shards
from amidmath.integrations.jax_loop.evaluation.quality import Judge
from amidmath.integrations.jax_loop.loss.objective import CrossEntropy
from amidmath.integrations.jax_loop.models.adapter_files import save_adapter
from amidmath.integrations.jax_loop.models.families import family
from amidmath.integrations.jax_loop.models.generation import end_tokens
from amidmath.integrations.jax_loop.models.lora import adapted, attach, base_graph
from amidmath.integrations.jax_loop.models.model_files import LoadedModel, load_model, save_model
from amidmath.integrations.jax_loop.settings.arguments import Arguments, JaxConfig
from amidmath.integrations.jax_loop.teachers.teachers import (
    BaseTeacher,
    CachedTeacher,
    ModelTeacher,
    NoTeacher,
    Teacher,
)
from amidmath.integrations.jax_loop.training.optimizers import learning_rate
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer

Say = Callable[[str], object]


@dataclass(frozen=True)
class Prepared:
    """All that a run is made of.

    Args:
        trainer: at its first step.
        student: as it was loaded; the trainer has its weights now.
        tokenizer: the student's.
        rows: the prepared training rows and held-out rows.
    """

    trainer: JaxTrainer
    student: LoadedModel
    tokenizer: PreTrainedTokenizerBase
    rows: tuple[Dataset, Dataset]

    def held_out(self, limit: int | None) -> Iterator[Batch]:
        """Batches of the held-out rows, or of the first of them."""
        rows, trainer = self.rows[1], self.trainer
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        return _once(rows, trainer.config, trainer.mesh, trainer.batches.pad)

    @cached_property
    def judge(self) -> Judge:
        """Compares models with the teacher."""
        return Judge(self.trainer.teacher, self.trainer.mesh, self.trainer.config.vocab)

    def save(self, folder: Path, arguments: Arguments) -> None:
        """Write the student as it is now: a whole model, or its adapter.

        Raises:
            DiskFullError: there is no room.
        """
        decoder, config = self.trainer.student, arguments.config
        if not config.use_peft:
            save_model(folder, replace(self.student, decoder=decoder), self.tokenizer)
            return
        kind, revision = self.student.hf_config.model_type, arguments.script.model_revision
        save_adapter(folder, decoder, kind, arguments.student, revision, config, self.tokenizer)


def prepare(arguments: Arguments, say: Say, devices: Sequence[Any] | None = None) -> Prepared:
    """Load everything and find out whether it fits together, up to the first optimiser step.

    Args:
        arguments: of the run.
        say: takes what should be known of the rows.
        devices: to train on; None for all.

    Raises:
        InputError: something does not.
    """
    script, config = arguments.script, arguments.config
    mesh = make_mesh(config.mesh, devices)
    raw = load_splits(script, config.dataset_text_field, config.seed)
    tokenizer = load_tokenizer(STUDENT_FLAG, arguments.student, revision=script.model_revision)
    sizes = _sizes(arguments)
    rows = tuple(
        rows_of(part, name, tokenizer, config, say, sizes)
        for name, part in zip(("train", "eval"), raw, strict=True)
    )
    student = load_student(arguments, mesh)
    check_context(config.max_length, student=student)
    check_temperature(config, student)
    check_tensor_axis(config, mesh.shape["tensor"], student.decoder.config.vocabulary)
    asked = TaskScores.read(
        arguments.scores, tokenizer, student.decoder.config.context, sizes["student"]
    )
    if config.teacher_cache is not None:
        teacher, rows = _open_cache(config, student, tokenizer, rows)
    elif config.teacher_is_base:
        base = base_graph(student.decoder)
        teacher = BaseTeacher(base, lambda: trainer.state.frozen)
    else:
        teacher = _load_teacher(arguments, student, tokenizer, mesh)
    ends = end_tokens(student, tokenizer)
    pad = padding(tokenizer, ends, min(sizes.values()))
    trainer = JaxTrainer(
        student.decoder,
        teacher,
        config,
        _batches(rows[0], config, mesh, pad),
        partial(_once, rows[1], config, mesh, pad),
        mesh,
        ends,
        task_scores=asked,
    )
    rates = map(learning_rate(config, trainer.total), range(min(trainer.total, STEPS_TO_LOOK_AT)))
    if trainer.total <= STEPS_TO_LOOK_AT and not any(
        bool(jnp.asarray(rate) > 0.0) for rate in rates
    ):
        raise InputError(untrained(config, trainer.total))
    return Prepared(trainer, student, tokenizer, (rows[0], rows[1]))


def cross_entropy_trainer(distilled: Prepared, arguments: Arguments) -> JaxTrainer:
    """A trainer that differs in the loss alone: same start, rows, order, steps and optimiser."""
    trainer = distilled.trainer
    unset: dict[str, Any] = dict.fromkeys(
        (
            *("method_kwargs", "divergence", "divergence_kwargs", "order", "alpha", "lam"),
            *("student_fraction", "loss_eps", "replay_ratio", "init_threshold"),
        )
    )
    config = replace(
        arguments.config,
        **unset,
        method="kl",
        schedule=[],
        policy="off_policy",
        label_weight=0.0,
        eval_strategy="no",
        eval_on_start=False,
        save_strategy="no",
    )
    return JaxTrainer(
        load_student(arguments, trainer.mesh).decoder,
        NoTeacher(),
        config,
        trainer.batches,
        trainer.held_out,
        trainer.mesh,
        trainer.rollouts.end_tokens,
        objective=CrossEntropy(),
    )


def rows_of(
    part: Dataset,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    config: JaxConfig,
    say: Say,
    sizes: Mapping[str, int],
) -> Dataset:
    """The tokenised rows of the split that messages call ``name``; see ``prepare_rows``."""
    pairs = "any" not in config.recipe().method.sources
    return prepare_rows(part, tokenizer, config, name=name, pairs=pairs, say=say, sizes=sizes)


def _sizes(arguments: Arguments) -> dict[str, int]:
    """How many tokens the models that read rows have embeddings for, by their roles."""
    script, config = arguments.script, arguments.config
    found = {"student": vocabulary_size(STUDENT_FLAG, arguments.student, script.model_revision)}
    if config.teacher_cache is None and not config.teacher_is_base:
        name, revision = str(arguments.teacher), config.teacher_model_revision
        found["teacher"] = vocabulary_size(TEACHER_FLAG, name, revision)
    return found


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


def _load_teacher(
    arguments: Arguments, student: LoadedModel, tokenizer: PreTrainedTokenizerBase, mesh: Mesh
) -> Teacher:
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


def _open_cache(
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


def _batches(rows: Dataset, config: JaxConfig, mesh: Mesh, pad: int) -> Batches:
    """Of the training rows."""
    return Batches(
        rows,
        batch_size=config.per_device_train_batch_size * row_shards(mesh),
        accumulation=config.gradient_accumulation_steps,
        length=config.max_length if config.packing or config.generates else None,
        pad=pad,
        seed=config.seed,
        order=config.train_sampling_strategy,
    )


def _once(rows: Dataset, config: JaxConfig, mesh: Mesh, pad: int) -> Iterator[Batch]:
    """The held-out rows once."""
    return held_out(
        rows,
        batch_size=config.per_device_eval_batch_size * row_shards(mesh),
        pad=pad,
    )
