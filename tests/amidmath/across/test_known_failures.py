"""Failures seen in other implementations, one test each."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am

INF = math.inf
ORDERS = ("pr", "rp", "qr", "rq")
ALPHAS = (-INF, -5.0, -1.0, 0.0, 1 - 1e-9, 1.0, 3.0, INF)
DIVERGENCES = {
    "KL": am.KL(),
    "reverse KL": am.ReverseKL(),
    "AB(.2,.7)": am.AlphaBeta(0.2, 0.7),
}
by_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
by_order = pytest.mark.parametrize("order", ORDERS)


def name(divergence):
    return (type(divergence).__name__, *divergence.params)


def fill(rows):
    """Four rows of four tokens, the rows repeated: one shape, which JAX compiles once for."""
    rows = np.resize(rows, (4, np.shape(rows)[1]))
    assert rows.shape == (4, 4)
    return rows


def check(oracle, library, loss, student, teacher):
    """value_and_grad against the oracle where the loss is finite; +inf where it is not."""
    arrays = library.array(fill(student)), library.array(fill(teacher))
    value, grad = loss.value_and_grad(*arrays, reduction="none")
    value, grad = library.numpy(value), library.numpy(grad)
    rows = [library.numpy(a) for a in arrays]
    expected = oracle.amid(*rows, name(loss.divergence), loss.order, loss.alpha, loss.lam)
    scale = np.maximum(oracle.largest(expected.student), oracle.floats(expected.terms))
    for row, wanted in enumerate(expected.value):
        assert value[row] >= 0.0, loss
        if wanted == INF:
            assert value[row] == INF, loss
            continue
        bound = (16 + float(expected.span[row])) * library.eps
        assert oracle.error(value[row], wanted) <= bound * float(wanted) + library.tiny, loss
        error = oracle.error(grad[row], expected.student[row]).max()
        assert error <= bound * scale[row] + library.tiny, loss


def test_alpha_of_three_is_the_harmonic_mixture_not_the_geometric(library, oracle):
    p, q = fill([[0.6, 0.2, 0.1, 0.1]]), fill([[0.1, 0.2, 0.3, 0.4]])
    mixed = am.alpha_mixture(*(library.array(np.log(a)) for a in (p, q)), alpha=3.0, lam=0.5)
    harmonic = 2 / (1 / p + 1 / q)
    harmonic /= harmonic.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(library.numpy(mixed)), harmonic, rtol=16 * library.eps)
    loss = am.AMiD(order="pr", alpha=3.0, lam=0.5)
    check(
        oracle, library, loss, np.array([[4.0, 0.0, -4.0, 1.0]]), np.array([[-4.0, 0.0, 4.0, 2.0]])
    )


@by_order
def test_alpha_one_part_in_a_billion_below_one_is_as_good_as_one(library, order):
    """In float32 1 - 1e-9 is 1, and k = 5e-10 divides a logarithm that is off by 1e-7."""
    rng = np.random.default_rng(1)
    student, teacher = (library.array(a) for a in 4 * rng.normal(size=(2, 4, 4)))
    values, grads = zip(
        *(
            am.AMiD(order=order, alpha=alpha).value_and_grad(student, teacher, reduction="none")
            for alpha in (1 - 1e-9, 1.0)
        ),
        strict=True,
    )
    for near, limit in (values, grads):
        near, limit = library.numpy(near), library.numpy(limit)
        # An element of a gradient is a sum of terms as large as the row's largest.
        size = np.abs(limit).max(axis=-1, keepdims=True)
        assert np.all(np.abs(near - limit) <= 2e-6 * size)


@by_order
@by_divergence
def test_the_same_token_at_minus_infinity_in_both(any_library, oracle, divergence, order):
    """A padded vocabulary: a finite loss with finite gradients, exactly 0 at that token."""
    student = fill([[0.5, -INF, 1.0, -2.0], [0.1, 0.2, -INF, -INF]])
    teacher = fill([[-1.0, -INF, 0.3, 2.0], [0.3, 0.25, -INF, -INF]])
    for alpha in ALPHAS:
        loss = am.AMiD(divergence, order=order, alpha=alpha)
        check(oracle, any_library, loss, student, teacher)
        arrays = any_library.array(student), any_library.array(teacher)
        _, grad = loss.value_and_grad(*arrays, reduction="none")
        np.testing.assert_array_equal(any_library.numpy(grad)[student == -INF], 0.0)


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 1.0, 3.0])
def test_padding_has_no_nan_under_autograd(any_autodiff, alpha):
    student = any_autodiff.array(fill([[0.5, -INF, 1.0, 2.0], [0.0, -INF, -1.0, 1.0]]))
    teacher = any_autodiff.array(fill([[-1.0, -INF, 0.3, 0.0], [0.5, -INF, 1.0, 1.5]]))
    for order in ORDERS:
        value, grads = any_autodiff.derivatives(am.AMiD(order=order, alpha=alpha), student, teacher)
        assert np.isfinite(value)
        for grad in grads:
            assert np.all(np.isfinite(grad))
            np.testing.assert_array_equal(grad[:, 1], 0.0)


@by_order
@by_divergence
def test_one_token_at_minus_infinity_in_the_teacher_is_never_a_negative_divergence(
    any_library, oracle, divergence, order
):
    student = np.array([[0.5, 0.2, 1.0, -2.0], [-0.3, 0.2, 4.0, 1.0]])
    teacher = np.array([[-1.0, -INF, 0.3, 2.0], [0.3, 0.1, -INF, 1.5]])
    for alpha in (-INF, -5.0, -1.0, 0.0, 1.0, 3.0, INF):
        loss = am.AMiD(divergence, order=order, alpha=alpha)
        check(oracle, any_library, loss, student, teacher)
        check(oracle, any_library, loss, teacher, student)  # now in the student


@by_order
def test_disjoint_supports_are_infinitely_far_apart_where_no_mixture_exists(any_library, order):
    student = any_library.array(fill([[0.0, 1.0, -INF, -INF]]))
    teacher = any_library.array(fill([[-INF, -INF, 1.0, 0.0]]))
    for divergence in DIVERGENCES.values():
        for alpha in (1.0, 3.0, INF):
            loss = am.AMiD(divergence, order=order, alpha=alpha)
            assert any_library.numpy(loss(student, teacher)) == INF


@pytest.mark.parametrize("divergence", [am.AlphaBeta(2.0, -0.5), am.AlphaBeta(1.0, -1.0)])
def test_infinite_alpha_beta_divergences_are_not_nan(any_library, oracle, divergence):
    """x > 0 = y and a > 0 > b: e^{+inf} less its tangent."""
    student = np.array([[0.5, 0.2, 1.0, -INF], [0.5, 0.2, -INF, -INF]])
    teacher = np.array([[0.3, -INF, 1.5, 0.0], [0.5, 0.3, 1.0, -INF]])
    for order in ORDERS:
        for alpha in (-INF, -1.0, 1.0, 3.0):
            check(oracle, any_library, am.AMiD(divergence, order, alpha), student, teacher)


@pytest.mark.parametrize("name_of", ["torch", "jax"])
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@by_order
def test_half_precision_logits_give_gradients_right_to_half_precision(name_of, half, order):
    """Against float64 on the same rounded logits: off by the final rounding, eps/2, not 1-18 %."""
    rng = np.random.default_rng(0)
    student, teacher = (
        torch.tensor(3 * a, dtype=getattr(torch, half)) for a in rng.normal(size=(2, 4, 50))
    )
    eps = torch.finfo(student.dtype).eps
    smallest = torch.finfo(student.dtype).smallest_normal
    for divergence in DIVERGENCES.values():
        for alpha in (-5.0, -1.0, 1.0, 3.0):
            loss = am.AMiD(divergence, order=order, alpha=alpha)
            if name_of == "torch":
                value, grad = loss.value_and_grad(student, teacher, reduction="sum")
                assert value.dtype == torch.float32
                assert grad.dtype == student.dtype
                grad = grad.double().numpy()
            else:
                arrays = (jnp.asarray(a.float().numpy(), dtype=half) for a in (student, teacher))
                value, grad = loss.value_and_grad(*arrays, reduction="sum")
                assert value.dtype == jnp.float32
                assert str(grad.dtype) == half
                grad = np.asarray(grad.astype(jnp.float32), dtype=np.float64)
            wide = (a.double().numpy() for a in (student, teacher))
            wanted, wanted_grad = loss.value_and_grad(*wide, reduction="sum")
            assert abs(float(value) - wanted) <= 1e-5 * wanted
            bound = 0.51 * eps * np.abs(wanted_grad) + smallest
            bound += 1e-5 * np.abs(wanted_grad).max(axis=-1, keepdims=True)
            assert np.all(np.abs(grad - wanted_grad) <= bound)


def test_float16_numpy(oracle):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 4)).astype(np.float16)
    value, grad = am.AMiD().value_and_grad(student, teacher, reduction="none")
    assert (value.dtype, grad.dtype) == (np.float32, np.float16)
    expected = oracle.amid(student, teacher, ("KL",), "pr", -1.0, 0.1)
    assert np.all(oracle.error(value, expected.value) <= 2e-6 * oracle.floats(expected.value))
    assert oracle.error(grad, expected.student).max() <= np.finfo(np.float16).eps / 2


@by_order
@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.5, -0.5), (-2.0, 2.0)])
def test_alpha_beta_limits_continue_what_is_next_to_them(any_library, order, a, b):
    """A branch at a = 0, b = 0 or a + b = 0 that is off by a factor shows as a jump."""
    rng = np.random.default_rng(4)
    student, teacher = (any_library.array(v) for v in rng.normal(size=(2, 4, 4)))
    limit, limit_grad = am.AMiD(am.AlphaBeta(a, b), order).value_and_grad(
        student, teacher, reduction="none"
    )
    for da, db in ((1e-7, 0.0), (0.0, -1e-7), (1e-7, 1e-7)):
        near, near_grad = am.AMiD(am.AlphaBeta(a + da, b + db), order).value_and_grad(
            student, teacher, reduction="none"
        )
        np.testing.assert_allclose(
            any_library.numpy(near), any_library.numpy(limit), rtol=16 * any_library.eps + 5e-6
        )
        np.testing.assert_allclose(
            any_library.numpy(near_grad),
            any_library.numpy(limit_grad),
            atol=(16 * any_library.eps + 5e-6) * np.abs(any_library.numpy(limit_grad)).max(),
        )


@by_order
def test_gkd_weights_of_zero_and_one_are_limits_and_do_not_jump(any_library, order):
    rng = np.random.default_rng(4)
    student, teacher = (any_library.array(v) for v in rng.normal(size=(2, 4, 4)))
    for end, inside in ((0.0, 1e-9), (1.0, 1 - 1e-9)):
        for alpha in (-1.0, 1.0, 3.0):
            there, here = (
                any_library.numpy(am.AMiD(order=order, alpha=alpha, lam=lam)(student, teacher))
                for lam in (end, inside)
            )
            np.testing.assert_allclose(there, here, rtol=1e-6, atol=1e-7)


def test_an_all_masked_batch_gives_zero_and_stays_differentiable(any_autodiff):
    student, teacher = (any_autodiff.array(np.full((4, 4), v)) for v in (1.0, np.nan))
    mask = any_autodiff.array([False] * 4, dtype="bool")
    for reduction in ("mean", "sum"):
        value, grads = any_autodiff.derivatives(
            lambda s, t, r=reduction: am.AMiD()(s, t, mask=mask, reduction=r), student, teacher
        )
        assert value == 0.0
        for grad in grads:
            np.testing.assert_array_equal(grad, 0.0)


def test_an_all_masked_batch_on_every_library(any_library):
    logits = any_library.array(np.full((4, 4), np.nan))
    mask = any_library.array([0] * 4, dtype="int64" if any_library.name != "jax" else "int32")
    value, grad = am.AMiD().value_and_grad(logits, logits, mask=mask)
    assert any_library.numpy(value) == 0.0
    np.testing.assert_array_equal(any_library.numpy(grad), 0.0)


@pytest.mark.parametrize("poison", [math.nan, INF, -INF])
def test_what_masked_positions_hold_never_reaches_the_loss(any_library, poison):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 4, 4))
    mask = np.array([True, False, True, False])
    clean = [a[[0, 2, 0, 2]] for a in (student, teacher)]
    student[1], teacher[1], student[3, 0], teacher[3] = poison, poison, poison, 1.0
    for order in ORDERS:
        loss = am.AMiD(order=order)
        value, grad = loss.value_and_grad(
            any_library.array(student), any_library.array(teacher), any_library.array(mask, "bool")
        )
        wanted, wanted_grad = loss.value_and_grad(*(any_library.array(a) for a in clean))
        np.testing.assert_allclose(any_library.numpy(value), any_library.numpy(wanted), rtol=1e-6)
        grad = any_library.numpy(grad)
        np.testing.assert_array_equal(grad[~mask], 0.0)
        np.testing.assert_allclose(grad[mask], 2 * any_library.numpy(wanted_grad)[:2], rtol=1e-6)


@pytest.mark.parametrize("spread", [240.0, 1e4])
@by_order
def test_a_wide_logit_spread_does_not_underflow_to_nan_or_infinity(library, oracle, order, spread):
    """log of a mixture that underflows: with λ = ½, α = 1 even Z does, at exp(-120)."""
    student = np.array(
        [[0.0, spread, 1.5, 0.0], [0.0, spread, spread / 2, 1.0], [0.0, spread, 1.0, 2.0]]
    )
    teacher = np.array(
        [[spread, 0.0, 0.5, 3.0], [0.0, spread, 0.25, 0.5], [spread / 2, 0.0, spread, 1.0]]
    )
    for alpha in (-5.0, -1.0, 0.0, 1.0, 3.0, INF):
        for lam in (0.1, 0.5):
            loss = am.AMiD(order=order, alpha=alpha, lam=lam)
            check(oracle, library, loss, student, teacher)


def test_no_blow_up_of_the_mixture_at_a_wide_spread(any_library, oracle):
    log_p, log_q = [0.0, -240.0, -250.0], [-240.0, 0.0, -250.0]
    for alpha in (-1.0, 0.0, 1.0, 3.0, INF):
        got = am.alpha_mixture(
            any_library.array(log_p), any_library.array(log_q), alpha=alpha, lam=0.5
        )
        wanted, _ = oracle.log_assistant(oracle.exact(log_p), oracle.exact(log_q), alpha, 0.5)
        error = oracle.error(any_library.numpy(got), wanted)
        assert error.max() <= 4 * 250 * any_library.eps


def test_the_blind_spot_of_alpha_one(any_library):
    """p = (½, ½, 0, 0), q = (¼, ¼, ¼, ¼): r = p, so that D(p‖r) sees nothing wrong with q.

    It is what the definition says, and documented; α < 1 sees it.
    """
    teacher = any_library.array(fill([[0.0, 0.0, -INF, -INF]]))
    student = any_library.array(fill(np.log([[0.25, 0.25, 0.25, 0.25]])))
    for alpha in (1.0, 3.0, INF):
        value, grad = am.AMiD(order="pr", alpha=alpha).value_and_grad(student, teacher)
        np.testing.assert_allclose(any_library.numpy(value), 0.0, atol=any_library.eps**2)
        np.testing.assert_allclose(any_library.numpy(grad), 0.0, atol=any_library.eps)
    value, grad = am.AMiD(order="pr", alpha=-1.0).value_and_grad(student, teacher)
    assert any_library.numpy(value) > 0.1
    assert any_library.numpy(grad)[0, 2] > 0.01


@by_order
@by_divergence
def test_equal_logits_give_exactly_zero(any_library, divergence, order):
    """And no 0/0, whatever the constants that the logits are shifted by."""
    logits = fill([[0.5, -3.0, 2.0, -INF], [0.1, 0.1, 0.1, 0.1]])
    student, teacher = any_library.array(logits), any_library.array(logits + 8.0)
    for alpha in ALPHAS:
        loss = am.AMiD(divergence, order=order, alpha=alpha)
        value, grad = loss.value_and_grad(student, student)
        assert any_library.numpy(value) == 0.0
        np.testing.assert_array_equal(any_library.numpy(grad), 0.0)
        value, grad = loss.value_and_grad(student, teacher)
        np.testing.assert_allclose(any_library.numpy(value), 0.0, atol=4 * any_library.eps**2)
        np.testing.assert_allclose(any_library.numpy(grad), 0.0, atol=4 * any_library.eps)


@pytest.mark.parametrize("order", ["pr", "rp", "qr", "rq"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_give_nan_and_not_infinity(any_library, order, bad):
    """An infinite loss may be meant; a NaN says that something broke before the loss."""
    rows = np.zeros((2, 4))
    rows[0, 1] = bad
    student, teacher = any_library.array(rows), any_library.array(np.zeros((2, 4)))
    for loss in (am.AMiD(order=order), am.AMiD(am.Renyi(2.0), order=order, alpha=3.0)):
        values = any_library.numpy(loss(student, teacher, reduction="none"))
        assert np.isnan(values[0])
        assert values[1] == 0.0
