"""The way from arguments to a trainer: student, teacher and data, checked to fit together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from datasets import Dataset
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG, TEACHER_FLAG
from amidmath.integrations.common.cli.ranges import STEPS_TO_LOOK_AT, untrained
from amidmath.integrations.common.data.splits import load_splits
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.batches import Batch, Batches, held_out
from amidmath.integrations.common.rows.from_dataset import prepare_rows
from amidmath.integrations.common.tasks.scores import TaskScores
from amidmath.integrations.common.text.tokenizers import load_tokenizer, padding, vocabulary_size
from amidmath.integrations.jax_loop.devices.mesh import make_mesh, row_shards
from amidmath.integrations.jax_loop.evaluation.quality import Judge
from amidmath.integrations.jax_loop.loss.objective import CrossEntropy
from amidmath.integrations.jax_loop.models.adapter_files import save_adapter
from amidmath.integrations.jax_loop.models.generation import end_tokens
from amidmath.integrations.jax_loop.models.lora import base_graph
from amidmath.integrations.jax_loop.models.model_files import LoadedModel, save_model
from amidmath.integrations.jax_loop.run.models import (
    check_context,
    check_temperature,
    check_tensor_axis,
    load_student,
    load_teacher,
    open_cache,
)
from amidmath.integrations.jax_loop.settings.arguments import Arguments
from amidmath.integrations.jax_loop.settings.config import JaxConfig
from amidmath.integrations.jax_loop.teachers.teachers import (
    BaseTeacher,
    NoTeacher,
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
        teacher, rows = open_cache(config, student, tokenizer, rows)
    elif config.teacher_is_base:
        base = base_graph(student.decoder)
        teacher = BaseTeacher(base, lambda: trainer.state.frozen)
    else:
        teacher = load_teacher(arguments, student, tokenizer, mesh)
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
