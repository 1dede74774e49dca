"""Losses that are infinite because one side lacks tokens are refused, all others are not."""

import pytest

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.settings import LossSettings
from amidmath.integrations.common.recipe.supports import check_finite


@pytest.mark.parametrize(
    ("divergence", "student", "teacher", "is_finite"),
    [
        ("kl", 10, 10, True),
        ("kl", 12, 10, True),  # the teacher gives no mass where the student has some
        ("kl", 10, 12, False),
        ("reverse_kl", 12, 10, False),
        ("total_variation", 10, 12, True),
    ],
)
def test_only_an_infinite_loss_is_refused(
    divergence: str, student: int, teacher: int, is_finite: bool
) -> None:
    recipe = LossSettings(divergence=divergence, alpha=-1.0, lam=0.0).recipe()
    if is_finite:
        check_finite(recipe, "common", student, teacher)
        return
    with pytest.raises(InputError, match=r"--vocab common: .* is infinite at every token") as error:
        check_finite(recipe, "common", student, teacher)
    owner = "teacher" if teacher > student else "student"
    assert f"since the {owner} has 2 tokens" in str(error.value)
    check_finite(recipe, "common_only", student, teacher)
