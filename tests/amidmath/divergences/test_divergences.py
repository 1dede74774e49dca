"""Every divergence by itself: values, partial derivatives, limits, zeros and infinities.

They come from the registry, and what they are held against is their textbook definition, evaluated
at 60 digits or more and differentiated by differences. Those of distributions are evaluated on the
rows normalised, so that both values and derivatives are those on the simplex.
"""

from __future__ import annotations

import functools
import math

import mpmath
import numpy as np
import pytest
from definitions import divergence_of

import amidmath as am

INF = math.inf
EXTRA = [
    *(
        am.AlphaBeta(a, b)
        for a, b in (
            *((0.5, 0.5), (3.0, 2.0), (1.0, 0.0), (0.0, 1.0), (-2.0, 0.0), (-0.5, 0.5)),
            *((0.5, -2.0), (-2.0, 0.5), (-0.3, -0.4)),
            # next to a limit on either side
            *((1e-9, 0.7), (-1e-9, 0.7), (0.7, -1e-9), (1e-9, -1e-9), (1e-9, -3e-9)),
            # where exact zeros begin to stand for what underflows
            *((1e-21, 0.5), (0.5, 1e-19)),
        )
    ),
    am.Dual(am.Renyi(2.0)),
    am.Symmetrized(am.SkewKL(0.1)),
    am.Symmetrized(am.AlphaBeta(0.2, 0.7)),
    am.FDivergence(lambda u, xp: u * xp.log(u), smooth=True),
    am.FDivergence(lambda u, xp: (u - 1) ** 2 / (u + 1), smooth=True),
    am.FDivergence(lambda u, xp: (xp.sqrt(u) - 1) ** 2, lambda u, xp: 1 - u**-0.5, smooth=True),
    am.Bregman(lambda u, xp: u * xp.log(u)),
    am.Bregman(lambda u, xp: u * u, lambda u, xp: 2 * u, lambda u, xp: 2.0),
]
ALL = [cls(*e) for cls in am.divergences.REGISTRY.values() for e in cls.examples] + EXTRA


def label(divergence):
    """A name without the addresses of functions, the same in every run."""
    if isinstance(divergence, (am.FDivergence, am.Bregman)):
        return type(divergence).__name__
    return repr(divergence)


DIVERGENCES = {f"{label(d)} {i}": d for i, d in enumerate(ALL)}
by_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
STEP = mpmath.mpf(10) ** -25


def log_probabilities(dtype, noise=None):
    """Rows of log x and log y, unrelated, or y equal to x but for noise in its logits."""
    rng = np.random.default_rng(11)
    x, y, small = rng.normal(size=(3, 4, 4)) * 2
    y = y if noise is None else x + noise * small / 2
    return [(a - np.log(np.exp(a).sum(axis=-1, keepdims=True))).astype(dtype) for a in (x, y)]


def digits(divergence):
    """Enough for what cancels next to the limits of the parameters."""
    numbers = [v for v in divergence.params if isinstance(v, float)]
    near = [abs(v - c) for v in numbers for c in (0, 1, -1)] + [abs(sum(numbers))]
    return 80 + sum(int(-2 * math.log10(v)) for v in near if 0 < v < 1)


def value_of(divergence, log_x, log_y):
    x, y = ([mpmath.exp(v) for v in row] for row in (log_x, log_y))
    if not divergence.on_measures:
        x, y = ([v / mpmath.fsum(row) for v in row] for row in (x, y))
    return divergence_of(divergence, x, y)


@functools.cache
def truth(divergence, log_x, log_y):
    """D(x‖y), and its derivatives by every log x and log y; on the simplex for distributions."""
    with mpmath.workdps(digits(divergence) + 60):
        value = value_of(divergence, log_x, log_y)
        if value == mpmath.inf:
            return mpmath.inf, None
        sides = []
        for side in (0, 1):
            partials = []
            for i, v in enumerate((log_x, log_y)[side]):
                ends = []
                for step in (STEP, -STEP):
                    rows = [list(log_x), list(log_y)]
                    rows[side][i] += step
                    ends.append(value_of(divergence, *rows) if v > -mpmath.inf else 0)
                partials.append((ends[0] - ends[1]) / (2 * STEP))
            sides.append(partials)
        return value, sides


def on_the_simplex(divergence, log_x, partials):
    """The derivatives by unnormalised log x, from the library's, with nothing added to rounding."""
    partials = [mpmath.mpf(float(c)) for c in partials]
    if divergence.on_measures:
        return partials
    x = [mpmath.exp(v) for v in log_x]
    share = mpmath.fsum(partials) / mpmath.fsum(x)
    return [c - v * share for c, v in zip(partials, x, strict=True)]


def check(divergence, library, oracle, x, y, units=16, kinks_are_near=False):
    value, grads = divergence.value_and_grad(library.array(x), library.array(y))
    value, grads = library.numpy(value), [library.numpy(g) for g in grads]
    exponents = sum(abs(v) for v in divergence.params if isinstance(v, float))
    for row, pair in enumerate(zip(oracle.exact(x), oracle.exact(y), strict=True)):
        wanted, sides = truth(divergence, *pair)
        assert value[row] >= 0.0
        if wanted == mpmath.inf:
            assert value[row] == INF
            continue
        finite = [abs(float(v)) for side in pair for v in side if v > -mpmath.inf]
        # A logarithm of size s is known to eps·s, and so is its power; likewise what they make.
        span = (1.0 + exponents) * max(1.0, *finite)
        moved = sum(float(abs(c)) for side in sides for c in side)
        bound = library.eps * ((units + span) * float(wanted) + 0.5 * max(1.0, *finite) * moved)
        bound = max(bound, library.eps**2 * span**2)
        error = oracle.error(value[row], wanted)
        assert error <= bound + library.tiny, f"{divergence}: {error / library.eps / wanted} eps"
        if isinstance(divergence, am.ConcreteScore) or kinks_are_near:
            continue  # concrete scores hold their weights: see below
        raw = max(float(abs(v)) for g in grads for v in g[row])
        for got, side, logs in zip(grads, sides, pair, strict=True):
            assert got.dtype == library.dtype
            scale = max(float(abs(c)) for c in side)
            bound = library.eps * ((units + span) * scale + 2 * raw)
            error = oracle.error(
                np.zeros(len(side)),
                [
                    a - b
                    for a, b in zip(on_the_simplex(divergence, logs, got[row]), side, strict=True)
                ],
            ).max()
            assert error <= bound + library.tiny, f"{divergence}: {error / library.eps / scale} eps"


@by_divergence
def test_value_and_partials(library, oracle, divergence):
    """Values to 16 eps, partials to 16 eps of the largest, and what the logarithms' rounding is."""
    check(divergence, library, oracle, *log_probabilities(library.dtype))


@by_divergence
def test_near_equality(any_library, oracle, divergence):
    """Noise of 1e-2 to 1e-8: as precise as the logarithms given, and never negative.

    In float32 at noise 1e-4 the three-sum form is off by a factor of 370, Σ x log(x/y) by 18.
    """
    rows = log_probabilities(any_library.dtype, np.array([[1e-2], [1e-4], [1e-6], [1e-8]]))
    kinks = isinstance(divergence, (am.TotalVariation, am.FisherRao))
    check(divergence, any_library, oracle, *rows, kinks_are_near=kinks)


@by_divergence
def test_zero_at_equality(any_library, divergence):
    row = np.log([[0.5, 0.25, 0.25, 1e-30], [1e-30, 1.0, 1e-30, 1e-30]] * 2)
    row[row < -60] = -INF
    x = any_library.array(row)
    value, grads = divergence.value_and_grad(x, x)
    np.testing.assert_array_equal(any_library.numpy(value), 0.0)
    for grad in grads:
        np.testing.assert_array_equal(any_library.numpy(grad), 0.0)


@by_divergence
def test_zeros(any_library, oracle, divergence):
    """-inf on one side, the other, or both: what the definition tends to, +inf where it does."""
    rows = np.log([[0.5, 0.3, 0.2, 1], [0.6, 0.4, 1, 1], [1, 0.7, 0.3, 1]])
    rows[rows == 0.0] = -INF
    full, teacher, student = rows
    xs = np.array([full, teacher, teacher, student], any_library.dtype)
    ys = np.array([student, full, student, teacher], any_library.dtype)
    check(divergence, any_library, oracle, xs, ys)


@functools.cache
def value_from_afar(divergence, log_x, log_y):
    with mpmath.workdps(2000):
        return value_of(divergence, log_x, log_y)


@by_divergence
def test_far_apart_is_infinite_or_right_and_not_nan(any_library, oracle, divergence):
    """Logarithms so far apart, or so low, that powers of them overflow."""
    far = 2000.0
    x = np.array([[0, -far, -far, 0], [0, -far, -far, 0]], any_library.dtype)[:, :3]
    y = np.array([[-far, 0, -far, 0], [0, -far / 2, -far, 0]], any_library.dtype)[:, :3]
    value = any_library.numpy(divergence(any_library.array(x), any_library.array(y)))
    assert np.all(value >= 0.0), divergence
    assert np.all(any_library.numpy(divergence(any_library.array(x), any_library.array(x))) == 0.0)
    ratios_are_formed = isinstance(divergence, (am.FDivergence, am.Bregman))
    for row, pair in enumerate(zip(oracle.exact(x), oracle.exact(y), strict=True)):
        wanted = value_from_afar(divergence, *pair)
        if ratios_are_formed or wanted > np.finfo(any_library.dtype).max / 8:
            continue
        assert math.isfinite(value[row]), (divergence, float(wanted))


@pytest.mark.parametrize(
    ("special", "general"),
    [
        (am.KL(), am.AlphaBeta(1.0, 0.0)),
        (am.ReverseKL(), am.AlphaBeta(0.0, 1.0)),
        (am.Beta(0.5), am.AlphaBeta(1.0, 0.5)),
        (am.AmariAlpha(0.5), am.AlphaBeta(0.25, 0.75)),
        (am.CressieRead(2.0), am.AmariAlpha(-5.0)),
        (am.Jeffreys(), am.SkewJensenShannon(0.0)),
        (am.JensenShannon(0.5), am.SkewJensenShannon(0.5)),
        (am.SkewKL(0.0), am.KL()),
        (am.SkewReverseKL(0.3), am.Dual(am.SkewKL(0.3))),
        (am.Renyi(1.0), am.KL()),
        (am.Gamma(0.0), am.KL()),
        (am.FDivergence(lambda u, xp: 0.5 * abs(u - 1)), am.TotalVariation()),
        (am.Bregman(lambda u, xp: u * xp.log(u)), am.GeneralizedKL()),
    ],
    ids=label,
)
def test_members_of_a_family(any_library, special, general):
    x, y = (any_library.array(a) for a in log_probabilities(any_library.dtype))
    value, wanted = (any_library.numpy(d(x, y)) for d in (special, general))
    factor = 2.0 if isinstance(special, am.Jeffreys) else 1.0
    np.testing.assert_allclose(value, factor * wanted, rtol=32 * any_library.eps)


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.7), (2.0, -0.5), (1.0, 0.0), (0.3, -0.3)])
def test_duality(a, b):
    """D_AB(x‖y) with (a, b) is D_AB(y‖x) with (b, a)."""
    x, y = log_probabilities("float64")
    np.testing.assert_allclose(am.AlphaBeta(a, b)(x, y), am.AlphaBeta(b, a)(y, x), rtol=1e-14)


@pytest.mark.parametrize("first", ["x", "y", "uniform"])
@pytest.mark.parametrize("second", ["x", "y", "uniform"])
def test_concrete_score_is_differentiated_with_its_weights_held(any_library, oracle, first, second):
    x, y = log_probabilities(any_library.dtype)
    divergence = am.ConcreteScore(first, second)
    _, grads = divergence.value_and_grad(any_library.array(x), any_library.array(y))
    for row, (u, v) in enumerate(zip(oracle.exact(x), oracle.exact(y), strict=True)):
        n = len(u)
        masses = {
            "x": [mpmath.exp(a) for a in u],
            "y": [mpmath.exp(a) for a in v],
            "uniform": [mpmath.mpf(1)] * n,
        }
        w1, w2 = ([m / mpmath.fsum(masses[s]) for m in masses[s]] for s in (first, second))

        def score(ratios, w1=w1, w2=w2, n=n):
            pairs = ((i, j) for i in range(n) for j in range(n))
            return sum(w1[i] * w2[j] * (ratios[i] - ratios[j]) ** 2 for i, j in pairs) / 2

        ratios = [a - b for a, b in zip(u, v, strict=True)]

        def moved(t, i, ratios=ratios, score=score):
            return score([*ratios[:i], t, *ratios[i + 1 :]])

        wanted = [mpmath.diff(functools.partial(moved, i=i), ratios[i]) for i in range(n)]
        scale = max(float(abs(c)) for c in wanted)
        assert (
            oracle.error(any_library.numpy(grads[0])[row], wanted).max()
            <= 16 * any_library.eps * scale
        )
        np.testing.assert_array_equal(
            any_library.numpy(grads[1])[row], -any_library.numpy(grads[0])[row]
        )


def test_a_divergence_by_name():
    assert am.divergence("kl") == am.KL()
    assert am.divergence("alpha_beta", alpha=0.2, beta=0.7) == am.AlphaBeta(0.2, 0.7)
    assert am.divergence("jensen_shannon") == am.JensenShannon(0.5)
    for name, cls in am.divergences.REGISTRY.items():
        assert cls.name == name
        assert getattr(am, cls.__name__) is cls


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_axis(any_library, axis):
    rng = np.random.default_rng(0)
    x, y = -rng.random((2, 2, 2, 2)).astype(any_library.dtype)
    divergence = am.AlphaBeta(0.2, 0.7)
    value, grads = divergence.value_and_grad(any_library.array(x), any_library.array(y), axis=axis)
    last = [np.ascontiguousarray(np.moveaxis(a, axis, -1)) for a in (x, y)]
    wanted, wanted_grads = divergence.value_and_grad(*(any_library.array(a) for a in last))
    np.testing.assert_array_equal(any_library.numpy(value), any_library.numpy(wanted))
    for got, grad in zip(grads, wanted_grads, strict=True):
        np.testing.assert_array_equal(
            any_library.numpy(got), np.moveaxis(any_library.numpy(grad), -1, axis)
        )
    called = divergence(any_library.array(x), any_library.array(y), axis=axis)
    np.testing.assert_array_equal(any_library.numpy(called), any_library.numpy(value))


ONE_OF_EACH = {name: cls(*cls.examples[0]) for name, cls in am.divergences.REGISTRY.items()}


@pytest.mark.parametrize("divergence", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_differentiation_gives_the_partials(any_autodiff, divergence):
    """And scales them by what is done with the value afterwards."""
    x, y = (any_autodiff.array(a) for a in log_probabilities(any_autodiff.dtype))
    cotangent = np.array([1.0, -2.0, 0.5, 3.0])
    value, grads = any_autodiff.derivatives(divergence, x, y, cotangent=cotangent)
    wanted, partials = divergence.value_and_grad(x, y)
    np.testing.assert_allclose(value, any_autodiff.numpy(wanted), rtol=4 * any_autodiff.eps)
    for grad, partial in zip(grads, partials, strict=True):
        np.testing.assert_allclose(
            grad, any_autodiff.numpy(partial) * cotangent[:, None], rtol=8 * any_autodiff.eps
        )


def test_immutable_hashable_and_equal_by_value():
    assert am.KL() == am.KL() != am.ReverseKL()
    assert am.AlphaBeta(0.2, 0.7) == am.AlphaBeta(0.2, np.float64(0.7)) != am.AlphaBeta(0.7, 0.2)
    assert len({am.AlphaBeta(1, 0), am.AlphaBeta(1.0, 0.0), am.KL()}) == 2
    with pytest.raises(AttributeError):
        am.AlphaBeta(0.2, 0.7).alpha = 1.0
