"""Bounds of numbers: what lies in them, and their words."""

import math
from dataclasses import dataclass

import pytest

from amidmath.integrations.common.cli.ranges import (
    COUNT,
    SHARE,
    Range,
    check_finite,
    check_ranges,
)
from amidmath.integrations.common.errors import InputError


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (COUNT, (1, 7), (0, math.nan, math.inf), "be at least 1"),
        (SHARE, (0.0, 0.99), (1.0, -0.01, math.nan), "lie in [0, 1)"),
        (Range(0, 1, True, False), (0.01, 1.0), (0.0, 1.01), "lie in (0, 1]"),
        (Range(0, without_least=True), (1e-9, 5), (0, math.inf), "be positive"),
        (Range(-math.inf), (-5.0, 0.0), (math.inf, math.nan), "be finite"),
        (Range(1, beside=-1), (-1, 1), (0, -2), "be at least 1"),
    ],
)
def test_bounds(
    bounds: Range, inside: tuple[float, ...], outside: tuple[float, ...], words: str
) -> None:
    assert all(map(bounds.holds, inside))
    assert not any(map(bounds.holds, outside))
    assert bounds.describe() == words


@dataclass
class Settings:
    rows: int | None = None
    alpha: float = -1.0
    rate: float = 0.1


def test_a_number_out_of_its_range_is_named() -> None:
    check_ranges(Settings(rows=None), {"rows": COUNT, "not_there": COUNT})
    with pytest.raises(InputError, match=r"^--rows must be at least 1, got 0$"):
        check_ranges(Settings(rows=0), {"rows": COUNT})


def test_only_alpha_may_be_infinite() -> None:
    check_finite(Settings(alpha=math.inf))
    with pytest.raises(InputError, match="--rate"):
        check_finite(Settings(rate=math.nan))
