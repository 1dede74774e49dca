"""What torch and JAX make of the array core when they differentiate it operation by operation."""

from __future__ import annotations

import itertools

import definitions
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

import amidmath as am
from amidmath.divergences import REGISTRY

INF = np.inf
EVERY = [cls(*params) for cls in dict.fromkeys(REGISTRY.values()) for params in cls.examples]
FEW = [am.KL(), am.AlphaBeta(0.2, 0.7), am.ConcreteScore("x", "y")]
ORDERS = [
    (o, held) for o in ("pr", "rp", "qr", "rq") for held in (False, True) if "q" in o or not held
]
METHODS = [
    *((name, {}) for name in am.methods.METHODS),
    *(("distillm2", {"detach_mixture": True}), ("csd", {"first": "uniform", "second": "teacher"})),
]
BOTH = ("student", "teacher")

by_framework = pytest.mark.parametrize("framework", ["torch", "jax"])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def logits():
    """Rows: unrelated, equal, equal but for a constant, equal at some tokens, nearly equal."""
    rng = np.random.default_rng(7)
    student, teacher = 1.5 * rng.normal(size=(2, 5, 6))
    teacher[1] = student[1]
    teacher[2] = student[2] + 2.0
    student[3], teacher[3] = np.log([0.6, 0.1, *[0.075] * 4]), np.log([0.1, 0.6, *[0.075] * 4])
    teacher[4] = student[4] + 1e-5 * teacher[4]
    return student, teacher


def with_zeros():
    """Tokens that neither has, that the student has not, and that the teacher has not."""
    student, teacher = (a[:3].copy() for a in logits())
    student[0, 2] = teacher[0, 2] = student[1, 3] = teacher[2, 4] = -INF
    return student, teacher


def gradients(loss, student, teacher, framework, rows=slice(None)):
    """Of the sum over the rows by both logits, op by op and from the closed form."""
    if framework == "torch":
        leaves = [torch.from_numpy(a).requires_grad_() for a in (student, teacher)]
        total = loss(*leaves, reduction="none", backend="reference")[rows].sum()
        got = torch.autograd.grad(total, leaves, materialize_grads=True)
    else:
        leaves = [jnp.asarray(a) for a in (student, teacher)]

        def of(s, t):
            return loss(s, t, reduction="none", backend="reference")[rows].sum()

        got = jax.grad(of, argnums=(0, 1))(*leaves)
    _, wanted = loss.value_and_grad(student, teacher, reduction="sum", wrt=BOTH)
    return zip(got, wanted, strict=True)


def check(loss, student, teacher, framework, rows=None):
    if rows is None:
        rows = smooth_rows(loss)
    for got, wanted in gradients(loss, student, teacher, framework, rows):
        np.testing.assert_allclose(
            np.asarray(got)[rows], wanted[rows], rtol=1e-11, atol=1e-13, err_msg=repr(loss)
        )


def smooth_rows(loss):
    """Of :func:`logits`, without the row whose equal tokens are a kink of the total variation."""
    return np.array([0, 1, 2, 4]) if "TotalVariation" in repr(loss) else slice(None)


def amid(divergence, order, held, alpha, lam=0.5):
    return am.AMiD(divergence, order, alpha=alpha, lam=lam, detach_assistant=held)


# ---------------------------------------------------------------------------------------------
# First derivatives are the closed form's, what is constant in it included


@pytest.mark.parametrize(("order", "held"), ORDERS)
def test_gradients_of_every_divergence(order, held):
    for divergence, (alpha, lam) in itertools.product(EVERY, [(-1.0, 0.5), (1.0, 0.3), (3.0, 0.5)]):
        check(amid(divergence, order, held, alpha, lam), *logits(), "torch")


@pytest.mark.parametrize("divergence", [*FEW, am.TotalVariation(), am.FisherRao()], ids=repr)
@pytest.mark.parametrize(("order", "held"), ORDERS)
def test_gradients_in_jax(divergence, order, held):
    check(amid(divergence, order, held, -1.0), *logits(), "jax")


@by_framework
@pytest.mark.parametrize(("name", "params"), METHODS)
def test_gradients_of_methods(framework, name, params):
    for loss in am.methods.METHODS[name].losses(**params).values():
        check(loss, *logits(), framework)


@by_framework
def test_gradients_of_sums_and_of_the_spread(framework):
    held = am.AMiD(order="qr", alpha=0.0, lam=0.5, detach_assistant=True)
    for loss in (0.3 * held + am.AMiD(am.Jeffreys()), am.AlphaJensenShannon(0.3, 0.5)):
        check(loss, *logits(), framework)


@by_framework
@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
def test_gradients_where_probabilities_are_zero(framework, held):
    student, teacher = with_zeros()
    for order, divergence in itertools.product(("qr", "rq"), (*FEW, am.JensenShannon())):
        for alpha in (-1.0, 0.0, 3.0):
            loss = amid(divergence, order, held, alpha)
            rows = np.flatnonzero(np.isfinite(loss(student, teacher, reduction="none")))
            assert 0 in rows
            check(loss, student, teacher, framework, rows)


@by_framework
def test_gradients_by_knobs(framework):
    student, teacher = logits()
    rows = [0, 3, 4]
    for order, alpha in itertools.product(("pr", "qr"), (-1.0, 0.5)):
        knobs = np.full(5, alpha), np.full(5, 0.5)
        names = ("alpha", "lam")
        loss = am.AMiD(order=order, alpha=knobs[0], lam=knobs[1])
        _, wanted = loss.value_and_grad(student, teacher, reduction="sum", wrt=names)
        if framework == "torch":
            leaves = [torch.from_numpy(a).requires_grad_() for a in knobs]
            of = am.AMiD(order=order, alpha=leaves[0], lam=leaves[1])
            arrays = [torch.from_numpy(a) for a in (student, teacher)]
            got = torch.autograd.grad(of(*arrays, reduction="sum", backend="reference"), leaves)
        else:

            def of(a, w, order=order):
                return am.AMiD(order=order, alpha=a, lam=w)(
                    jnp.asarray(student), jnp.asarray(teacher), reduction="sum", backend="reference"
                )

            got = jax.grad(of, argnums=(0, 1))(*(jnp.asarray(a) for a in knobs))
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(np.asarray(one)[rows], other[rows], rtol=1e-9, atol=1e-13)


# ---------------------------------------------------------------------------------------------
# Second derivatives


def hessian(loss, student, teacher, framework):
    """By one row of student logits."""
    if framework == "torch":
        other = torch.from_numpy(teacher)
        of = torch.func.hessian(lambda s: loss(s, other, backend="reference"))
        return of(torch.from_numpy(student)).numpy()
    of = jax.hessian(lambda s: loss(s, jnp.asarray(teacher), backend="reference"))
    return np.asarray(of(jnp.asarray(student)))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def fisher(q):
    return np.diag(q) - np.outer(q, q)


# Σ y f(x/y) bends as f''(1).
BEND = [
    *((am.KL(), 1.0), (am.ReverseKL(), 1.0), (am.Jeffreys(), 2.0), (am.JensenShannon(0.3), 0.21)),
    *((am.SquaredHellinger(), 0.5), (am.Triangular(), 1.0), (am.PearsonChi2(), 2.0)),
    *((am.Renyi(2.0), 2.0), (am.SkewKL(0.1), 0.81), (am.ArithmeticGeometric(0.3), 0.21)),
    (am.FDivergence(lambda u, xp: u * xp.log(u), smooth=True), 1.0),
    (am.FDivergence(lambda u, xp: u * xp.log(u)), 1.0),
]


@by_framework
@pytest.mark.parametrize(("divergence", "bend"), BEND, ids=[type(d).__name__ for d, _ in BEND])
def test_at_equality_the_hessian_is_the_fisher_matrix(framework, divergence, bend):
    student = logits()[0][1]
    loss = am.AMiD(divergence, "pr", lam=0.0)
    got = hessian(loss, student, student, framework)
    np.testing.assert_allclose(got, bend * fisher(softmax(student)), atol=1e-14)


@by_framework
@pytest.mark.parametrize("exponents", [(0.2, 0.7), (1.0, 1.0), (0.5, 0.5), (1.0, -1.0), (0.4, 0.0)])
def test_the_alpha_beta_divergence_bends_as_a_power_of_the_mass(framework, exponents):
    """½ Σ x^{a+b-2} dx² near x = y."""
    student = logits()[0][1]
    q = softmax(student)
    wanted = fisher(q) @ np.diag(q ** (sum(exponents) - 2.0)) @ fisher(q)
    loss = am.AMiD(am.AlphaBeta(*exponents), "pr", lam=0.0)
    got = hessian(loss, student, student, framework)
    np.testing.assert_allclose(got, wanted, atol=1e-13)


@by_framework
@pytest.mark.parametrize("shift", [0.0, 2.0])
@pytest.mark.parametrize("lam", [0.3, 0.5])
@pytest.mark.parametrize(("order", "alpha"), [("pr", -1.0), ("qr", -1.0), ("rq", 0.5), ("rp", 3.0)])
def test_mixed_with_the_assistant(framework, order, alpha, lam, shift):
    """The share of the step that parts the two."""
    student = logits()[0][1]
    share = 1.0 - lam if "p" in order else lam
    got = hessian(am.AMiD(order=order, alpha=alpha, lam=lam), student, student + shift, framework)
    np.testing.assert_allclose(got, share**2 * fisher(softmax(student)), atol=1e-14)


@by_framework
@pytest.mark.parametrize(
    ("name", "bend"), [("kl", 1.0), ("reverse_kl", 1.0), ("gkd", 0.25), ("csd", 2.0), ("taid", 1.0)]
)
def test_methods_at_equality(framework, name, bend):
    student = logits()[0][1]
    got = hessian(am.methods.METHODS[name].loss(), student, student, framework)
    np.testing.assert_allclose(got, bend * fisher(softmax(student)), atol=1e-14)


@by_framework
def test_what_is_held_is_constant_in_second_derivatives_too(framework):
    """Of KL(q‖r), r held: what Σ q log(q/r) has for a fixed r."""
    student, teacher = (a[0] for a in logits())
    loss = am.AMiD(order="qr", alpha=-1.0, lam=0.4, detach_assistant=True)
    q = softmax(student)
    r = 0.4 * softmax(teacher) + 0.6 * q
    lean = np.log(q / r) - (q * np.log(q / r)).sum()
    wanted = fisher(q) + np.diag(q * lean) - np.outer(q, q * lean) - np.outer(q * lean, q)
    got = hessian(loss, student, teacher, framework)
    np.testing.assert_allclose(got, wanted, atol=1e-14)


# ---------------------------------------------------------------------------------------------
# By the knobs, at every limit of theirs

KNOBS = [
    *itertools.product(
        (-INF, -5.0, -1.0, 0.5, 1 - 1e-6, 1.0, 1 + 1e-12, 3.0, INF), (0.0, 1e-6, 0.3, 0.5, 1.0)
    )
]
FOUR = (*BOTH, "alpha", "lam")


def rows_and_knobs():
    """Unrelated rows, equal ones, and zeros on both sides or on one, each with every pair."""
    student, teacher = (a[[0, 1, 0, 0, 0], :4].copy() for a in logits())
    student[2, 2] = teacher[2, 2] = student[3, 1] = teacher[4, 1] = -INF
    alpha, lam = np.tile(KNOBS, (len(student), 1)).T
    student, teacher = (np.repeat(a, len(KNOBS), axis=0) for a in (student, teacher))
    return student, teacher, alpha, lam


@by_framework
@pytest.mark.parametrize("order", ["pr", "rp", "qr", "rq"])
def test_derivatives_by_every_argument_at_every_limit(framework, order):
    """Those of the closed form: alpha = 1, ±inf and next to 1, λ at its ends, zeros, equality."""
    operands = rows_and_knobs()
    divergences = (am.KL(), am.AlphaBeta(0.2, 0.7), am.SquaredHellinger(), am.Renyi(2.0))
    for divergence in divergences if framework == "torch" else divergences[:1]:
        loss = am.AMiD(divergence, order, *operands[2:])
        values, wanted = loss.value_and_grad(*operands[:2], reduction="none", wrt=FOUR)
        finite = np.flatnonzero(np.isfinite(values))

        def total(student, teacher, alpha, lam, divergence=divergence, finite=finite):
            loss = am.AMiD(divergence, order, alpha, lam)
            values = loss(student, teacher, reduction="none", backend="reference")
            return values[finite].sum()

        if framework == "torch":
            leaves = [torch.from_numpy(a).requires_grad_() for a in operands]
            got = torch.autograd.grad(total(*leaves), leaves)
        else:
            got = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*map(jnp.asarray, operands))
        for name, one, two in zip(FOUR, got, wanted, strict=True):
            there = finite[np.isfinite(two[finite].reshape(len(finite), -1)).all(axis=-1)]
            np.testing.assert_allclose(
                np.asarray(one)[there],
                two[there],
                rtol=1e-8,
                atol=1e-8,
                err_msg=f"{divergence} by {name}",
            )


@by_framework
@pytest.mark.parametrize(
    ("alpha", "lam"), [(1.0, 0.3), (1.0, 0.0), (-1.0, 0.3), (-1.0, 0.0), (3.0, 1.0), (0.5, 1.0)]
)
def test_second_derivatives_by_the_knobs(framework, alpha, lam):
    """By differences of the definition, at the limits too."""
    student, teacher = (a[0, :4] for a in logits())
    step = mpmath.mpf(10) ** -15

    def definition(a, b):
        p, q = (
            [mpmath.exp(v) for v in definitions.log_softmax([mpmath.mpf(float(v)) for v in row])]
            for row in (teacher, student)
        )
        weights = (mpmath.mpf(lam) + b, 1 - mpmath.mpf(lam) - b)
        r = [definitions.mean(pair, weights, alpha + a) for pair in zip(p, q, strict=True)]
        total = mpmath.fsum(r)
        return mpmath.fsum(u * mpmath.log(u * total / v) for u, v in zip(p, r, strict=True))

    with mpmath.workdps(80):
        here = definition(0, 0)
        up, down = ([definition(s, 0), definition(0, s)] for s in (step, -step))
        wanted = np.empty((2, 2))
        for i in range(2):
            wanted[i, i] = (up[i] + down[i] - 2 * here) / step**2
        both = definition(step, step) - up[0] - up[1] + here
        wanted[0, 1] = wanted[1, 0] = both / step**2

    def value(knobs):
        loss = am.AMiD(am.KL(), "pr", knobs[0], knobs[1])
        rows = student[None], teacher[None]
        arrays = map(torch.from_numpy if framework == "torch" else jnp.asarray, rows)
        return loss(*arrays, reduction="sum", backend="reference")

    at = np.array([alpha, lam])
    if framework == "torch":
        got = torch.autograd.functional.hessian(value, torch.from_numpy(at))
    else:
        got = jax.hessian(value)(jnp.asarray(at))
    np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-10)
