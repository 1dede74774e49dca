"""What a person sees first: the header, and the figures before training."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from rich.console import Console
from tqdm.auto import tqdm
from transformers import PreTrainedModel, SchedulerType

from amidmath.integrations.common.cli.facts import print_facts
from amidmath.integrations.common.cli.memory import EVALUATION, within_memory
from amidmath.integrations.common.evaluation.quality import Quality
from amidmath.integrations.common.rows.prepared import ROW
from amidmath.integrations.common.text.vocabularies import compared_in_words
from amidmath.integrations.torch_loop.devices.processes import own_batches
from amidmath.integrations.torch_loop.evaluation.quality import evaluate
from amidmath.integrations.torch_loop.models.model_files import (
    base_of,
    logits_of_model,
    parameter_counts,
)
from amidmath.integrations.torch_loop.models.states import gives_logits
from amidmath.integrations.torch_loop.run.dry_run import Shape, whole_in_words
from amidmath.integrations.torch_loop.settings.arguments import Arguments
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.teachers.cached import CachedTeacher
from amidmath.integrations.torch_loop.teachers.teachers import ModelTeacher, Teacher
from amidmath.integrations.torch_loop.training.collators import Carrying
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer


def print_header(console: Console, trainer: AMiDTrainer, arguments: Arguments) -> None:
    """What is about to happen, a line a fact, before anything slow begins."""
    script, config = arguments.script, arguments.config
    teacher = trainer.teacher.describe()
    if isinstance(trainer.teacher, ModelTeacher):
        teacher += f", {parameter_counts(trainer.teacher.model)[0] / 1e6:.1f}M parameters"
    student_size, trainable = parameter_counts(trainer.student)
    rows, held_out = len(trainer.train_rows), len(trainer.eval_rows)
    batch = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    steps = trainer.steps_to_train
    facts = {
        "method": f"{trainer.recipe.describe()}   (p teacher, q student, r assistant)",
        "meaning": trainer.recipe.conventions(),
        "sequences": trainer.policy.describe(),
        "teacher": teacher,
        "student": f"{arguments.student}, {student_size / 1e6:.1f}M parameters, "
        f"{trainable / 1e6:.1f}M of them trained",
        "data": f"{script.dataset_name}: {rows:,} sequences of up to {config.max_length} tokens, "
        f"{held_out:,} held out",
        "training": f"{steps:,} steps of {batch} sequences, learning rate {config.learning_rate:g}"
        f" ({SchedulerType(config.lr_scheduler_type).value})"
        + (", then the same with plain cross-entropy" if script.baseline else ""),
        "device": f"{config.device.type}, {torch.get_num_threads()} threads",
        "precision": precision_in_words(trainer.student, config),
        "output": f"{arguments.output_dir}/",
    }
    sides = [trainer.student, *([trainer.teacher.model] if trainer.teacher.model else [])]
    if any(gives_logits(base_of(side)) for side in sides):
        shapes = [Shape.of(side) for side in sides]
        size = config.per_device_train_batch_size * int(config.max_length or 0) * 4
        facts["logits"] = whole_in_words(shapes[0], shapes[1] if shapes[1:] else None, size)
    if trainer.keeps_activations:
        facts["checkpointing"] = (
            f"off: {type(base_of(trainer.student)).__name__} cannot compute activations again"
        )
    if trainer.task_scores is not None:
        facts["scores"] = trainer.task_scores.describe()
    print_facts(console, facts)


def precision_in_words(student: torch.nn.Module, config: AMiDConfig) -> str:
    """In which types a student's weights are and are multiplied."""
    trained, frozen = (
        sorted({_name(p.dtype) for p in student.parameters() if p.requires_grad is trains})
        for trains in (True, False)
    )
    computed = "bfloat16" if config.bf16 else "float16" if config.fp16 else ""
    found = f"trained weights and optimiser states in {' and '.join(trained)}"
    if frozen and frozen != trained:
        found += f", frozen weights in {' and '.join(frozen)}"
    if computed and [computed] != trained:
        found += f", multiplied in {computed}"
    if {"bfloat16", "float16"} & set(trained):
        found += " (--master_weights true keeps float32; so, most updates are lost in rounding)"
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def judge(
    trainer: AMiDTrainer, models: Mapping[str, PreTrainedModel], limit: int | None
) -> dict[str, Quality]:
    """Figures of some models, and of a teacher in memory, on the first held-out rows."""
    args, rows = trainer.args, trainer.eval_rows
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    batches = list(
        own_batches(
            cast("Any", rows),
            Carrying(trainer.plain_collator, (ROW,)),
            args.per_device_eval_batch_size,
        )
    )
    bar = tqdm(
        batches,
        desc=f"evaluating {' and '.join(models)}",
        unit="batch",
        leave=False,
        dynamic_ncols=True,
        disable=args.disable_tqdm or not trainer.is_world_process_zero(),
    )
    with within_memory("evaluating", EVALUATION):
        return evaluate(models, _judge_of(trainer), bar, args.device, trainer.vocab)


def caption(trainer: AMiDTrainer, results: Mapping[str, Quality]) -> str:
    """What the figures of the table are."""
    count, teacher = next(iter(results.values())).tokens, _judge_of(trainer)
    over = ""
    if isinstance(teacher, CachedTeacher):
        over = f", {teacher.rows.compared()}"
    elif isinstance(teacher, ModelTeacher):
        ours, theirs = logits_of_model(trainer.student), logits_of_model(teacher.model)
        over = compared_in_words(ours, theirs, trainer.vocab)
    return f"on {count:,} held-out tokens; KL in nats a token{over}"


def _judge_of(trainer: AMiDTrainer) -> Teacher | None:
    """What students are compared with on held-out rows: a model, a cache that has those rows."""
    teacher = trainer.teacher
    if isinstance(teacher, CachedTeacher):
        return teacher if teacher.rows.held_out is not None else None
    return teacher
