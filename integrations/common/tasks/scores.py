"""Scores of a student's answers on a task, at evaluations during training and at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.token_range import check_prompts
from amidmath.integrations.common.tasks.answers import Decoding, score
from amidmath.integrations.common.tasks.metrics import NAMES
from amidmath.integrations.common.tasks.prompts import encode_prompts
from amidmath.integrations.common.tasks.reading import TaskRows, read_rows
from amidmath.integrations.common.tasks.rows import Row
from amidmath.integrations.common.tasks.settings import TaskScoreSettings
from amidmath.integrations.common.tasks.tasks import Task

UNFINISHED = "unfinished"
"""The share of answers, in percent, that reached max_new_tokens without an end."""


@dataclass(frozen=True)
class TaskScores:
    """Prompts that a student answers while it trains, and how its answers are scored.

    A row has one answer, of the task's first seed where the task samples.

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
    prompts: list[list[int]]
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    about: str

    @classmethod
    def read(
        cls,
        settings: TaskScoreSettings,
        tokenizer: PreTrainedTokenizerBase,
        context: int | None,
        size: int,
    ) -> "TaskScores | None":
        """Those that the settings name, read and found to fit the student; None if they name none.

        Args:
            settings: the task and its rows.
            tokenizer: the student's.
            context: how many tokens the student can read; None for any number.
            size: how many tokens it has embeddings for.

        Raises:
            InputError: rows that cannot be read, or a prompt that leaves no room for an answer.
        """
        task = settings.task
        if task is None:
            return None
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
        numbers = [row.number for row in found.rows]
        try:
            check_prompts(prompts, numbers, {"student": size}, tokenizer)
        except InputError as error:
            raise InputError(f"--eval_task_dataset: {error}") from error
        longest = settings.eval_task_max_new_tokens or task.max_new_tokens
        _check_room(found, prompts, longest, context)
        about = f"{task.name}, {len(found.rows):,} of {found.total:,} rows"
        return cls(task, found.rows, prompts, tokenizer, longest, about)

    def describe(self) -> str:
        """The task and its metrics in one line."""
        way = f"temperature {self.task.temperature:g}" if self.task.temperature > 0.0 else "greedy"
        names = ", ".join(self.task.metrics)
        return f"{self.about}: {names} of answers of up to {self.max_new_tokens} tokens ({way})"

    def decoding(self, batch_size: int) -> Decoding:
        """How the student answers, so many prompts at a time."""
        return Decoding(
            self.max_new_tokens,
            self.task.temperature,
            seeds=self.task.seeds[:1],
            batch_size=batch_size,
        )

    def of(self, texts: Sequence[str], unfinished: Sequence[bool]) -> dict[str, float]:
        """The scores of an answer to each row, in percent, by metric.

        Args:
            texts: of the answers.
            unfinished: of each, whether it reached ``max_new_tokens`` without an end.
        """
        means = {name: of.mean for name, of in score([texts], self.rows, self.task).items()}
        return {**means, UNFINISHED: 100.0 * sum(unfinished) / len(unfinished)}


def in_words(scores: Mapping[str, float]) -> str:
    """Scores in one line."""
    named = [f"{NAMES[name]} {scores[name]:.2f}" for name in NAMES if name in scores]
    return f"{', '.join(named)} % ({scores[UNFINISHED]:.1f} % of the answers without an end)"


def with_prefix(prefix: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Scores by the names that they have in a line of the log."""
    return {f"{prefix}_{name}": value for name, value in scores.items()}


def _check_room(
    found: TaskRows, prompts: Sequence[Sequence[int]], longest: int, context: int | None
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
