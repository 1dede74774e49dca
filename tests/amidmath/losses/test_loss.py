"""Sums of losses, the α-Jensen-Shannon objective, and every divergence through AMiD."""

from __future__ import annotations

import math
import pickle

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from definitions import log_softmax, mean
from differences import at_200_digits, loss_and_slopes, slope

import amidmath as am

INF = math.inf
V = 4
ORDERS = ("pr", "rp", "qr", "rq")
BOTH = ("student", "teacher")

by_order = pytest.mark.parametrize("order", ORDERS)


def logits(dtype):
    """Student and teacher: unrelated, nearly equal, sure of different tokens and of the same."""
    rng = np.random.default_rng(29)
    student, teacher = rng.normal(size=(2, 4, 4))
    teacher[1] = student[1] + 1e-3 * teacher[1]
    student[2, 0] += 4.0
    teacher[2, 1] += 3.0
    student[3, 0] += 5.0
    teacher[3, 0] += 4.0
    return student.astype(dtype), teacher.astype(dtype)


def points(student, teacher, oracle, alpha=0.0, lam=0.0):
    """(*student, *teacher, α, λ) for every row."""
    for s, t in zip(student, teacher, strict=True):
        yield (*oracle.exact(s), *oracle.exact(t), mpmath.mpf(alpha), mpmath.mpf(lam))


def check(oracle, eps, got, wanted, units, scale, tiny, what):
    off = oracle.error(np.asarray(got), np.array(wanted, dtype=object)).max()
    assert off <= eps * units * float(scale) + tiny, (
        f"{what}: off by {off / eps / float(scale)} eps of {float(scale)}, got {got}"
    )


# ---------------------------------------------------------------------------------------------
# Sums and multiples


def parts_truth(loss, point):
    """Value and slopes of a weighted sum by its parts' definitions, and their scale."""
    value, scale, size = mpmath.mpf(0), mpmath.mpf(0), mpmath.mpf(0)
    slopes = [mpmath.mpf(0)] * (len(point) - 2)
    for weight, part in loss.parts:
        here = (*point[:-2], mpmath.mpf(part.alpha), mpmath.mpf(part.lam))
        truth = loss_and_slopes(part.divergence, part.order, here, part.temperature)
        value += weight * truth.value
        size += abs(weight * truth.value) * (16 + truth.span) + abs(weight) * truth.terms
        scale += abs(weight) * max(truth.terms, *(abs(v) for v in truth.slopes[:-2]))
        slopes = [a + weight * b for a, b in zip(slopes, truth.slopes, strict=False)]
    return value, slopes, size, scale


SUMS = {
    "half of each": 0.5 * am.AMiD(order="pr") + 0.5 * am.AMiD(order="qr"),
    "GKD": 0.3 * am.AMiD(order="pr", alpha=-1.0, lam=0.3)
    + 0.7 * am.AMiD(order="qr", alpha=-1.0, lam=0.3),
    "three, nested": 2 * (am.AMiD(alpha=3.0) + 0.25 * am.AMiD(order="rq", lam=0.5))
    + am.AMiD(am.AlphaBeta(0.2, 0.7), order="rp", alpha=1.0),
    "temperatures": 0.5 * am.AMiD(temperature=2.0) + 3.0 * am.AMiD(order="rq", temperature=0.5),
    "of a negative": am.AMiD(order="pr", lam=0.5) + -0.5 * am.AMiD(order="qr", lam=0.5),
}
by_sum = pytest.mark.parametrize("loss", SUMS.values(), ids=SUMS)


@by_sum
def test_sums_are_the_sums_of_the_definitions(library, oracle, loss):
    student, teacher = logits(library.dtype)
    value, grads = loss.value_and_grad(
        library.array(student), library.array(teacher), reduction="none", wrt=BOTH
    )
    value, grads = library.numpy(value), [library.numpy(g) for g in grads]
    for row, point in enumerate(points(student, teacher, oracle)):
        wanted, slopes, size, scale = parts_truth(loss, point)
        check(oracle, library.eps, value[row], wanted, 1, size, library.tiny, "value")
        for name, grad, part in zip(BOTH, grads, (slopes[:V], slopes[V:]), strict=True):
            check(oracle, library.eps, grad[row], part, 16, scale, library.tiny, name)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_gkd(library, oracle, beta):
    """GKD's JSD(β) = β KL(p‖m) + (1-β) KL(q‖m), m = βp + (1-β)q; zero at both ends."""
    loss = beta * am.AMiD(order="pr", alpha=-1.0, lam=beta) + (1 - beta) * am.AMiD(
        order="qr", alpha=-1.0, lam=beta
    )

    def jsd(point):
        q, p = (
            [mpmath.exp(v) for v in log_softmax(side)] for side in (point[:V], point[V : 2 * V])
        )
        b = mpmath.mpf(beta)
        m = [b * u + (1 - b) * v for u, v in zip(p, q, strict=True)]
        kls = [am.KL.definition(x, m, (), mpmath) for x in (p, q)]
        return b * kls[0] + (1 - b) * kls[1]

    student, teacher = logits(library.dtype)
    value, grads = loss.value_and_grad(
        library.array(student), library.array(teacher), reduction="none", wrt=BOTH
    )
    value, grads = library.numpy(value), [library.numpy(g) for g in grads]
    for row, point in enumerate(points(student, teacher, oracle)):
        with mpmath.workdps(200):
            wanted = jsd(point)
            slopes = [slope(jsd, point, i) for i in range(2 * V)]
        check(oracle, library.eps, value[row], wanted, 24, abs(wanted), library.tiny, "value")
        for name, grad, part in zip(BOTH, grads, (slopes[:V], slopes[V:]), strict=True):
            largest = max(abs(v) for v in part)
            check(oracle, library.eps, grad[row], part, 24, largest, library.tiny, name)


def test_arithmetic_makes_one_flat_sum():
    a, b, c = am.AMiD(order="pr"), am.AMiD(order="qr"), am.AMiD(order="rq")
    assert (a + b).parts == ((1.0, a), (1.0, b))
    assert (2 * a).parts == (a * 2).parts == ((2.0, a),)
    assert (0.5 * (a + 2 * b) + c).parts == ((0.5, a), (1.0, b), (1.0, c))
    assert (np.float64(0.5) * a).parts == ((0.5, a),)
    assert isinstance(a + b, am.WeightedSum)
    assert isinstance(a + am.AlphaJensenShannon(), am.WeightedSum)
    for bad in ("2", [2.0], None):
        with pytest.raises(TypeError):
            bad * a
        with pytest.raises(TypeError):
            a + bad
    for bad in (np.ones(2, np.int64), jnp.ones((), bool), torch.ones((), dtype=torch.int32), True):
        with pytest.raises(TypeError):
            a * bad
        with pytest.raises(TypeError):
            bad * a
    for bad in (INF, math.nan, np.array([0.5, INF]), torch.tensor(math.nan)):
        with pytest.raises(ValueError, match="factor"):
            bad * a
    for weight in (np.ones(2), jnp.ones(()), torch.ones(())):
        for loss in (weight * a, a * weight, 1.0 * (weight * a)):
            ((found, part),) = loss.parts
            assert part is a
            assert type(found) is type(weight)
            assert list(loss.knobs) == ["parts[0].weight"]


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ((), ValueError, ["parts", "at least one"]),
        (((1.0, am.KL()),), TypeError, ["parts[0]", "loss", "KL()"]),
        (((1.0, am.AMiD()), ("1", am.AMiD())), TypeError, ["parts[1]", "number", "'1'"]),
        (((np.array([INF]), am.AMiD()),), ValueError, ["parts[0]", "finite", "inf"]),
        (((INF, am.AMiD()),), ValueError, ["parts[0]", "finite", "inf"]),
    ],
    ids=["none", "no loss", "no number", "infinite array", "infinite"],
)
def test_parts_that_make_no_sum(parts, error, words):
    with pytest.raises(error) as raised:
        am.WeightedSum(parts)
    for word in words:
        assert word in str(raised.value)


def test_equal_by_value_hashable_and_pickled():
    def make(lam=0.3):
        return 0.5 * am.AMiD(order="pr", lam=lam) + 0.5 * am.AMiD(order="qr", lam=lam)

    assert make() == make() != make(0.4)
    assert hash(make()) == hash(make())
    assert len({make(), make(), make(0.4), am.AlphaJensenShannon()}) == 3
    assert pickle.loads(pickle.dumps(make())) == make()
    # Array knobs compare by value no more, and NumPy's arrays have no hash.
    with pytest.raises(TypeError):
        hash(make(np.full(4, 0.3)))


def knobs(library):
    rng = np.random.default_rng(1)
    return library.array(rng.normal(size=4)), library.array(rng.random(4))


def test_names_of_knobs(any_library):
    """In the order of the parts; each part's gradient is its own, times its weight."""
    student, teacher = (any_library.array(a) for a in logits(any_library.dtype))
    alpha, lam = knobs(any_library)
    one = am.AMiD(order="pr", alpha=alpha)
    two = am.AMiD(order="rq", alpha=3.0, lam=lam)
    three = am.AMiD(order="qr", alpha=alpha, lam=lam)
    loss = 0.5 * one + am.AlphaJensenShannon() + 2.0 * two + -1.0 * three
    names = ["parts[0].alpha", "parts[2].lam", "parts[3].alpha", "parts[3].lam"]
    assert list(loss.knobs) == names
    _, grads = loss.value_and_grad(student, teacher, wrt=tuple(names))
    alone = [(0.5, one, "alpha"), (2.0, two, "lam"), (-1.0, three, "alpha"), (-1.0, three, "lam")]
    for got, (weight, part, knob) in zip(grads, alone, strict=True):
        _, wanted = part.value_and_grad(student, teacher, wrt=knob)
        np.testing.assert_allclose(
            any_library.numpy(got), weight * any_library.numpy(wanted), rtol=8 * any_library.eps
        )
    with pytest.raises(ValueError, match=r"parts\[0\].alpha"):
        loss.value_and_grad(student, teacher, wrt="alpha")
    # A sum of sums is flat, and counts on.
    assert list((loss + three).knobs) == [*names, "parts[4].alpha", "parts[4].lam"]


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_weights_that_are_arrays(backend):
    """One a position: what numbers give there, and the derivative by one is its part's value."""
    student, teacher = logits("float64")
    weights = np.array([0.5, 0.0, 2.0, -1.0])
    one, two = am.AMiD(order="pr", lam=weights**2 / 4), am.AMiD(order="rq", alpha=3.0)
    loss = weights * one + (1.0 - weights) * two
    names = (*BOTH, "parts[0].weight", "parts[0].lam", "parts[1].weight")
    assert tuple(loss.knobs) == names[2:]
    how = {"reduction": "none", "backend": backend}
    value, grads = loss.value_and_grad(student, teacher, wrt=names, **how)
    parts = [
        one.value_and_grad(student, teacher, wrt=(*BOTH, "lam"), **how),
        two.value_and_grad(student, teacher, wrt=BOTH, **how),
    ]
    (first, (*by_first, by_lam)), (second, by_second) = parts
    column = weights[:, None]
    wanted = [weights * first + (1.0 - weights) * second]
    wanted += [column * a + (1.0 - column) * b for a, b in zip(by_first, by_second, strict=True)]
    wanted += [first, weights * by_lam, second]
    for got, want in zip((value, *grads), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-15)
    assert loss(student, teacher, backend=backend) == pytest.approx(value.mean(), rel=1e-14)


def test_a_part_of_weight_zero_adds_nothing_though_it_be_infinite(any_library):
    # The student lacks what the teacher has, which is infinite at α = 1.
    student = any_library.array([[0.0, -INF, 1.0, 0.0]] * 4)
    teacher = any_library.array([[0.0, 1.0, -1.0, 0.0]] * 4)
    alpha = any_library.array(1.0)
    finite = am.AMiD(order="pr", alpha=-1.0, lam=0.5)
    infinite = am.AMiD(order="pr", alpha=alpha, lam=0.5)
    assert any_library.numpy(infinite(student, teacher)) == INF
    loss = finite + 0.0 * infinite
    wrt = (*BOTH, "parts[1].alpha")
    value, grads = loss.value_and_grad(student, teacher, wrt=wrt)
    wanted, wanted_grads = finite.value_and_grad(student, teacher, wrt=BOTH)
    np.testing.assert_array_equal(any_library.numpy(value), any_library.numpy(wanted))
    for got, want in zip(grads, wanted_grads, strict=False):
        np.testing.assert_array_equal(any_library.numpy(got), any_library.numpy(want))
    assert any_library.numpy(grads[2]) == 0.0
    zeros = finite + infinite * any_library.array(0.0)
    np.testing.assert_array_equal(
        any_library.numpy(zeros(student, teacher)), any_library.numpy(wanted)
    )
    nothing, (grad,) = (0.0 * infinite).value_and_grad(student, teacher, wrt=BOTH[:1])
    assert any_library.numpy(nothing) == 0.0
    np.testing.assert_array_equal(any_library.numpy(grad), 0.0)


@by_sum
def test_masks_and_reductions_of_sums(any_library, loss):
    student, teacher = (any_library.array(a) for a in logits(any_library.dtype))
    mask = any_library.array([True, False, True, True], "bool")
    for reduction in ("mean", "sum", "none"):
        value, grads = loss.value_and_grad(student, teacher, mask, reduction, wrt=BOTH)
        wanted, wanted_grads = 0.0, [0.0, 0.0]
        for weight, part in loss.parts:
            here, here_grads = part.value_and_grad(student, teacher, mask, reduction, wrt=BOTH)
            wanted = wanted + weight * any_library.numpy(here)
            wanted_grads = [
                a + weight * any_library.numpy(b)
                for a, b in zip(wanted_grads, here_grads, strict=True)
            ]
        for got, want in zip((value, *grads), (wanted, *wanted_grads), strict=True):
            np.testing.assert_allclose(
                any_library.numpy(got),
                want,
                rtol=8 * any_library.eps,
                atol=8 * any_library.eps * np.abs(want).max(),
            )
        called = loss(student, teacher, mask, reduction)
        np.testing.assert_array_equal(any_library.numpy(called), any_library.numpy(value))


def test_differentiation_of_a_sum_with_knobs(any_autodiff):
    """What torch and JAX make of it is value_and_grad's; a knob in two parts adds up."""
    student, teacher = (any_autodiff.array(a) for a in logits(any_autodiff.dtype))
    alpha, lam = knobs(any_autodiff)
    weight = any_autodiff.array(1.5)

    def make(alpha, lam, weight):
        return 0.5 * am.AMiD(order="pr", alpha=alpha, lam=lam) + weight * am.AMiD(
            order="rq", alpha=alpha, temperature=2.0
        )

    def f(student, teacher, alpha, lam, weight):
        return make(alpha, lam, weight)(student, teacher)

    f = jax.jit(f) if any_autodiff.name == "jax" else f
    value, grads = any_autodiff.derivatives(f, student, teacher, alpha, lam, weight)
    loss = make(alpha, lam, weight)
    names = (*BOTH, "parts[0].alpha", "parts[0].lam", "parts[1].weight", "parts[1].alpha")
    wanted, found = loss.value_and_grad(student, teacher, wrt=names)
    by_s, by_t, first, by_lam, by_weight, second = found
    np.testing.assert_allclose(value, any_autodiff.numpy(wanted), rtol=8 * any_autodiff.eps)
    every = (by_s, by_t, first + second, by_lam, by_weight)
    for grad, want in zip(grads, every, strict=True):
        want = any_autodiff.numpy(want)
        np.testing.assert_allclose(
            grad, want, rtol=0, atol=16 * any_autodiff.eps * np.abs(want).max()
        )


def test_a_sum_is_a_static_argument_of_jax():
    traces = []

    def f(loss, s, t):
        traces.append(loss)
        return loss(s, t)

    jitted = jax.jit(f, static_argnums=0)
    arrays = [jnp.asarray(a) for a in logits("float32")]
    for weight in (0.5, 0.5, 0.25):
        jitted(weight * am.AMiD() + am.AMiD(order="qr"), *arrays)
    assert len(traces) == 2


# ---------------------------------------------------------------------------------------------
# The α-Jensen-Shannon objective


@at_200_digits
def spread(point, alpha, lam, temperature=1.0):
    """(1 - Zᵏ)/(k(1-k)), -log Z at k = 0, and λ KL(p‖m) + (1-λ) KL(q‖m) at k = 1."""
    n = len(point) // 2
    q, p = (
        [mpmath.exp(v) for v in log_softmax([a / mpmath.mpf(temperature) for a in side])]
        for side in (point[:n], point[n:])
    )
    k, lam = (1 - mpmath.mpf(alpha)) / 2, mpmath.mpf(lam)
    if lam in (0, 1):
        return mpmath.mpf(0)
    r = [mean(pair, (lam, 1 - lam), alpha) for pair in zip(p, q, strict=True)]
    if k == 1:
        present = [[(x, m) for x, m in zip(side, r, strict=True) if x > 0] for side in (p, q)]
        kls = [mpmath.fsum(x * mpmath.log(x / m) for x, m in side) for side in present]
        return lam * kls[0] + (1 - lam) * kls[1]
    z = mpmath.fsum(r)
    if z == 0:
        return mpmath.inf if k <= 0 else 1 / (k * (1 - k))
    return -mpmath.log(z) if k == 0 else (1 - z**k) / (k * (1 - k))


@at_200_digits
def spread_and_slopes(point, alpha, lam, temperature=1.0):
    slopes = [slope(lambda v: spread(v, alpha, lam, temperature), point, i) for i in range(2 * V)]
    span = max(-v for side in (point[:V], point[V:]) for v in log_softmax(side))
    return spread(point, alpha, lam, temperature), slopes, span


SPREADS = (-50.0, -5.0, -1 - 1e-9, -1.0, -1 + 1e-9, 0.0, 1 - 1e-9, 1.0, 1 + 1e-9, 3.0, 50.0)


@pytest.mark.parametrize("lam", [1e-6, 0.1, 0.999])
def test_alpha_jensen_shannon(library, oracle, lam):
    """Value and gradients from the closed form, by differences.

    32 eps, and that of the powers pᵏ of what is known by its logarithm, k times as much.
    """
    student, teacher = logits(library.dtype)
    for alpha in SPREADS:
        loss = am.AlphaJensenShannon(alpha, lam)
        value, grads = loss.value_and_grad(
            library.array(student), library.array(teacher), reduction="none", wrt=BOTH
        )
        value, grads = library.numpy(value), [library.numpy(g) for g in grads]
        for row, point in enumerate(points(student, teacher, oracle)):
            wanted, slopes, span = spread_and_slopes(point[: 2 * V], alpha, lam)
            units = 32 + (1 + abs(1 - alpha) / 2) * float(span)
            what = f"α={alpha!r}, row {row}, "
            check(oracle, library.eps, value[row], wanted, units, wanted, library.tiny, what)
            for name, grad, part in zip(BOTH, grads, (slopes[:V], slopes[V:]), strict=True):
                scale = max(abs(v) for v in part)
                check(oracle, library.eps, grad[row], part, units, scale, library.tiny, what + name)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_of_alpha_jensen_shannon(any_library, oracle, temperature):
    student, teacher = logits(any_library.dtype)
    loss = am.AlphaJensenShannon(0.0, 0.25, temperature)
    value, grads = loss.value_and_grad(
        any_library.array(student), any_library.array(teacher), reduction="none", wrt=BOTH
    )
    for row, point in enumerate(points(student, teacher, oracle)):
        wanted, slopes, _ = spread_and_slopes(point[: 2 * V], 0.0, 0.25, temperature)
        eps, tiny = any_library.eps, any_library.tiny
        check(oracle, eps, any_library.numpy(value)[row], wanted, 32, wanted, tiny, "value")
        for name, grad, part in zip(BOTH, grads, (slopes[:V], slopes[V:]), strict=True):
            scale = max(abs(v) for v in part)
            check(oracle, eps, any_library.numpy(grad)[row], part, 32, scale, tiny, name)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_alpha_jensen_shannon_at_the_ends_of_lam(any_library, lam):
    student, teacher = (any_library.array(a) for a in logits(any_library.dtype))
    for alpha in (-1.0, 1.0, 3.0):
        value, grads = am.AlphaJensenShannon(alpha, lam).value_and_grad(student, teacher, wrt=BOTH)
        assert any_library.numpy(value) == 0.0
        for grad in grads:
            np.testing.assert_array_equal(any_library.numpy(grad), 0.0)


def test_alpha_jensen_shannon_of_zeros(any_library, oracle):
    """Zeros on either side, both, and supports that are disjoint: +inf at α >= 1 only."""
    no = -INF
    student = np.array([[0, no, 1, 0], [0, 1, no, no], [0.5, 0, 1, no], [0, no, no, no]])
    teacher = np.array([[no, 0.5, 1, 0], [no, no, 0, 1], [0, 0.5, -1, no], [1, 0, no, no]])
    arrays = [any_library.array(a) for a in (student, teacher)]
    for alpha in (-50.0, -5.0, -1.0, 0.0, 0.5, 1.0, 3.0):
        loss = am.AlphaJensenShannon(alpha, 0.25)
        value, grads = loss.value_and_grad(*arrays, reduction="none", wrt=BOTH)
        value = any_library.numpy(value)
        for row, point in enumerate(points(student, teacher, oracle)):
            wanted = spread(point[: 2 * V], alpha, 0.25)
            if wanted == mpmath.inf:
                assert value[row] == INF, (alpha, row)
                continue
            units = 32 * (1 + abs(1 - alpha) / 2)
            check(
                oracle, any_library.eps, value[row], wanted, units, wanted, any_library.tiny, alpha
            )
            for grad in grads:
                assert np.isfinite(any_library.numpy(grad)[row]).all(), (alpha, row)


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.0, 1.0, 3.0])
def test_alpha_jensen_shannon_is_the_minimum_over_assistants(alpha):
    """λ D_α(p‖r) + (1-λ) D_α(q‖r) at r = the mixture, and more at any other r."""
    student, teacher = logits("float64")
    lam = 0.3
    log_p, log_q = (torch.log_softmax(torch.from_numpy(a), -1) for a in (teacher, student))
    amari = am.AmariAlpha(alpha)

    def objective(log_r):
        return lam * amari(log_p, log_r) + (1 - lam) * amari(log_q, log_r)

    log_r = am.alpha_mixture(log_p, log_q, alpha=alpha, lam=lam)
    least = objective(log_r)
    value = am.AlphaJensenShannon(alpha, lam)(
        torch.from_numpy(student), torch.from_numpy(teacher), reduction="none"
    )
    np.testing.assert_allclose(value, least, rtol=1e-12)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-2):
        nudge = size * torch.randn(log_r.shape, generator=generator, dtype=log_r.dtype)
        assert torch.all(objective(torch.log_softmax(log_r + nudge, -1)) > least)


def test_differentiation_of_alpha_jensen_shannon(any_autodiff):
    student, teacher = (any_autodiff.array(a) for a in logits(any_autodiff.dtype))
    mask = any_autodiff.array([True, False, True, True], "bool")
    for alpha in (-1.0, 3.0):
        loss = am.AlphaJensenShannon(alpha, 0.25)

        def f(s, t, loss=loss):
            return loss(s, t, mask, denominator=5)

        f = jax.jit(f) if any_autodiff.name == "jax" else f
        value, grads = any_autodiff.derivatives(f, student, teacher)
        wanted, wanted_grads = loss.value_and_grad(student, teacher, mask, denominator=5, wrt=BOTH)
        np.testing.assert_allclose(value, any_autodiff.numpy(wanted), rtol=8 * any_autodiff.eps)
        for grad, want in zip(grads, wanted_grads, strict=True):
            want = any_autodiff.numpy(want)
            atol = 8 * any_autodiff.eps * np.abs(want).max()
            np.testing.assert_allclose(grad, want, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"alpha": INF}, ValueError, ["alpha", "finite", "inf"]),
        ({"alpha": np.zeros(3)}, TypeError, ["alpha", "number"]),
        ({"lam": 1.5}, ValueError, ["lam", "[0, 1]", "1.5"]),
        ({"lam": "half"}, TypeError, ["lam", "number", "'half'"]),
        ({"temperature": 0.0}, ValueError, ["temperature", "positive", "0.0"]),
    ],
    ids=repr,
)
def test_bad_arguments_of_alpha_jensen_shannon(arguments, error, words):
    with pytest.raises(error) as raised:
        am.AlphaJensenShannon(**arguments)
    for word in words:
        assert word in str(raised.value)


# ---------------------------------------------------------------------------------------------
# Every divergence through AMiD

ONE_OF_EACH = {name: cls(*cls.examples[0]) for name, cls in am.divergences.REGISTRY.items()}


@by_order
@pytest.mark.parametrize("divergence", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
@pytest.mark.parametrize("alpha", [-1.0, 3.0])
def test_every_divergence_in_every_order(oracle, divergence, order, alpha):
    """From its textbook definition on p, q and the mixture of them, in float64 on NumPy."""
    student, teacher = logits("float64")
    lam, eps = 0.25, float(np.finfo("float64").eps)
    loss = am.AMiD(divergence, order=order, alpha=alpha, lam=lam)
    value, grads = loss.value_and_grad(student, teacher, reduction="none", wrt=BOTH)
    exponents = sum(abs(v) for v in divergence.params if isinstance(v, float))
    held = isinstance(divergence, am.ConcreteScore) and divergence.params != ("uniform",) * 2
    for row, point in enumerate(points(student, teacher, oracle, alpha, lam)):
        truth = loss_and_slopes(divergence, order, point)
        units = 16 + (1 + exponents) * float(truth.span)
        size = units * abs(truth.value) + truth.terms
        check(oracle, eps, value[row], truth.value, 1, size, 1e-30, "value")
        if held:  # its weights are constants in its derivatives
            continue
        for name, grad, part in zip(
            BOTH, grads, (truth.slopes[:V], truth.slopes[V : 2 * V]), strict=True
        ):
            scale = max(truth.terms, *(abs(v) for v in part))
            check(oracle, eps, grad[row], part, units, scale, 1e-30, name)
