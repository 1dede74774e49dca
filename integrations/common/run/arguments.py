"""The arguments of a distillation, as far as every loop has them, and what follows from them."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG, TEACHER_FLAG
from amidmath.integrations.common.policies.base import Policy
from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.run.model_card import Card
from amidmath.integrations.common.run.record import Record
from amidmath.integrations.common.tasks.settings import TaskScoreSettings


class Script(Protocol):
    """The data, and what is reported of a run; see ``HeldOutSettings`` and TRL's arguments."""

    dataset_name: str | None
    eval_dataset_name: str | None
    max_eval_samples: int | None
    baseline: bool
    dry_run: bool


class Config(Protocol):
    """Training and loss."""

    teacher_cache: str | None
    overwrite_output_dir: bool
    resume_from_checkpoint: str | None

    def recipe(self) -> Recipe:
        """The loss."""
        ...

    def data_policy(self) -> Policy:
        """The data policy."""
        ...


class RunArguments(Protocol):
    """The arguments of one run, whichever loop runs it.

    Attributes:
        student: hub name or folder of the student.
        teacher: hub name or folder of the teacher, if one is named.
        output_dir: the run folder.
        script: data and reporting.
        config: training and loss.
        scores: the task on which answers are scored.
    """

    @property
    def student(self) -> str: ...  # noqa: D102
    @property
    def teacher(self) -> str | None: ...  # noqa: D102
    @property
    def output_dir(self) -> Path: ...  # noqa: D102
    @property
    def script(self) -> Script: ...  # noqa: D102
    @property
    def config(self) -> Config: ...  # noqa: D102
    @property
    def scores(self) -> TaskScoreSettings: ...  # noqa: D102


def record_of(
    arguments: RunArguments,
    groups: Mapping[str, Mapping[str, Any]],
    libraries: Sequence[str],
    processes: int,
) -> Record:
    """The run, for run.json and to be compared with what a folder holds.

    Args:
        arguments: of the run.
        groups: all of them by group, as run.json has them.
        libraries: whose versions it says.
        processes: how many train together.
    """
    script, config = arguments.script, arguments.config
    return Record(
        arguments=groups,
        reads={
            STUDENT_FLAG: arguments.student,
            TEACHER_FLAG: arguments.teacher,
            "--teacher_cache": config.teacher_cache,
            "--dataset_name": script.dataset_name,
            "--eval_dataset_name": script.eval_dataset_name,
            "--eval_task_dataset": arguments.scores.eval_task_dataset,
        },
        facts={
            "loss": config.recipe().describe(),
            "meaning": config.recipe().conventions(),
            "versions": _versions(libraries),
        },
        processes=processes,
    )


def card_of(
    arguments: RunArguments,
    figures: Mapping[str, Mapping[str, float]],
    libraries: Sequence[str],
    *,
    steps: int,
    sequences_a_step: int,
    tokens: int | None,
    has_adapter: bool,
) -> Card:
    """The model card of the student of a run that has ended.

    Args:
        arguments: of the run.
        figures: of held-out text, by model.
        libraries: whose versions it says.
        steps: optimiser steps that were made.
        sequences_a_step: how many sequences each, on all devices.
        tokens: how many the student was trained on; None if they were not counted.
        has_adapter: the student is an adapter.
    """
    config, recipe = arguments.config, arguments.config.recipe()
    return Card(
        name=arguments.output_dir.name or "student",
        student=arguments.student,
        teacher=arguments.teacher
        or arguments.config.teacher_cache
        or "the student's own base model",
        data=str(arguments.script.dataset_name),
        method=recipe.method.name,
        loss=recipe.describe(),
        conventions=recipe.conventions(),
        sequences=config.data_policy().describe(),
        steps=steps,
        sequences_a_step=sequences_a_step,
        tokens=tokens,
        results=figures,
        versions=_versions(libraries),
        has_adapter=has_adapter,
    )


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    return {name: version(name) for name in libraries}
