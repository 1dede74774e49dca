"""The data policy that arguments name, and its generation."""

import math
from typing import Any

import pytest

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.kinds import Mixed
from amidmath.integrations.common.policies.settings import PolicySettings


def test_a_policy_has_the_parameters_that_are_given() -> None:
    found = PolicySettings(policy="mixed", student_fraction=0.25).data_policy()
    assert isinstance(found, Mixed)
    assert found.student_fraction == 0.25
    with pytest.raises(InputError, match="student_fraction"):
        PolicySettings(policy="off_policy", student_fraction=0.25).data_policy()


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_buffer_that_holds_nothing_is_refused(capacity: int) -> None:
    with pytest.raises(InputError, match=r"^--buffer_capacity: "):
        PolicySettings(buffer_capacity=capacity).replay_buffer()
    assert PolicySettings(buffer_capacity=3).replay_buffer().capacity == 3


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("max_new_tokens", 1, 0),
        ("generation_temperature", 0.0, -0.1),
        ("generation_temperature", 2.0, math.inf),
        ("generation_temperature", 1.0, math.nan),
        ("generation_top_p", 1.0, 1.01),
        ("generation_top_p", 0.01, 0.0),
        ("generation_batch_size", 1, 0),
    ],
)
def test_generation_within_its_bounds(name: str, right: Any, wrong: Any) -> None:
    PolicySettings(**{name: right}).check_generation()
    with pytest.raises(InputError, match=rf"^--{name} must .*, got "):
        PolicySettings(**{name: wrong}).check_generation()
