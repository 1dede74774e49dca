"""The header of a run: what is about to happen."""

import torch
from rich.console import Console
from transformers import SchedulerType

from amidmath.integrations.common.cli.facts import print_facts
from amidmath.integrations.torch_loop.models.model_files import (
    base_of,
    parameter_counts,
)
from amidmath.integrations.torch_loop.models.states import gives_logits
from amidmath.integrations.torch_loop.run.memory import whole_in_words
from amidmath.integrations.torch_loop.run.model_shape import Shape
from amidmath.integrations.torch_loop.settings.arguments import Arguments
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.teachers.teachers import ModelTeacher
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer


def print_header(console: Console, trainer: AMiDTrainer, arguments: Arguments) -> None:
    """Print what is about to happen, a line a fact, before anything slow begins."""
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
