"""Overlap and mode report against their definitions, and which way α works."""

from __future__ import annotations

import math

import numpy as np
import pytest

import amidmath as am
from amidmath import geometry

INF = math.inf
ALPHAS = (-INF, -50.0, -3.0, -1.0, 0.0, 1 - 1e-9, 1.0, 1 + 1e-6, 3.0, 50.0, INF)
LAMS = (0.0, 1e-6, 0.1, 0.5, 0.5 + 1e-9, 0.9, 1.0)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def pairs(dtype, outcomes=5, rows=3, scale=3.0):
    rng = np.random.default_rng(6)
    return tuple(
        log_softmax(scale * rng.normal(size=(rows, outcomes))).astype(dtype) for _ in range(2)
    )


@pytest.mark.parametrize("scale", [0.1, 3.0, 8.0])
def test_overlap(library, oracle, scale):
    """Within 4 eps of itself."""
    log_p, log_q = pairs(library.dtype, scale=scale)
    got = library.numpy(geometry.overlap(library.array(log_p), library.array(log_q)))
    wanted = [
        oracle.mp.fsum(min(oracle.mp.exp(u), oracle.mp.exp(v)) for u, v in zip(*row, strict=True))
        for row in zip(oracle.exact(log_p), oracle.exact(log_q), strict=True)
    ]
    assert np.all(oracle.error(got, wanted) <= 4 * library.eps * oracle.floats(wanted))


def test_overlap_keeps_its_precision_when_it_is_tiny(any_library):
    """Where 1 - TV would be a rounding error, or negative."""
    far = -60.0
    p = any_library.array([0.0, far, -INF, far])
    q = any_library.array([far, 0.0, far, -INF])
    got = float(any_library.numpy(geometry.overlap(p, q)))
    assert math.isclose(got, 2 * math.exp(far), rel_tol=4 * any_library.eps)
    assert any_library.numpy(geometry.overlap(p, p)) == pytest.approx(1.0)
    apart = geometry.overlap(any_library.array([0.0, -INF]), any_library.array([-INF, 0.0]))
    assert any_library.numpy(apart) == 0.0


def weight(mp, log_ratio, k, lam):
    """W of M5 from powers of p/q."""
    if lam in (0, 1):
        return 1 - lam
    if math.isinf(k):
        leads = (log_ratio > 0) == (k > 0)
        return 1 - lam if log_ratio == 0 else mp.mpf(0 if leads else 1)
    return (1 - lam) / (lam * mp.exp(k * log_ratio) + 1 - lam)


@pytest.mark.parametrize("lam", LAMS)
def test_mode_report(library, oracle, lam):
    """W within 4 eps·max(1, |k l|) of itself; covering and seeking a little more."""
    mp = oracle.mp
    log_p, log_q = pairs(library.dtype)
    rows = list(zip(oracle.exact(log_p), oracle.exact(log_q), strict=True))
    exact_lam = mp.mpf(lam)
    for alpha in ALPHAS:
        k = (1 - mp.mpf(alpha)) / 2
        report = geometry.mode_report(
            library.array(log_p), library.array(log_q), alpha=alpha, lam=lam
        )
        for i, (p, q) in enumerate(rows):
            ratio = [u - v for u, v in zip(p, q, strict=True)]
            w = [weight(mp, x, k, exact_lam) for x in ratio]
            log_ratio = library.numpy(report.log_ratio)[i]
            size = np.maximum(np.abs(log_p[i]), np.abs(log_q[i]))
            assert np.all(oracle.error(log_ratio, ratio) <= library.eps * size)
            error = oracle.error(library.numpy(report.student_weight)[i], w)
            # k l inherits the rounding of l, and w magnifies it by |k|.
            powers = 1 + (0 if math.isinf(k) else abs(float(k))) * size
            bound = 4 * library.eps * powers * oracle.floats(w)
            assert np.all(error <= bound + library.tiny), (alpha, (error / bound).max())
            for name, side, source in (("covering", 1, p), ("seeking", -1, q)):
                mass = [
                    mp.exp(v) if side * x > 0 else 0 for v, x in zip(source, ratio, strict=True)
                ]
                wanted = mp.fdot(mass, w) / mp.fsum(mass)
                error = oracle.error(library.numpy(getattr(report, name))[i], wanted)
                bound = 8 * library.eps * powers.max() * float(wanted)
                assert error <= bound + library.tiny, (name, alpha, error / bound)
        np.testing.assert_array_equal(
            library.numpy(report.overlap),
            library.numpy(geometry.overlap(library.array(log_p), library.array(log_q))),
        )


def test_crossover_is_where_the_weight_is_a_half(library, oracle):
    mp = oracle.mp
    log_p, log_q = (library.array(a) for a in pairs(library.dtype))
    for alpha in (-50.0, -3.0, 0.0, 1 - 1e-9, 1 + 1e-6, 3.0):
        for lam in (1e-6, 0.1, 0.3, 0.5 + 1e-9, 0.74, 0.9):
            report = geometry.mode_report(log_p, log_q, alpha=alpha, lam=lam)
            got = library.numpy(report.crossover)
            # The exponent is rounded to a double, as everywhere.
            wanted = mp.log((1 - mp.mpf(lam)) / mp.mpf(lam)) / mp.mpf((1 - alpha) / 2)
            assert got.shape == (3,)
            assert np.all(oracle.error(got, [wanted] * 3) <= 4 * library.eps * abs(wanted))


@pytest.mark.parametrize("as_arrays", [False, True], ids=["numbers", "arrays"])
@pytest.mark.parametrize(
    ("alpha", "lam", "wanted"),
    [
        (1.0, 0.1, INF),  # w = 1-λ everywhere: above ½ for every l below +∞
        (1.0, 0.9, -INF),
        (1.0, 0.5, 0.0),
        (-1.0, 0.0, INF),  # w = 1
        (-1.0, 1.0, -INF),  # w = 0
        (3.0, 0.0, -INF),  # k < 0: w > ½ above l*
        (3.0, 1.0, INF),
        (INF, 0.1, 0.0),
        (-INF, 0.1, 0.0),
        (INF, 0.0, -INF),
        (-INF, 0.0, INF),
        (-1.0, 0.5, 0.0),
    ],
)
def test_crossovers_that_are_no_ordinary_numbers(any_library, alpha, lam, wanted, as_arrays):
    log_p, log_q = (any_library.array(a) for a in pairs(any_library.dtype))
    knobs = {"alpha": alpha, "lam": lam}
    if as_arrays:
        knobs = {name: any_library.array([value]) for name, value in knobs.items()}
    report = geometry.mode_report(log_p, log_q, **knobs)
    np.testing.assert_array_equal(any_library.numpy(report.crossover), [wanted] * 3)


def test_a_knob_a_position(any_library):
    """Arrays of α and λ give each row what numbers would."""
    log_p, log_q = (any_library.array(a) for a in pairs(any_library.dtype))
    alphas, lams = (-3.0, 1.0, 5.0), (0.25, 0.125, 0.75)
    report = geometry.mode_report(
        log_p, log_q, alpha=any_library.array(alphas), lam=any_library.array(lams)
    )
    for i, (alpha, lam) in enumerate(zip(alphas, lams, strict=True)):
        one = geometry.mode_report(log_p, log_q, alpha=alpha, lam=lam)
        for name, values in report._asdict().items():
            np.testing.assert_allclose(
                any_library.numpy(values)[i],
                any_library.numpy(getattr(one, name))[i],
                rtol=8 * any_library.eps,
                err_msg=name,
            )


def test_zeros_and_equal_distributions(any_library):
    half = math.log(0.5)
    p = any_library.array([[half, half, -INF, -INF], [half, half, -INF, -INF]])
    q = any_library.array([[-INF, half, half, -INF], [half, half, -INF, -INF]])
    for alpha, covering in ((-INF, 0.0), (-1.0, 0.0), (1.0, 0.75), (3.0, 1.0), (INF, 1.0)):
        report = geometry.mode_report(p, q, alpha=alpha, lam=0.25)
        np.testing.assert_array_equal(
            any_library.numpy(report.log_ratio), [[INF, 0.0, -INF, 0.0], [0.0] * 4]
        )
        np.testing.assert_array_equal(any_library.numpy(report.covering), [covering, 0.75])
        seeking = 0.75 if alpha == 1.0 else 1.0 - covering
        np.testing.assert_array_equal(any_library.numpy(report.seeking), [seeking, 0.75])
        np.testing.assert_allclose(any_library.numpy(report.overlap), [0.5, 1.0], rtol=1e-6)


def test_any_axis(any_library):
    log_p, log_q = pairs(any_library.dtype)
    rows = geometry.mode_report(
        any_library.array(log_p), any_library.array(log_q), alpha=0.0, lam=0.3
    )
    turned = (any_library.array(np.ascontiguousarray(a.T)) for a in (log_p, log_q))
    columns = geometry.mode_report(*turned, alpha=0.0, lam=0.3, axis=0)
    for one, other in zip(rows, columns, strict=True):
        np.testing.assert_allclose(
            any_library.numpy(one), any_library.numpy(other).T, rtol=16 * any_library.eps
        )


def test_a_larger_alpha_covers_more_and_seeks_less():
    """Strictly, while p ≠ q and no weight has reached 0 or 1."""
    log_p, log_q = pairs("float64")
    reports = [
        geometry.mode_report(log_p, log_q, alpha=alpha, lam=0.3) for alpha in np.linspace(-2, 4, 9)
    ]
    assert np.all(np.diff([r.covering for r in reports], axis=0) > 0.0)
    assert np.all(np.diff([r.seeking for r in reports], axis=0) < 0.0)


def share_of_the_gradient(order, log_p, log_q, alpha, lam):
    """Σ|c| over the tokens with l > 0 over all Σ|c|, c of KL by log q (docs: gradients, G2)."""
    log_r = am.alpha_mixture(log_p, log_q, alpha=alpha, lam=lam)
    report = geometry.mode_report(log_p, log_q, alpha=alpha, lam=lam)
    p, q, r = (np.exp(a) for a in (log_p, log_q, log_r))
    if order == "pr":
        by_r, by_q = r - p, 0.0
    elif order == "rp":
        by_r, by_q = r * (log_r - log_p), 0.0
    elif order == "qr":
        by_r, by_q = r - q, q * (log_q - log_r)
    else:
        by_r, by_q = r * (log_r - log_q), q - r
    by_r = by_r - r * by_r.sum(axis=-1, keepdims=True)
    c = np.abs(report.student_weight * by_r + by_q)
    return np.where(report.log_ratio > 0.0, c, 0.0).sum(axis=-1) / c.sum(axis=-1)


@pytest.mark.parametrize("lam", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("order", ["pr", "rp", "qr", "rq"])
def test_which_way_alpha_works(order, lam):
    """The share of the gradient where the teacher has more: up with α for pr and rp, else down."""
    log_p, log_q = pairs("float64", outcomes=20, rows=200, scale=2.0)
    low, middle, high = (
        share_of_the_gradient(order, log_p, log_q, alpha, lam).mean() for alpha in (-5.0, 0.0, 5.0)
    )
    if order in ("pr", "rp"):
        assert low < middle - 0.05 < high - 0.1
    else:
        assert high < low - 0.1
