"""Scores of the student's answers on a task, at evaluations during training and at its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.models.utils import unwrap_model_for_generation

from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.metrics import NAMES
from amidmath.integrations.shared.task_settings import TaskScoreSettings
from amidmath.integrations.shared.tasks import Row, Task, TaskRows, read_rows
from amidmath.integrations.torch_loop.models import context_of
from amidmath.integrations.torch_loop.processes import in_order, own_rows, reshard
from amidmath.integrations.torch_loop.task_evaluation import Decoding, answer, encode_prompts, score

UNFINISHED = "unfinished"
"""The share of answers, in percent, that reached max_new_tokens without an end."""


@dataclass(frozen=True)
class TaskScores:
    """Lets a trainer's student answer some rows, and scores the answers.

    A row has one answer, of the task's first seed where the task samples. Modes and torch's random
    generators are left as they were, so that training goes on as if nothing had been asked. With
    several processes each answers its share of the rows; what is sampled, and rounding, depend on
    which rows make a batch.

    Args:
        task: the metrics, and where an answer stops.
        rows: what to answer.
        prompts: of the rows, token ids.
        tokenizer: the student's.
        max_new_tokens: the longest answer.
        about: the rows in words.
    """

    task: Task
    rows: list[Row]
    prompts: list[torch.Tensor]
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    about: str

    @classmethod
    def read(
        cls,
        settings: TaskScoreSettings,
        tokenizer: PreTrainedTokenizerBase,
        student: PreTrainedModel,
    ) -> "TaskScores | None":
        """What the settings name, read and found to fit the student; None if they name nothing.

        Raises:
            InputError: rows that cannot be read, or a prompt that leaves no room for an answer.
        """
        task = settings.task
        if task is None:
            return None
        with PartialState().main_process_first():  # the others find what it has read
            found = read_rows(
                str(settings.eval_task_dataset),
                task,
                limit=settings.eval_task_samples,
                split=settings.eval_task_split,
                flag="--eval_task_dataset",
            )
        prompts = encode_prompts(
            tokenizer,
            found.rows,
            style=settings.eval_task_prompt_style,
            flag="--eval_task_prompt_style",
        ).ids
        longest = settings.eval_task_max_new_tokens or task.max_new_tokens
        _check_room(found, prompts, longest, context_of(student))
        about = f"{task.name}, {len(found.rows):,} of {found.total:,} rows"
        return cls(task, found.rows, prompts, tokenizer, longest, about)

    def describe(self) -> str:
        """What is scored, in one line."""
        way = f"temperature {self.task.temperature:g}" if self.task.temperature > 0.0 else "greedy"
        names = ", ".join(self.task.metrics)
        return f"{self.about}: {names} of answers of up to {self.max_new_tokens} tokens ({way})"

    def of(self, trainer: Trainer) -> dict[str, float]:
        """The scores of a trainer's student as it is now, in percent, by metric.

        All processes must call it, and all are given the scores.
        """
        args: Any = trainer.args
        mine, is_own = own_rows(len(self.rows))
        how = Decoding(
            self.max_new_tokens,
            self.task.temperature,
            seeds=self.task.seeds[:1],
            batch_size=args.per_device_eval_batch_size,
        )
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gradient_checkpointing_kwargs=args.activation_checkpointing_kwargs,
        ) as student:
            prompts = [self.prompts[row] for row in mine]
            answers = answer(student, self.tokenizer, prompts, self.task, how)
            reshard(student)
        pairs = zip(answers.texts[0], answers.unfinished[0], strict=True)
        all_pairs = in_order([pair for pair, own in zip(pairs, is_own, strict=True) if own])
        scores = score([[text for text, _ in all_pairs]], self.rows, self.task)
        unfinished = sum(cut for _, cut in all_pairs) / len(all_pairs)
        means = {name: found.mean for name, found in scores.items()}
        return {**means, UNFINISHED: 100.0 * unfinished}


def in_words(scores: Mapping[str, float]) -> str:
    """Scores in one line."""
    named = [f"{NAMES[name]} {scores[name]:.2f}" for name in NAMES if name in scores]
    return f"{', '.join(named)} % ({scores[UNFINISHED]:.1f} % of the answers without an end)"


def with_prefix(prefix: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Scores by the names that they have in a line of the log."""
    return {f"{prefix}_{name}": value for name, value in scores.items()}


def _check_room(
    found: TaskRows, prompts: list[torch.Tensor], longest: int, context: int | None
) -> None:
    """Raise InputError unless each prompt and its answer fit the student's context."""
    for row, prompt in zip(found.rows, prompts, strict=True):
        if len(prompt) == 0:
            raise InputError(f"--eval_task_dataset: row {row.number} has a prompt without tokens")
        if context is not None and len(prompt) + longest > context:
            raise InputError(
                f"--eval_task_dataset: the prompt of row {row.number} has {len(prompt)} tokens, "
                f"which with {longest} new ones exceed the student's context of {context}: a "
                f"prompt may have {max(context - longest, 0)}. Lower --eval_task_max_new_tokens, "
                "or leave the row out"
            )
