"""Losses that are infinite whatever the student learns: a side has tokens that the other lacks."""

from collections.abc import Iterator

import numpy as np

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.recipe import Recipe

# Two distributions over three tokens, of which one side may lack the last.
_STUDENT, _TEACHER = np.log([[0.5, 0.3, 0.2]]), np.log([[0.2, 0.5, 0.3]])
# At how many steps of a run a loss that changes is looked at.
_STEPS = 9


def check_finite(recipe: Recipe, vocab: str, student: int, teacher: int) -> None:
    """Raise InputError where a loss is infinite by construction, and say what to choose.

    Args:
        recipe: of the run.
        vocab: how vocabularies are compared.
        student: how many logits the student gives.
        teacher: how many the teacher gives.
    """
    if vocab != "common" or student == teacher:
        return
    with np.errstate(all="ignore"):
        infinite = not all(map(np.isfinite, _values(recipe, student < teacher)))
    if not infinite:
        return
    when = "at some step" if recipe.schedules.by_name else "at every token"
    owner, other = ("teacher", "student") if student < teacher else ("student", "teacher")
    amid = recipe.method.name == "amid"
    finite = "an --alpha below 1, or another --order," if amid else "--method amid or gkd"
    raise InputError(
        f"--vocab common: {recipe.describe()} is infinite {when}, since the {owner} has "
        f"{abs(teacher - student)} tokens that the {other} gives no probability. --vocab "
        f"common_only leaves them out and is finite; so is {finite} with --vocab common"
    )


def _values(recipe: Recipe, teacher_has_more: bool) -> Iterator[float]:
    """The losses over a run, at no overlap and at half, of two rows where one lacks a token."""
    student, teacher = _STUDENT.copy(), _TEACHER.copy()
    (student if teacher_has_more else teacher)[:, -1] = -np.inf
    for overlap in (0.0, 0.5):
        for step in range(_STEPS):
            for loss in recipe.losses(step, _STEPS, np.full(1, overlap)).values():
                yield float(loss(student, teacher))
