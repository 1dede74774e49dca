"""The task, if any, on which a student's answers are scored while it trains."""

from dataclasses import dataclass, field

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.tasks.prompts import PROMPT_STYLE_HELP, PROMPT_STYLES
from amidmath.integrations.common.tasks.tasks import TASKS, Task

ANSWERING_TASKS = tuple(name for name, task in TASKS.items() if task.metrics)


@dataclass
class TaskScoreSettings:
    """A task on whose rows the student answers at every evaluation, and after the last step."""

    eval_task: str | None = field(
        default=None,
        metadata={
            "help": "Score the student's answers at every evaluation and after the last step: the "
            "format of --eval_task_dataset, as --task of the evaluation scripts.",
            "choices": list(ANSWERING_TASKS),
        },
    )
    eval_task_dataset: str | None = field(
        default=None,
        metadata={
            "help": "The rows to answer: .jsonl, .json, .csv, .tsv, .txt or .parquet file, folder "
            "or hub name."
        },
    )
    eval_task_split: str = field(
        default="test", metadata={"help": "Split of such a dataset that has several."}
    )
    eval_task_samples: int = field(
        default=100, metadata={"help": "Answer the first so many rows of it only."}
    )
    eval_task_max_new_tokens: int | None = field(
        default=None, metadata={"help": "The longest answer. Default: the task's."}
    )
    eval_task_prompt_style: str = field(
        default="published",
        metadata={"help": PROMPT_STYLE_HELP, "choices": list(PROMPT_STYLES)},
    )

    def __post_init__(self) -> None:
        """Check the values; raises InputError."""
        for name, other in (
            ("eval_task", "eval_task_dataset"),
            ("eval_task_dataset", "eval_task"),
        ):
            if getattr(self, name) and not getattr(self, other):
                raise InputError(f"--{name} {getattr(self, name)}: give --{other} too")
        if self.eval_task is not None and self.eval_task not in ANSWERING_TASKS:
            raise InputError(
                f"--eval_task must be one of {', '.join(ANSWERING_TASKS)}, got {self.eval_task!r}"
            )
        for name in ("eval_task_samples", "eval_task_max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1, got {value}")

    @property
    def task(self) -> Task | None:
        """The task that is named, if any."""
        return None if self.eval_task is None else TASKS[self.eval_task]
