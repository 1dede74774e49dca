"""α, λ and the weights as arrays: values and derivatives against the definitions.

The differences are taken at 200 digits with steps of 1e-70: next to α = 1 a mean loses as many
digits as k has zeros, and at λ = 0 what changes with λ is (p/q)ᵏ, which may be huge.
"""

from __future__ import annotations

import functools
import math

import mpmath
import numpy as np
import pytest

import amidmath as am

INF = math.inf
ORDERS = ("pr", "rp", "qr", "rq")
ALPHAS = (-INF, -50.0, -5.0, -1.0, 0.0, 1 - 1e-9, 1.0, 3.0, 50.0, INF)
LAMS = (0.0, 1e-6, 0.3, 0.999, 1.0)
DIVERGENCES = {"KL": am.KL(), "AB(.2,.7)": am.AlphaBeta(0.2, 0.7)}
WRT = ("student_logits", "teacher_logits", "alpha", "lam")
STEP = mpmath.mpf(10) ** -70

by_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
by_order = pytest.mark.parametrize("order", ORDERS)


def at_200_digits(f):
    @functools.wraps(f)
    def wrapped(*args, **kwargs):
        with mpmath.workdps(200):
            return f(*args, **kwargs)

    return functools.cache(wrapped)


def mixed(sources, weights, alpha):
    """(Σ w xᵏ)^(1/k) and its limits; weights may be a little below zero, for differences."""
    if abs(alpha) == mpmath.inf:
        present = [x for x, w in zip(sources, weights, strict=True) if w != 0]
        return (min if alpha > 0 else max)(present)
    k = (1 - mpmath.mpf(alpha)) / 2
    pairs = list(zip(sources, weights, strict=True))
    if k == 0:
        return mpmath.fprod(x**w for x, w in pairs)
    return mpmath.fsum(w * x**k for x, w in pairs) ** (1 / k)


def slope(f, point, i):
    """∂f/∂point[i]; 0 for α = ±inf, where the mean is one of the sources."""
    if abs(point[i]) == mpmath.inf:
        return mpmath.mpf(0)
    up, down = ((*point[:i], point[i] + h, *point[i + 1 :]) for h in (STEP, -STEP))
    return (f(up) - f(down)) / (2 * STEP)


# ---------------------------------------------------------------------------------------------
# The loss


def log_r_tilde(log_p, log_q, alpha, lam):
    if abs(alpha) == mpmath.inf:  # it does not change with λ, but for the ends
        lam = 1 if lam > 1 - mpmath.mpf("1e-60") else 0 if lam < mpmath.mpf("1e-60") else lam
    return [
        mpmath.log(mixed((mpmath.exp(u), mpmath.exp(v)), (lam, 1 - lam), alpha))
        for u, v in zip(log_p, log_q, strict=True)
    ]


def log_softmax(logits):
    total = mpmath.log(mpmath.fsum(map(mpmath.exp, logits)))
    return [v - total for v in logits]


@at_200_digits
def states(point):
    """log p, log q, log r at the point (*student, *teacher, α, λ)."""
    *logits, alpha, lam = point
    n = len(logits) // 2
    log_q, log_p = log_softmax(logits[:n]), log_softmax(logits[n:])
    unnormalised = log_r_tilde(log_p, log_q, alpha, lam)
    return {"p": log_p, "q": log_q, "r": log_softmax(unnormalised)}, unnormalised


@at_200_digits
def loss_and_slopes(divergence, order, point):
    """The loss, its derivative by every coordinate, and the scales that rounding works on.

    ``terms`` is the largest partial derivative of D by log x and log y, as in the conftest;
    ``moved`` the largest change of log r̃ with α, and with λ.
    """

    def value(point):
        named = states(point)[0]
        x, y = ([mpmath.exp(v) for v in named[side]] for side in order)
        return divergence.definition(x, y, divergence.params, mpmath)

    slopes = tuple(slope(value, point, i) for i in range(len(point)))
    named, _ = states(point)
    pair = [[mpmath.exp(v) for v in named[side]] for side in order]
    terms = max(abs(c) for side in free_partials(divergence, *pair) for c in side)
    n = len(point) - 2
    moved = tuple(
        max(abs(slope(lambda v, j=j: states(v)[1][j], point, n + i)) for j in range(n // 2))
        for i in (0, 1)
    )
    span = max(-v for side in "pq" for v in named[side])
    return value(point), slopes, terms, moved, span


def free_partials(divergence, x, y):
    """∂D/∂log x and ∂D/∂log y of the forms that are divergences of measures too."""
    measure = am.GeneralizedKL() if divergence == am.KL() else divergence
    for side in (0, 1):
        partials = []
        for i in range(len(x)):
            ends = []
            for step in (STEP, -STEP):
                pair = [list(x), list(y)]
                pair[side][i] *= mpmath.exp(step)
                ends.append(measure.definition(*pair, measure.params, mpmath))
            partials.append((ends[0] - ends[1]) / (2 * STEP))
        yield partials


def tokens(dtype):
    """Logits (10, 5, 3), α (10, 1) and λ (5,): every α with every λ, on rows of their own."""
    rng = np.random.default_rng(17)
    student, teacher = rng.normal(size=(2, len(ALPHAS), len(LAMS), 3))
    near = rng.random((len(ALPHAS), len(LAMS))) < 0.25
    teacher[near] = student[near] + 1e-3 * teacher[near]
    alpha, lam = np.array(ALPHAS)[:, None], np.array(LAMS)
    return tuple(a.astype(dtype) for a in (student, teacher, alpha, lam))


def expected(divergence, order, student, teacher, alpha, lam, oracle):
    """By position: values, gradients by what WRT names, terms, moved and span."""
    shape = student.shape[:-1]
    alpha, lam = np.broadcast_to(alpha, shape), np.broadcast_to(lam, shape)
    return {
        where: loss_and_slopes(
            divergence,
            order,
            (
                *oracle.exact(student[where]),
                *oracle.exact(teacher[where]),
                oracle.exact(alpha[where]),
                oracle.exact(lam[where]),
            ),
        )
        for where in np.ndindex(shape)
    }


@by_order
@by_divergence
def test_value_and_every_gradient(library, oracle, divergence, order):
    """16 eps of the largest entry, and what rounding forces.

    A power pᵏ of a number that is known by its logarithm is known to eps·|k log p|; a derivative
    by α or λ is a sum of terms that are at most ``terms·moved``.
    """
    arrays = tokens(library.dtype)
    student, teacher, alpha, lam = (library.array(a) for a in arrays)
    shape = arrays[0].shape[:-1]
    # Knobs of the full shape: a gradient a position.
    full = [library.array(np.broadcast_to(a, shape)) for a in arrays[2:]]
    loss = am.AMiD(divergence, order=order, alpha=full[0], lam=full[1])
    value, grads = loss.value_and_grad(student, teacher, reduction="none", wrt=WRT)
    value, grads = library.numpy(value), [library.numpy(g) for g in grads]
    assert {str(a.dtype) for a in (value, *grads)} == {library.dtype}
    assert [g.shape for g in grads] == [student.shape, teacher.shape, shape, shape]
    broadcast = am.AMiD(divergence, order=order, alpha=alpha, lam=lam)
    np.testing.assert_array_equal(
        library.numpy(broadcast(student, teacher, reduction="none")), value
    )
    failures = []
    largest = float(np.finfo(library.dtype).max)
    for where, wanted in expected(divergence, order, *arrays, oracle).items():
        wanted_value, slopes, terms, moved, span = wanted
        a, l = ALPHAS[where[0]], LAMS[where[1]]
        exponent = min(abs(1 - a) / 2, 26.0) if math.isfinite(a) else 0.0
        rounding = 16 + exponent * float(span)
        bound = library.eps * (16 + float(span)) * float(abs(wanted_value)) + library.eps * float(
            terms
        )
        off = float(abs(mpmath.mpf(float(value[where])) - wanted_value))
        if not off <= bound + library.tiny:
            failures.append(f"α={a}, λ={l}: value off by {off / library.eps} eps")
        for name, got, part, scale in (
            ("student", grads[0][where], slopes[:3], terms),
            ("teacher", grads[1][where], slopes[3:6], terms),
            ("alpha", grads[2][where], slopes[6], terms * moved[0]),
            ("lam", grads[3][where], slopes[7], terms * moved[1]),
        ):
            part = np.array(part, dtype=object)
            if max(abs(v) for v in part.flat) > largest / 8 or scale > largest / 8:
                continue
            scale = max(float(scale), *(float(abs(v)) for v in part.flat))
            off = oracle.error(got, part).max()
            if not off <= library.eps * rounding * scale + library.tiny:
                failures.append(
                    f"α={a}, λ={l}, {name}: off by {off / library.eps / scale} eps, "
                    f"got {got}, wanted {oracle.floats(part)}"
                )
    assert not failures, "\n".join(failures)
