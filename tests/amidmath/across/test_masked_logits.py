"""Logits masked by a large negative number are as good as logits masked by -inf.

As models and their wrappers mask and pad vocabularies: by -1e4, by -1e9, by the dtype's smallest
number. What counts is what the same rows give with -inf there, in double precision.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import amidmath as am

ORDERS = ("pr", "rp", "qr", "rq")
ALPHAS = (-np.inf, -50.0, -5.0, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 10.0, np.inf)
LAMS = (0.0, 0.1, 0.5, 0.9, 1.0)  # a geometric mixture of 1e-3 keeps e^-10 of a mask of -1e4
DIVERGENCES = [
    *(am.KL(), am.ReverseKL(), am.Jeffreys(), am.JensenShannon(0.5), am.SkewKL(0.1)),
    *(am.ArithmeticGeometric(0.5), am.SquaredHellinger(), am.TotalVariation(), am.Triangular()),
    *(am.FisherRao(), am.Bhattacharyya(), am.Chernoff(0.5), am.Renyi(0.5), am.Renyi(2.0)),
    *(am.PearsonChi2(), am.NeymanChi2(), am.AlphaBeta(0.2, 0.7), am.AlphaBeta(0.0, 0.0)),
    *(am.AmariAlpha(0.5), am.Tsallis(0.5), am.Beta(0.5), am.Beta(-1.0), am.Gamma(1.0)),
    am.ConcreteScore("x", "y"),
]
WRT = ("student", "teacher")
BOUND = 300  # eps; a gradient is a sum of terms of the size of the value


def masked(dtype, fills, size, count=16):
    """Rows with masks of large negative numbers, and the same with -inf in their place.

    Three tokens in ten are masked on either side, by any of ``fills``, and wherever one side masks
    a token the other is often sure of it.
    """
    rng = np.random.default_rng(size)
    given, wanted = [], []
    masks = rng.random((2, count, size)) < 0.3
    masks[0, :, 0] = masks[1, :, 1] = False
    for mine, theirs in (masks, masks[::-1]):
        logits = 2.0 * rng.normal(size=(count, size)) + 5.0 * (theirs & ~mine)
        fill = rng.choice(fills, size=(count, size))
        given.append(np.where(mine, fill, logits).astype(dtype))
        wanted.append(np.where(mine, -np.inf, logits).astype(dtype).astype(np.float64))
    return given, wanted


def fills(dtype):
    lowest = float(np.finfo(dtype).min)
    return [(-1e4,), (-1e9,), (lowest,), (-1e4, -1e9, lowest)]


def check(got, wanted, dtype, what):
    """Values and gradients, wherever the wanted ones are numbers; never a NaN nor a negative."""
    (value, grads), (true_value, true_grads) = got, wanted
    eps = np.finfo(dtype).eps
    value = np.asarray(value)
    assert (value >= 0.0).all(), what  # False of a NaN
    counts = np.isfinite(true_value) & (true_value < 1e30)
    size = np.maximum(np.abs(true_value), 1e-3)[counts]
    assert (np.abs(value[counts] - true_value[counts]) <= BOUND * eps * size).all(), what
    for grad, truth in zip(grads, true_grads, strict=True):
        there = counts & np.isfinite(truth).all(axis=-1)
        off = np.abs(np.asarray(grad)[there] - truth[there]).max(axis=-1)
        size = np.maximum(np.abs(truth[there]).max(axis=-1), np.maximum(true_value[there], 1e-3))
        assert (off <= BOUND * eps * size).all(), what


def of_all(loss, rows, **options):
    with np.errstate(all="ignore"):
        return loss.value_and_grad(*rows, reduction="none", wrt=WRT, **options)


def settings(count, dtype):
    """α and λ of every pair of them, one a row, and how often rows are repeated for that."""
    pairs = np.array(list(itertools.product(ALPHAS, LAMS)), dtype)
    return len(pairs), *np.repeat(pairs, count, axis=0).T


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_every_divergence_order_alpha_and_lam(divergence, dtype):
    for size, fill in zip((3, 4, 6, 8), fills(dtype), strict=True):
        given, wanted = masked(dtype, fill, size)
        times, alpha, lam = settings(len(given[0]), dtype)
        given, wanted = ([np.tile(a, (times, 1)) for a in rows] for rows in (given, wanted))
        for order in ORDERS:
            got = of_all(am.AMiD(divergence, order, alpha, lam), given)
            exact = (a.astype("float64") for a in (alpha, lam))
            truth = of_all(am.AMiD(divergence, order, *exact), wanted)
            check(got, truth, dtype, (order, fill))


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("order", ORDERS)
def test_numbers_and_kernels(order, backend):
    """α and λ as numbers, whose forms are others, and what is compiled."""
    settings = [
        *((am.KL(), alpha, 0.1) for alpha in (-1.0, 1.0, 3.0)),
        *((am.AlphaBeta(0.2, 0.7), 0.5, 0.9), (am.KL(), -1.0, 0.0)),
    ]
    if backend == "reference":
        settings += [(am.KL(), alpha, 0.1) for alpha in (-np.inf, -5.0, 0.0, np.inf)]
        settings += [(am.KL(), 1.0, 1.0), (am.TotalVariation(), 1.0, 0.3)]
    for divergence, alpha, lam in settings:
        loss = am.AMiD(divergence, order, alpha, lam)
        for size, fill in zip((5, 37), fills("float32")[1:3], strict=True):
            given, wanted = masked("float32", fill, size)
            got = of_all(loss, given, backend=backend)
            check(got, of_all(loss, wanted), "float32", (loss, fill))


@pytest.mark.parametrize("name", sorted(am.methods.METHODS))
def test_methods(name):
    for loss in am.methods.METHODS[name].losses().values():
        for size, fill in zip((3, 6), fills("float32")[1:3], strict=True):
            given, wanted = masked("float32", fill, size)
            check(of_all(loss, given), of_all(loss, wanted), "float32", (loss, fill))


def test_the_alpha_jensen_shannon_objective():
    for alpha, lam in itertools.product((-5.0, -1.0, 0.0, 1.0, 3.0), (0.1, 0.5)):
        loss = am.AlphaJensenShannon(alpha, lam)
        given, wanted = masked("float32", (-1e9,), 5)
        check(of_all(loss, given), of_all(loss, wanted), "float32", loss)


def test_bfloat16():
    """Computed in float32, from logits that bfloat16 has."""
    lowest = float(torch.finfo(torch.bfloat16).min)
    given, wanted = masked("float32", (-1e9, lowest), 6)
    tensors = [torch.from_numpy(a).to(torch.bfloat16) for a in given]
    kept = [
        np.where(np.isinf(w), -np.inf, t.double()) for t, w in zip(tensors, wanted, strict=True)
    ]
    for order, alpha in itertools.product(ORDERS, (-1.0, 1.0, 3.0)):
        loss = am.AMiD(order=order, alpha=alpha, lam=0.3)
        value, grads = loss.value_and_grad(*tensors, reduction="none", wrt=WRT)
        got = value, [g.double() for g in grads]
        truth = of_all(loss, kept)
        check((value, ()), (truth[0], ()), "float32", loss)
        check(got, truth, "float16", loss)  # half of bfloat16's eps is eight of float16's


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.0, 1.0, 3.0])
def test_of_what_the_teacher_is_known_by(alpha):
    """Against top-k lists, and from hidden states whose heads' biases are the masks."""
    given, wanted = masked("float32", (-1e9,), 7, count=64)
    known = np.sum(wanted[1] > -np.inf, axis=-1) > 5  # of fewer, rounding would decide of a tail
    (student, teacher), (s, t) = ([a[known] for a in rows] for rows in (given, wanted))
    loss = am.AMiD(order="pr", alpha=alpha, lam=0.4)
    value, grad = loss.value_and_grad(student, am.top_k(teacher, 3), reduction="none")
    wanted = loss.value_and_grad(s, am.top_k(t, 3), reduction="none")
    check((value, [grad]), (wanted[0], [wanted[1]]), "float32", "top-k")

    values = []
    for rows, dtype in (((student, teacher), "float32"), ((s, t), "float64")):
        states = np.eye(len(rows[0]), dtype=dtype)
        heads = [am.Head(np.zeros((7, len(states)), dtype), bias=row[3]) for row in rows]
        values.append(loss(*(am.Hidden(states, head) for head in heads), reduction="none"))
    check((values[0], ()), (values[1], ()), "float32", "hidden states")


# ---------------------------------------------------------------------------------------------
# Masses that are no numbers of the dtype


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_a_mass_below_the_smallest_number_next_to_none(divergence, backend):
    """It takes no part, whichever divergence, and whoever computes."""
    for dtype, tiny in (("float32", -100.0), ("float64", -1000.0)):
        sides = np.array([[tiny, -1.5, np.log1p(-np.exp(-1.5))]], dtype)
        none = sides.copy()
        none[0, 0] = -np.inf
        other = np.array([[-np.inf, -0.5, np.log1p(-np.exp(-0.5))]], dtype)
        with np.errstate(all="ignore"):
            for x, y in ((sides, other), (other, sides)):
                got = divergence.value_and_grad(x, y, backend=backend)
                absent = [none if a is sides else a for a in (x, y)]
                wanted = divergence.value_and_grad(*absent, backend=backend)
                for one, two in zip((got[0], *got[1]), (wanted[0], *wanted[1]), strict=True):
                    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_where_one_side_has_mass_a_small_one_counts_on_the_other(dtype):
    """A large number that grows with the logarithm, and infinity for zero."""
    x = np.log(np.array([[0.25, 0.75]], dtype))
    for small in (-200.0, -1e4, -1e9, float(np.finfo(dtype).min), -np.inf):
        y = np.array([[small, 0.0]], dtype)
        value = am.KL()(x, y)
        np.testing.assert_allclose(value, 0.25 * (x[0, 0] - y[0, 0]) + 0.75 * x[0, 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ORDERS)
def test_an_assistant_that_is_nearly_one_source_or_nearly_geometric(order, dtype, oracle):
    """Here -1e9 is not as good as -inf: eᵏˡ is near 1, and the assistant reaches what is masked."""
    inf = np.inf
    student = [
        [5.4, -1e9, 2.0, -0.6, 6.5],
        [0.3, -1e4, 1.2, 2.2, -1e4],
        [-inf, -1.5, -1.7, 2.7, -inf],
    ]
    teacher = [
        [-1e9, 5.0, -1e9, 1.0, -1e9],
        [2.7, 0.7, -1e4, 1.1, -0.4],
        [-1.3, -0.5, 1.0, 1.3, -1.4],
    ]
    rows = [np.array(a, dtype) for a in (student, teacher)]
    bound = 64 * np.finfo(dtype).eps
    for alpha, lam in itertools.product((1 - 1e-12, 1 + 1e-12), (1e-12, 0.5, 1 - 1e-12)):
        losses = [am.AMiD(order=order, alpha=alpha, lam=lam)]
        if dtype == "float64":
            arrays = np.full(3, alpha), np.full(3, lam)
            losses.append(am.AMiD(order=order, alpha=arrays[0], lam=arrays[1]))
        truth = oracle.amid(*rows, ("KL",), order, alpha, lam).value
        for loss, backend in itertools.product(losses, ("reference", "compiled")):
            value = loss(*rows, reduction="none", backend=backend)
            counts = np.array([v < np.inf for v in truth])
            assert (value[~counts] == np.inf).all(), loss
            off = oracle.error(value[counts], truth[counts])
            assert (off <= bound * oracle.floats(truth[counts])).all(), loss


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0])
def test_a_mass_that_is_small_in_the_escorts_only_counts(gamma, backend):
    """Gamma's divergence of disjoint rows is made of masses whose powers are no numbers."""
    logs = np.array([[0.0, -60.0, -200.0], [-200.0, -50.0, 0.0]], np.float32)
    x, y = (a.astype(np.float64)[None] for a in logs)
    options = {"backend": backend}
    value, grads = am.Gamma(gamma).value_and_grad(logs[:1], logs[1:], **options)
    truth, wanted = am.Gamma(gamma).value_and_grad(x, y, **options)  # whose masses are numbers
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    for grad, right in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(grad, right, rtol=1e-4, atol=1e-6)
