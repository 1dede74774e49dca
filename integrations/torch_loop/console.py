"""What a person sees: the header, the progress bar and the table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    SchedulerType,
)

from amidmath.integrations.torch_loop.arguments import Arguments
from amidmath.integrations.torch_loop.evaluation import Quality, evaluate
from amidmath.integrations.torch_loop.models import parameter_counts
from amidmath.integrations.torch_loop.processes import own_batches
from amidmath.integrations.torch_loop.teachers import ModelTeacher
from amidmath.integrations.torch_loop.trainer import AMiDTrainer


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
    precision = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
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
        "device": f"{config.device.type}, {precision}, {torch.get_num_threads()} threads",
        "output": f"{arguments.output_dir}/",
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"[bold]{name:>{width}}[/bold]  {value}", highlight=False, soft_wrap=True)
    console.print()


def judge(
    trainer: AMiDTrainer, models: Mapping[str, PreTrainedModel], limit: int | None
) -> dict[str, Quality]:
    """Figures of the teacher, if it is in memory, and some models, on the first held-out rows."""
    args, rows = trainer.args, trainer.eval_rows
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    batches = list(
        own_batches(cast("Any", rows), trainer.plain_collator, args.per_device_eval_batch_size)
    )
    bar = tqdm(
        batches,
        desc=f"evaluating {' and '.join(models)}",
        unit="batch",
        leave=False,
        dynamic_ncols=True,
        disable=args.disable_tqdm or not trainer.is_world_process_zero(),
    )
    return evaluate(models, trainer.teacher.model, bar, args.device)


def print_table(console: Console, rows: Mapping[str, Quality], caption: str) -> None:
    """Held-out figures, one row a model."""
    table = Table(caption=caption, caption_justify="left")
    table.add_column("")
    for title in ("KL to teacher", "top-1 agreement", "perplexity"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, quality in rows.items():
        table.add_row(
            name, _shown(quality.kl), _shown(quality.agreement), f"{quality.perplexity:,.2f}"
        )
    console.print(table)


def warnings_about(figures: Mapping[str, Quality]) -> Sequence[str]:
    """What the figures before training say against distilling at all."""
    teacher, student = figures.get("teacher"), figures["student before"]
    if teacher is None or teacher.perplexity < student.perplexity:
        return ()
    return (
        f"the teacher's held-out perplexity ({teacher.perplexity:.2f}) is no better than the "
        f"student's ({student.perplexity:.2f}): distillation will pull the student towards a worse "
        "model. Train the teacher further, or choose another",
    )


def _shown(figure: float) -> str:
    return "-" if math.isnan(figure) else f"{figure:.4f}"
