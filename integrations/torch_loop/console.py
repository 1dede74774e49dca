"""What a person sees: the header, the progress bar and the table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    SchedulerType,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from amidmath.integrations.torch_loop.arguments import Arguments
from amidmath.integrations.torch_loop.evaluation import Quality, evaluate
from amidmath.integrations.torch_loop.models import parameter_counts
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
    steps = config.max_steps
    if steps <= 0:
        updates = math.ceil(
            len(trainer.get_train_dataloader()) / config.gradient_accumulation_steps
        )
        steps = math.ceil(updates * config.num_train_epochs)
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
    console: Console,
    teacher: PreTrainedModel,
    batches: "DataLoader[Any]",
    models: Mapping[str, PreTrainedModel],
) -> dict[str, Quality]:
    """Held-out figures of the teacher and some models, with a bar meanwhile."""
    title = f"evaluating {' and '.join(models)}"
    bar = tqdm(batches, desc=title, unit="batch", leave=False, dynamic_ncols=True)
    return evaluate(models, teacher, bar, next(teacher.parameters()).device)


def print_table(console: Console, rows: Mapping[str, Quality], caption: str) -> None:
    """Held-out figures, one row a model."""
    table = Table(caption=caption, caption_justify="left")
    table.add_column("")
    for title in ("KL to teacher", "top-1 agreement", "perplexity"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, quality in rows.items():
        table.add_row(
            name, f"{quality.kl:.4f}", f"{quality.agreement:.4f}", f"{quality.perplexity:,.2f}"
        )
    console.print(table)


def warnings_about(teacher: Quality, student: Quality) -> Sequence[str]:
    """What the figures before training say against distilling at all."""
    if teacher.perplexity < student.perplexity:
        return ()
    return (
        f"the teacher's held-out perplexity ({teacher.perplexity:.2f}) is no better than the "
        f"student's ({student.perplexity:.2f}): distillation will pull the student towards a worse "
        "model. Train the teacher further, or choose another",
    )


class ProgressBar(TrainerCallback):
    """Steps done, time left, tokens a second, and the last logged loss.

    Args:
        title: stands before the bar.
    """

    def __init__(self, title: str) -> None:
        """Start without a bar."""
        self.title = title
        self.bar: Any = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Open the bar on the main process."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.title,
                unit="step",
                dynamic_ncols=True,
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss and the speed."""
        if self.bar is not None and logs and "loss" in logs:
            speed = f", {logs['tokens_per_second']:,.0f} tokens/s" if "num_tokens" in logs else ""
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.4f}{speed}")

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
