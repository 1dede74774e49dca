"""AMiD's values and gradients against the definition, on every library and dtype."""

from __future__ import annotations

import math

import numpy as np
import pytest

import amidmath as am

ORDERS = ("pr", "rp", "qr", "rq")
ALPHAS = (-math.inf, -50.0, -5.0, -1.0, 0.0, 1 - 1e-9, 1.0, 1 + 1e-7, 3.0, 12.0, math.inf)
DIVERGENCES = {
    "KL": am.KL(),
    "reverse KL": am.ReverseKL(),
    "AB(.2,.7)": am.AlphaBeta(0.2, 0.7),
    "AB(1,0)": am.AlphaBeta(1.0, 0.0),
    "AB(0,1)": am.AlphaBeta(0.0, 1.0),
    "AB(1,-1)": am.AlphaBeta(1.0, -1.0),
    "AB(0,0)": am.AlphaBeta(0.0, 0.0),
    "AB(2,-.5)": am.AlphaBeta(2.0, -0.5),
    "AB(-.5,2)": am.AlphaBeta(-0.5, 2.0),
}
PLAIN, NEAR, CONFIDENT, APART = range(4)
LAM = 0.1

by_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
by_order = pytest.mark.parametrize("order", ORDERS)


def name(divergence):
    return (type(divergence).__name__, *divergence.params)


def logits(dtype):
    """Student and teacher: unrelated, nearly equal, sure of the same token, sure of different."""
    rng = np.random.default_rng(20251015)
    student, teacher = 1.5 * rng.normal(size=(2, 4, 4))
    teacher[NEAR] = student[NEAR] + 1e-3 * rng.normal(size=4)
    student[CONFIDENT, 0] += 7.0
    teacher[CONFIDENT, 0] += 8.0
    student[APART] = [4.0, 2.5, -7.0, -0.5]
    teacher[APART] = [-6.0, -4.0, 8.5, -6.5]
    return student.astype(dtype), teacher.astype(dtype)


@pytest.fixture
def case(library, oracle):
    """What a loss is on the rows above: arrays of the library, and what is expected."""
    student, teacher = logits(library.dtype)
    arrays = library.array(student), library.array(teacher)

    def expected(loss):
        return oracle.amid(
            student,
            teacher,
            name(loss.divergence),
            loss.order,
            loss.alpha,
            loss.lam,
            loss.temperature,
            loss.detach_assistant,
        )

    return arrays, expected


def check_value(value, expected, eps, oracle, what):
    """16 eps of the value, plus what rounding forces.

    A probability carried as log x is known to eps·|log x|. There is no more for the row at logits
    1e-3 apart, whose losses are 1e-7 or less. On the rows that are sure of a token, D is also a
    small remainder of terms that nearly cancel: log r = log r̃ - log Z, rounded to
    eps·max(1, |log Z|), moves D by that much times ∂D/∂log r.
    """
    wanted = oracle.floats(expected.value)
    forced = np.maximum(1.0, np.abs(oracle.floats(expected.log_z)))
    forced = forced * oracle.floats(expected.terms) * np.array([0, 0, 1, 1])
    error = oracle.error(value, expected.value)
    bound = eps * ((16 + oracle.floats(expected.span)) * np.abs(wanted) + forced)
    return [
        f"{what}, row {row}: value off by {error[row] / eps / wanted[row]:.3g} eps"
        for row in np.flatnonzero(~(error <= bound))
    ]


def check_grad(grad, wanted, expected, eps, oracle, what):
    """16 eps of the largest entry, or of the largest term that the gradient is made of."""
    scale = np.maximum(oracle.largest(wanted), oracle.floats(expected.terms))
    error = oracle.error(grad, wanted).max(axis=-1)
    return [
        f"{what}, row {row}: gradient off by {error[row] / eps / scale[row]:.3g} eps"
        for row in np.flatnonzero(~(error <= 16 * eps * scale))
    ]


@by_order
@by_divergence
def test_value_and_grad(library, case, oracle, divergence, order):
    arrays, expectation = case
    failures = []
    for alpha in ALPHAS:
        loss = am.AMiD(divergence, order=order, alpha=alpha, lam=LAM)
        value, grad = loss.value_and_grad(*arrays, reduction="none")
        value, grad = library.numpy(value), library.numpy(grad)
        assert str(value.dtype) == str(grad.dtype) == library.dtype
        expected = expectation(loss)
        failures += check_value(value, expected, library.eps, oracle, f"α={alpha!r}")
        failures += check_grad(
            grad, expected.student, expected, library.eps, oracle, f"α={alpha!r}"
        )
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("lam", [0.0, 1e-6, 0.5, 0.999, 1.0])
@by_order
def test_weights(library, case, oracle, order, lam):
    arrays, expectation = case
    failures = []
    for divergence in (am.KL(), am.AlphaBeta(0.2, 0.7)):
        for alpha in (-5.0, 1.0, 3.0):
            loss = am.AMiD(divergence, order=order, alpha=alpha, lam=lam)
            value, grad = loss.value_and_grad(*arrays, reduction="none")
            value, grad = library.numpy(value), library.numpy(grad)
            what = f"{divergence}, α={alpha}"
            if (order, lam) in (("pr", 1.0), ("rp", 1.0), ("qr", 0.0), ("rq", 0.0)):
                np.testing.assert_array_equal(value, 0.0, what)
                np.testing.assert_array_equal(grad, 0.0, what)
                continue
            expected = expectation(loss)
            failures += check_value(value, expected, library.eps, oracle, what)
            failures += check_grad(grad, expected.student, expected, library.eps, oracle, what)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_temperature(library, case, oracle, temperature):
    """Powers of two, so that dividing by them rounds nothing."""
    arrays, expectation = case
    failures = []
    for order in ORDERS:
        loss = am.AMiD(order=order, alpha=0.0, lam=LAM, temperature=temperature)
        value, grad = loss.value_and_grad(*arrays, reduction="none")
        value, grad = library.numpy(value), library.numpy(grad)
        expected = expectation(loss)
        failures += check_value(value, expected, library.eps, oracle, order)
        failures += check_grad(grad, expected.student, expected, library.eps, oracle, order)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("order", ["qr", "rq"])
@by_divergence
def test_detached_assistant(library, case, oracle, divergence, order):
    """TAID's gradient: the loss differentiated with r held constant."""
    arrays, expectation = case
    failures = []
    for alpha in (-1.0, 1.0, 3.0):
        loss = am.AMiD(divergence, order=order, alpha=alpha, lam=LAM, detach_assistant=True)
        value, grad = loss.value_and_grad(*arrays, reduction="none")
        value, grad = library.numpy(value), library.numpy(grad)
        expected = expectation(loss)
        failures += check_value(value, expected, library.eps, oracle, f"α={alpha}")
        failures += check_grad(grad, expected.student, expected, library.eps, oracle, f"α={alpha}")
    assert not failures, "\n".join(failures)


def test_a_detached_assistant_passes_nothing_on(any_library):
    """Neither to the teacher nor to α and λ: r is a constant."""
    student, teacher = (any_library.array(a) for a in logits(any_library.dtype))
    knob = any_library.array([0.3] * 4)
    loss = am.AMiD(order="qr", alpha=knob, lam=knob, detach_assistant=True)
    _, grads = loss.value_and_grad(
        student, teacher, reduction="none", wrt=("teacher", "alpha", "lam")
    )
    for grad in grads:
        np.testing.assert_array_equal(any_library.numpy(grad), 0.0)


def test_detached_kl_rq_has_the_gradient_q_minus_r(library, case, oracle):
    (student, teacher), _ = case
    loss = am.AMiD(order="rq", alpha=1.0, lam=LAM, detach_assistant=True)
    _, grad = loss.value_and_grad(student, teacher, reduction="none")
    for row, got in enumerate(library.numpy(grad)):
        q, p = (oracle.log_softmax(oracle.exact(library.numpy(a)[row])) for a in (student, teacher))
        r, _ = oracle.log_assistant(p, q, 1.0, LAM)
        wanted = [oracle.mp.exp(v) - oracle.mp.exp(u) for u, v in zip(r, q, strict=True)]
        assert oracle.error(got, wanted).max() <= 16 * library.eps


@by_order
def test_a_wide_vocabulary_in_float32_agrees_with_float64(order):
    """50,000 entries: what the core gives in float64, which the oracle vouches for above.

    Powers pᵏ of numbers carried as their logarithms are known to eps·|k log p|. Every order meets
    every α, half of them with each divergence, as each loss is compiled.
    """
    rng = np.random.default_rng(5)
    student, teacher = (3 * rng.normal(size=(2, 2, 50_000))).astype(np.float32)
    wide = student.astype(np.float64), teacher.astype(np.float64)
    eps = np.finfo(np.float32).eps
    span = sum(np.log(np.exp(a).sum(axis=-1)) - a.min(axis=-1) for a in wide)
    divergences = (am.KL(), am.AlphaBeta(0.2, 0.7))
    for turn, alpha in enumerate((-5.0, -1.0, 1.0, 3.0), ORDERS.index(order)):
        loss = am.AMiD(divergences[turn % 2], order=order, alpha=alpha, lam=LAM)
        value, grad = loss.value_and_grad(student, teacher, reduction="none")
        wanted, wanted_grad = loss.value_and_grad(*wide, reduction="none", backend="reference")
        assert np.all(np.abs(value - wanted) <= 16 * eps * wanted)
        scale = np.abs(wanted_grad).max(axis=-1)
        bound = eps * (1.0 + abs(1.0 - alpha) / 2) * span * scale
        assert np.all(np.abs(grad - wanted_grad).max(axis=-1) <= bound)
