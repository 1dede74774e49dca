"""Dtypes that kernels read and write: every number is rounded once.

What is right is known without a conversion: between two neighbours of a narrow dtype a number goes
to the nearer one, and from the middle to the one whose last bit is 0.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("llvmlite")
from storage import NUMPY, converted

from amidmath.backends.llvm_kernels.memory import DTYPES

NARROW = ("float16", "bfloat16")
KINDS = ("vectors", "numbers")


@pytest.fixture(autouse=True)
def _quiet():
    """NumPy warns of what overflows and of NaN, as is wanted here."""
    with np.errstate(all="ignore"):
        yield


def every(dtype):
    """All numbers of a dtype of 16 bits."""
    return np.arange(2**16, dtype=np.uint16).view(NUMPY[dtype])


def ascending(dtype):
    """The finite ones from 0 up, and the number that infinity rounds as."""
    bits = np.arange(2**15, dtype=np.uint16).view(NUMPY[dtype]).astype(np.float64)
    finite = bits[np.isfinite(bits)]
    return np.append(finite, 2.0 * finite[-1] - finite[-2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_numbers_are_read_as_they_are_and_written_back(dtype, wide, kind):
    x = every(dtype)
    bits = 8 * NUMPY[wide].itemsize
    np.testing.assert_array_equal(converted(x, bits, wide, kind), x.astype(wide))
    back = converted(x, bits, dtype, kind)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(back.view(np.uint16)[number], x.view(np.uint16)[number])
    assert np.isnan(back[~number]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("dtype", NARROW)
def test_every_boundary_between_narrow_numbers(dtype, wide, kind):
    """The middle between neighbours and the numbers next to it, subnormal, largest and all."""
    numbers = ascending(dtype)
    middle = (0.5 * (numbers[:-1] + numbers[1:])).astype(wide)
    assert (middle.astype(np.float64) == 0.5 * (numbers[:-1] + numbers[1:])).all()
    place = np.arange(middle.size, dtype=np.uint16)  # of the lower neighbour: its bits
    zero, infinity = NUMPY[wide].type(0.0), NUMPY[wide].type(np.inf)
    below, above = np.nextafter(middle, zero), np.nextafter(middle, infinity)
    for x, wanted in ((below, place), (middle, place + (place & 1)), (above, place + 1)):
        for sign, bit in ((1, 0), (-1, 0x8000)):
            found = converted(sign * x, 8 * NUMPY[wide].itemsize, dtype, kind)
            np.testing.assert_array_equal(found.view(np.uint16), wanted | np.uint16(bit))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ends(dtype, kind):
    x = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, -5e-324, 0.0, -0.0, 1e-310])
    wanted = x.astype(NUMPY[dtype])
    found = converted(x, 64, dtype, kind)
    np.testing.assert_array_equal(found.astype(np.float64), wanted.astype(np.float64))
    number = ~np.isnan(x)
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(wanted[number]))


@pytest.mark.parametrize("kind", KINDS)
def test_single_and_double(kind):
    """A knob may be wider than what is computed with it."""
    x = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-50, 50).repeat(10)
    np.testing.assert_array_equal(converted(x, 32, "float32", kind), x.astype(np.float32))
    wanted = x.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(converted(x, 32, "float64", kind), wanted)
