"""What holds for any logits."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import amidmath as am

EPS = float(np.finfo(float).eps)
ALPHAS = st.one_of(
    st.sampled_from([-math.inf, -1.0, 0.0, 1 - 1e-9, 1.0, 1 + 1e-7, 3.0, math.inf]),
    st.floats(-20, 20),
)
LAMS = st.one_of(st.sampled_from([0.0, 1e-6, 0.5, 1.0]), st.floats(0, 1))
EXAMPLES = [cls(*e) for cls in am.divergences.REGISTRY.values() for e in cls.examples]
DIVERGENCES = st.one_of(
    st.sampled_from(EXAMPLES),
    st.builds(am.AlphaBeta, st.floats(0.1, 2), st.floats(-0.1, 1)),
    st.builds(am.AmariAlpha, st.floats(-5, 5)),
    st.builds(am.Renyi, st.floats(0.01, 5)),
    st.builds(am.Gamma, st.floats(-0.9, 3)),
)
LOSSES = st.builds(am.AMiD, DIVERGENCES, st.sampled_from(["pr", "rp", "qr", "rq"]), ALPHAS, LAMS)
ROW = arrays(float, 5, elements=st.floats(-8, 8))
PADDED = arrays(float, 5, elements=st.one_of(st.floats(-8, 8), st.just(-math.inf)))


def scale_of(value, grad):
    """What rounding is relative to: next to equality D is second order in what it is made of."""
    return max(value, math.sqrt(value), np.abs(grad).max())


few = settings(max_examples=150, derandomize=True, deadline=None, database=None)


@few
@given(LOSSES, ROW, ROW)
def test_a_loss_is_never_negative_and_its_gradient_sums_to_zero(loss, student, teacher):
    value, grad = loss.value_and_grad(student, teacher)
    assert value >= 0.0
    assert math.isfinite(value)
    assert abs(grad.sum()) <= 16 * EPS * scale_of(value, grad) + 1e-30


@few
@given(LOSSES, PADDED, PADDED)
def test_zero_probabilities_never_give_nan_or_a_negative_loss(loss, student, teacher):
    assume(np.isfinite(student).any() and np.isfinite(teacher).any())
    value = loss(student, teacher)
    assert value >= 0.0
    both = np.isneginf(student) & np.isneginf(teacher)
    if math.isfinite(value):
        _, grad = loss.value_and_grad(student, teacher)
        assert np.all(grad[both] == 0.0)


@few
@given(LOSSES, ROW, ROW, st.integers(-64, 64), st.integers(-64, 64))
def test_adding_a_constant_to_the_logits_changes_nothing(loss, student, teacher, a, b):
    assume(math.isfinite(loss.alpha))  # which has a corner wherever p = q
    # Rounded to multiples of 2^-20, so that the shift itself rounds nothing.
    student, teacher = (np.round(v * 2**20) / 2**20 for v in (student, teacher))
    value, grad = loss.value_and_grad(student, teacher)
    shifted, shifted_grad = loss.value_and_grad(student + a, teacher + b)
    scale = scale_of(value, grad)
    assert abs(shifted - value) <= 1e-11 * scale + 1e-30
    assert np.all(np.abs(shifted_grad - grad) <= 1e-11 * scale + 1e-30)


@few
@given(LOSSES, ROW, st.permutations(range(5)))
def test_the_order_of_the_vocabulary_does_not_matter(loss, student, order):
    teacher = student[::-1].copy()
    assume(math.isfinite(loss.alpha))  # which has a corner at the token in the middle, where p = q
    assume(not isinstance(loss.divergence, am.TotalVariation))  # likewise
    value, grad = loss.value_and_grad(student, teacher)
    turned, turned_grad = loss.value_and_grad(student[order], teacher[order])
    scale = scale_of(value, grad)
    assert abs(turned - value) <= 1e-12 * scale + 1e-30
    assert np.all(np.abs(turned_grad - grad[order]) <= 1e-12 * scale + 1e-30)


@few
@given(DIVERGENCES, ROW, ROW)
def test_a_divergence_is_zero_exactly_where_both_are_equal(divergence, x, y):
    x, y = (v - np.log(np.exp(v).sum()) for v in (x, y))
    assert divergence(x, x) == 0.0
    value = divergence(x, y)
    assert value >= 0.0
    if np.abs(x - y).max() > 1e-6:
        assert value > 0.0


@few
@given(st.sampled_from(["pr", "rp", "qr", "rq"]), DIVERGENCES, ALPHAS, ROW)
def test_a_student_equal_to_its_teacher_has_no_loss(order, divergence, alpha, logits):
    value, grad = am.AMiD(divergence, order, alpha).value_and_grad(logits, logits)
    assert value == 0.0
    assert np.all(grad == 0.0)


@few
@given(ALPHAS, st.floats(0, 1), ROW, ROW)
def test_a_mixture_lies_between_its_sources_and_is_normalised(alpha, lam, p, q):
    p, q = (v - np.log(np.exp(v).sum()) for v in (p, q))
    mixed = am.alpha_mixture(p, q, alpha=alpha, lam=lam, normalize=False)
    slack = 4 * EPS * np.maximum(np.abs(p), np.abs(q)).clip(1)
    assert np.all(mixed <= np.maximum(p, q) + slack)
    assert np.all(mixed >= np.minimum(p, q) - slack)
    r = np.exp(am.alpha_mixture(p, q, alpha=alpha, lam=lam))
    assert math.isclose(r.sum(), 1.0, rel_tol=32 * EPS)


@few
@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(0, 1), ROW, ROW)
def test_the_mean_falls_as_alpha_grows(a, b, lam, p, q):
    low, high = sorted((a, b))
    larger, smaller = (
        am.alpha_mixture(p, q, alpha=alpha, lam=lam, normalize=False) for alpha in (low, high)
    )
    assert np.all(smaller <= larger + 32 * EPS * np.maximum(np.abs(p), np.abs(q)).clip(1))


@few
@given(ALPHAS, LAMS, ROW, ROW)
def test_two_sources_as_a_mean_of_k_are_the_mixture(alpha, lam, p, q):
    mixed = am.alpha_mixture(p, q, alpha=alpha, lam=lam, normalize=False)
    mean = am.log_falpha_mean(np.stack([p, q]), alpha=alpha, weights=(lam, 1 - lam))
    bound = 8 * EPS * np.maximum(np.abs(p), np.abs(q)).clip(1)
    assert np.all(np.abs(mixed - mean) <= bound)


@few
@given(st.floats(-3, 3), st.floats(-3, 3), ROW, ROW)
def test_exchanging_both_arguments_and_both_exponents_is_the_same_divergence(a, b, x, y):
    x, y = (v - np.log(np.exp(v).sum()) for v in (x, y))
    there, back = am.AlphaBeta(a, b)(x, y), am.AlphaBeta(b, a)(y, x)
    assert math.isclose(there, back, rel_tol=1e-11)
    there, back = am.AmariAlpha(a)(x, y), am.AmariAlpha(-a)(y, x)
    assert math.isclose(there, back, rel_tol=1e-11)


@few
@given(st.sampled_from(["pr", "rp", "qr", "rq"]), DIVERGENCES, LAMS, ROW, ROW)
def test_alpha_passes_through_one_without_a_jump(order, divergence, lam, student, teacher):
    values, grads = zip(
        *(
            am.AMiD(divergence, order, alpha, lam).value_and_grad(student, teacher)
            for alpha in (1 - 1e-9, 1.0, 1 + 1e-9)
        ),
        strict=True,
    )
    scale = scale_of(values[1], grads[1])
    for value, grad in zip(values, grads, strict=True):
        assert abs(value - values[1]) <= 1e-5 * scale
        assume(not isinstance(divergence, am.TotalVariation))  # whose gradient has jumps
        assert np.all(np.abs(grad - grads[1]) <= 1e-4 * scale)


@few
@given(ALPHAS, st.floats(0, 1), st.floats(-50, 50), ROW, ROW)
def test_means_are_homogeneous(alpha, lam, shift, x, y):
    """The mean of multiples is the multiple of the mean; so are those of the numbers themselves."""
    logs = np.stack([x, y])
    mean = am.log_falpha_mean(logs, alpha=alpha, weights=(lam, 1 - lam))
    moved = am.log_falpha_mean(logs + shift, alpha=alpha, weights=(lam, 1 - lam))
    assert np.all(
        np.abs(moved - (mean + shift)) <= 64 * EPS * (1 + abs(shift) + np.abs(logs).max())
    )
    numbers = am.falpha_mean(np.exp(logs), alpha=alpha, weights=(lam, 1 - lam))
    np.testing.assert_allclose(np.log(numbers), mean, atol=64 * EPS * (1 + np.abs(logs).max()))


@few
@given(st.floats(0.01, 100), ROW, ROW)
def test_divergences_are_homogeneous_of_their_degree(t, x, y):
    """D(tx‖ty) = t^degree D(x‖y), for those that take measures; the sum of partials is Euler's."""
    for divergence in (am.GeneralizedKL(), am.AlphaBeta(0.2, 0.7), am.Beta(0.5)):
        value, (by_x, by_y) = divergence.value_and_grad(x, y)
        scaled = divergence(x + math.log(t), y + math.log(t))
        wanted = t**divergence.degree * value
        # Shifting the logarithms rounds them, which near equality is first order in log(x/y).
        assert abs(scaled - wanted) <= 1e-10 * wanted + 1e-12 * math.sqrt(wanted) + 1e-25
        euler = (by_x + by_y).sum()
        size = np.abs(by_x).sum() + np.abs(by_y).sum()
        assert abs(euler - divergence.degree * value) <= 1e-12 * size + 1e-25
