"""The elementwise building blocks by themselves, to a few eps of their value everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from amidmath.formulas import pointwise as pointwise

INF = math.inf
NEAR = np.concatenate(
    [np.linspace(-1, 1, 81), 10.0 ** np.arange(-12, 0), -(10.0 ** np.arange(-12, 0))]
)
FAR = np.array([-700.0, -80.0, -20.0, -3.0, -1.5, -1.01, 1.01, 1.5, 3.0, 20.0, 80.0])


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with np.errstate(all="ignore"):
        yield request.param


def check(oracle, got, wanted, units):
    eps = np.finfo(got.dtype).eps
    wanted = [w if abs(w) < np.finfo(got.dtype).max else oracle.mp.inf for w in wanted]
    error = oracle.error(got, wanted)
    scale = np.array([float(abs(w)) for w in wanted])
    finite = np.isfinite(scale)
    assert np.all(error[~finite] == 0.0)
    worst = error[finite] - units * eps * scale[finite] - np.finfo(got.dtype).smallest_normal
    assert np.all(worst <= 0.0), np.max(error[finite] / scale[finite] / eps)


def test_phi2(oracle, dtype):
    z = NEAR.astype(dtype)
    z = z[z != 0]
    wanted = [(oracle.mp.expm1(v) - v) / v**2 for v in oracle.exact(z)]
    check(oracle, pointwise.phi2(z, np), wanted, 2)


@pytest.mark.parametrize("m", [-30.0, -1.25, 0.0, 2.5])
@pytest.mark.parametrize("zs", [NEAR, FAR], ids=["near", "far"])
def test_exp_difference_and_bregman(oracle, dtype, zs, m):
    """Where z = n - m is exact: nearby n cannot be, which is why z is carried along."""
    z = zs.astype(dtype)
    m = np.full_like(z, m)
    n = m + z
    exp = oracle.mp.exp
    units = 8 + 2 * np.abs(n).max() if zs is FAR else 4
    pairs = list(zip(oracle.exact(m), oracle.exact(z), strict=True))
    wanted = [exp(u) * oracle.mp.expm1(d) for u, d in pairs]
    check(oracle, pointwise.exp_difference(n, m, z, np), wanted, units)
    wanted = [exp(u) * (oracle.mp.expm1(d) - d) for u, d in pairs]
    check(oracle, pointwise.exp_bregman(n, m, z, np), wanted, units)


def test_bregman_at_the_infinities(dtype):
    big = 1e4  # whose exponential overflows
    cases = [
        # n, m, n - m, eⁿ - eᵐ - eᵐ(n - m)
        (-INF, -1.0, -INF, INF),
        (-1.0, -INF, INF, math.exp(-1.0)),
        (INF, -1.0, INF, INF),
        (-INF, -big, -INF, 0.0),  # a mass below the smallest number counts as none
        (-1.0, -big, big - 1.0, math.exp(-1.0)),
        (big, 0.0, big, INF),
        (2 * big, big, big, INF),
        (big - 5.0, big, -5.0, INF),
        (big, big, 0.0, 0.0),
        (-big, -2 * big, big, 0.0),
    ]
    n, m, z, wanted = np.array(cases, dtype).T
    np.testing.assert_allclose(pointwise.exp_bregman(n, m, z, np), wanted, rtol=1e-6)


def test_log_near_one(oracle, dtype):
    """Just as good on both sides of the threshold, and next to 1 relatively so."""
    excess = np.concatenate([NEAR[NEAR > -1], np.linspace(-0.3, -0.2, 21), [3.0, 50.0]]).astype(
        dtype
    )
    total = (1 + excess.astype("float64")).astype(dtype)
    got = pointwise.log_near_one(excess, np.log(total), np)
    exact = oracle.exact(excess)
    # Beyond the threshold only 1 + excess, rounded, is known.
    wanted = [oracle.mp.log1p(v) for v in exact]
    eps = np.finfo(dtype).eps
    slack = np.array([0.0 if v > -0.25 else float(eps / (1 + v)) for v in exact])
    error = oracle.error(got, wanted)
    assert np.all(error <= 2 * eps * np.abs(np.array(wanted, dtype=float)) + slack)


def test_shared_support(dtype):
    x = np.array([-1.0, -INF, -1.0, -INF], dtype)
    y = np.array([-2.0, -1.0, -INF, -INF], dtype)
    with np.errstate(invalid="ignore"):
        got = pointwise.shared_support(x, y, x - y, np)
    np.testing.assert_array_equal(got, [[-1, -INF, -1, 0], [-2, -1, -INF, 0], [1, -INF, INF, 0]])
