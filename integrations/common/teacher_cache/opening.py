"""A teacher's cache opened for a run, and held against what the run asks of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.base import Policy, Source
from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.recipe.settings import TeacherSettings
from amidmath.integrations.common.rows.prepared import PreparedRows, model_fingerprint
from amidmath.integrations.common.teacher_cache.cached_rows import CachedRows


def open_for_run(
    settings: TeacherSettings,
    train: PreparedRows,
    held_out: PreparedRows,
    *,
    recipe: Recipe,
    policy: Policy,
    eval_strategy: str,
    logits: int,
    arguments: Mapping[str, Any] | None = None,
) -> CachedRows:
    """The cache that ``--teacher_cache`` names, if it fits a run; with held-out rows if it has any.

    Args:
        settings: which cache, which teacher, how vocabularies are compared.
        train: the prepared training rows.
        held_out: the prepared held-out rows.
        recipe: the loss.
        policy: where sequences come from.
        eval_strategy: when the run evaluates; "no" for never.
        logits: how many the student gives.
        arguments: the run's (``data_arguments``), to say which of them made other rows.

    Raises:
        InputError: it does not fit.
    """
    if policy.sources != {Source.DATASET}:
        raise InputError(
            f"--policy {policy.name} needs a teacher that can judge new sequences; a cache "
            "knows the dataset's rows only: leave out --teacher_cache, or give --policy off_policy"
        )
    if "temperature" in recipe.schedules.by_name:
        raise InputError(
            "--schedule temperature: a cache was taken at one temperature; leave one of them out"
        )
    folder = Path(str(settings.teacher_cache))
    name = settings.teacher_model_name_or_path
    model = None if name is None else model_fingerprint(name, settings.teacher_model_revision)
    cached = CachedRows.open(
        folder,
        {**train.fingerprints, "model": model},
        rows=len(train.rows),
        temperature=float(recipe.params["temperature"]),
        arguments=arguments,
    )
    cached = cached.for_student(logits, settings.vocab).with_held_out(held_out, arguments)
    if cached.held_out is None and eval_strategy != "no":
        raise InputError(
            f"--eval_strategy {eval_strategy}: the cache {folder} has no held-out rows. The "
            "cache_teacher.py command that made it adds them with --held_out; or leave "
            "--eval_strategy out"
        )
    return cached
