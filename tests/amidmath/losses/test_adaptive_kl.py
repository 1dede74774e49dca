"""Adaptive KL: what its head is, and that it runs wherever losses do without a row kernel."""

from __future__ import annotations

import importlib.util

import array_api_compat
import array_api_compat.torch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am
from amidmath.losses.adaptive_kl import AdaptiveKL, most_probable
from amidmath.pairs.sharded import Sharded

AKL = am.methods.akl()


def logits(shape=(2, 3, 40), dtype="float64"):
    student, teacher = 2.0 * np.random.default_rng(5).normal(size=(2, *shape))
    return student.astype(dtype), teacher.astype(dtype)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# ---------------------------------------------------------------------------------------------
# The head


@pytest.mark.parametrize(
    ("p", "mu", "head"),
    [
        ([0.4, 0.3, 0.2, 0.1], 0.5, [1, 1, 0, 0]),
        ([0.1, 0.2, 0.3, 0.4], 0.5, [0, 0, 1, 1]),
        ([0.6, 0.2, 0.1, 0.1], 0.5, [1, 0, 0, 0]),
        ([0.5, 0.25, 0.125, 0.125], 0.6, [1, 1, 0, 0]),
        ([0.5, 0.25, 0.125, 0.125], 0.8, [1, 1, 1, 1]),  # equals stay together
        ([0.25, 0.25, 0.25, 0.25], 0.5, [1, 1, 1, 1]),
        ([0.7, 0.3, 0.0, 0.0], 1.0, [1, 1, 0, 0]),
        ([0.7, 0.3, 0.0, 0.0], 0.0, [0, 0, 0, 0]),
        ([1.0, 0.0, 0.0, 0.0], 0.9, [1, 0, 0, 0]),
    ],
)
def test_the_head_is_the_fewest_that_have_the_mass(any_library, p, mu, head):
    with np.errstate(divide="ignore"):
        logs = any_library.array(np.log(p) + 3.0)
    xp = array_api_compat.array_namespace(logs)
    np.testing.assert_array_equal(any_library.numpy(most_probable(logs, mu, xp)), head)


def test_the_order_of_the_vocabulary_does_not_matter(any_library):
    student, teacher = (np.round(2 * a) / 2 for a in logits())  # many equal logits
    order = np.random.default_rng(1).permutation(40)
    (value, grad), (again, regrad) = (
        AKL.value_and_grad(*(any_library.array(a[..., o]) for a in (student, teacher)))
        for o in (slice(None), order)
    )
    assert abs(float(value) - float(again)) < 100 * any_library.eps
    got = any_library.numpy(grad)[..., order]
    np.testing.assert_allclose(got, any_library.numpy(regrad), atol=30 * any_library.eps)


def test_one_end_is_each_divergence(any_library):
    arrays = [any_library.array(a) for a in logits()]
    for mu, other in ((0.0, am.methods.reverse_kl()), (1.0, am.methods.kl())):
        value, grad = am.methods.akl(mu).value_and_grad(*arrays)
        wanted, wanted_grad = other.value_and_grad(*arrays)
        rtol = 30 * any_library.eps
        np.testing.assert_allclose(any_library.numpy(value), any_library.numpy(wanted), rtol=rtol)
        np.testing.assert_allclose(
            any_library.numpy(grad), any_library.numpy(wanted_grad), atol=rtol
        )


# ---------------------------------------------------------------------------------------------
# Where others are 0/0 or infinite


def test_equal_logits_give_zero_and_a_zero_gradient(library):
    student, _ = logits(dtype=library.dtype)
    value, grad = AKL.value_and_grad(library.array(student), library.array(student))
    assert float(value) == 0.0
    assert not library.numpy(grad).any()
    shifted = library.array(student + np.asarray(1.0, dtype=library.dtype))
    value, grad = AKL.value_and_grad(library.array(student), shifted)
    assert 0.0 <= float(value) < library.eps
    assert np.abs(library.numpy(grad)).max() < library.eps


def test_near_equal_logits_lose_no_digits():
    """Against double precision: losses of 1e-7 are known to the last digits in single."""
    student = logits(dtype="float32")[0]
    noise = np.random.default_rng(2).normal(size=student.shape).astype("float32")
    teacher = student + np.float32(1e-3) * noise
    value, grad = AKL.value_and_grad(student, teacher)
    wanted, wanted_grad = AKL.value_and_grad(student.astype(float), teacher.astype(float))
    assert abs(value / wanted - 1) < 1e-5
    np.testing.assert_allclose(grad, wanted_grad, atol=1e-5 * np.abs(wanted_grad).max())


def test_tokens_that_neither_has_take_no_part(any_library):
    student, teacher = logits()
    padded = [np.concatenate([a, np.full((2, 3, 5), -np.inf)], axis=-1) for a in (student, teacher)]
    value, grad = AKL.value_and_grad(*(any_library.array(a) for a in padded))
    wanted, wanted_grad = AKL.value_and_grad(*(any_library.array(a) for a in (student, teacher)))
    rtol = 30 * any_library.eps
    np.testing.assert_allclose(any_library.numpy(value), any_library.numpy(wanted), rtol=rtol)
    got = any_library.numpy(grad)
    assert not got[..., 40:].any()
    np.testing.assert_allclose(got[..., :40], any_library.numpy(wanted_grad), atol=rtol)


def test_a_divergence_counts_where_it_has_weight():
    with np.errstate(divide="ignore"):
        student, teacher = np.log([[0.5, 0.5, 0.0]]), np.log([[0.5, 0.25, 0.25]])
    # All that differs is in the tail, where KL(q‖p) counts alone, and KL(p‖q) is infinite.
    assert (
        abs(am.methods.akl(0.5)(student, teacher) - am.methods.reverse_kl()(student, teacher)) == 0
    )
    assert am.methods.kl()(student, teacher) == np.inf
    assert am.methods.akl(0.75)(student, teacher) == np.inf  # equals stay together: all is head


def test_masked_rows_are_never_read(any_library):
    student, teacher = logits()
    wanted, wanted_grad = AKL.value_and_grad(student[:, :2], teacher[:, :2])
    student[:, 2], teacher[:, 2] = np.nan, np.inf
    mask = any_library.array(np.array([[1, 1, 0], [1, 1, 0]]), "bool")
    value, grad = AKL.value_and_grad(any_library.array(student), any_library.array(teacher), mask)
    assert abs(float(value) - wanted) < 30 * any_library.eps
    got = any_library.numpy(grad)
    assert not got[:, 2].any()
    np.testing.assert_allclose(got[:, :2], wanted_grad, atol=30 * any_library.eps)


# ---------------------------------------------------------------------------------------------
# The weights are constant


def held(student, teacher, mu):
    """Its value and gradients from plain formulas, the weights taken for constants."""
    p, q = softmax(teacher), softmax(student)
    order = np.argsort(-p, axis=-1)
    ordered = np.take_along_axis(p, order, axis=-1)
    in_head = np.take_along_axis(
        np.cumsum(ordered, axis=-1) - ordered < mu, np.argsort(order, axis=-1), axis=-1
    )
    gap = np.abs(p - q)
    w = ((gap * in_head).sum(axis=-1) / gap.sum(axis=-1))[..., None]
    forward = (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    reverse = (q * np.log(q / p)).sum(axis=-1, keepdims=True)
    value = (w * forward + (1 - w) * reverse)[..., 0]
    by_student = w * (q - p) + (1 - w) * q * (np.log(q / p) - reverse)
    by_teacher = w * p * (np.log(p / q) - forward) + (1 - w) * (p - q)
    return value, by_student, by_teacher


@pytest.mark.parametrize("mu", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_each_backend_holds_the_weights(mu, backend, framework):
    student, teacher = logits()
    value, by_student, by_teacher = held(student, teacher, mu)
    loss = am.methods.akl(mu)
    if framework == "torch":
        leaves = [torch.from_numpy(a).requires_grad_() for a in (student, teacher)]
        got = loss(*leaves, reduction="none", backend=backend)
        grads = torch.autograd.grad(got.sum(), leaves)
        got = got.detach()
    else:
        with jax.enable_x64(True):

            def of(s, t):
                values = loss(s, t, reduction="none", backend=backend)
                return values.sum(), values

            arrays = [jnp.asarray(a) for a in (student, teacher)]
            grads, got = jax.jit(jax.grad(of, argnums=(0, 1), has_aux=True))(*arrays)
    np.testing.assert_allclose(got, value, rtol=1e-12)
    for grad, wanted in zip(grads, (by_student, by_teacher), strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-14)


def test_the_reference_has_second_derivatives_with_held_weights():
    student, teacher = (torch.from_numpy(a[0, :1, :5]) for a in logits())

    def slope(s):
        return torch.func.grad(lambda x: AKL(x, teacher, backend="reference"))(s)

    hessian = torch.func.jacfwd(slope)(student)[0, :, 0, :]
    q, p = softmax(student.numpy())[0], softmax(teacher.numpy())[0]
    in_head = most_probable(teacher, 0.5, array_api_compat.torch).numpy()[0]
    w = (np.abs(p - q) * in_head).sum() / np.abs(p - q).sum()
    fisher = np.diag(q) - np.outer(q, q)
    lean = np.log(q / p) - (q * np.log(q / p)).sum()
    reverse = fisher + np.diag(q * lean) - np.outer(q, q * lean) - np.outer(q * lean, q)
    np.testing.assert_allclose(hessian, w * fisher + (1 - w) * reverse, atol=1e-14)


# ---------------------------------------------------------------------------------------------
# Everywhere


def test_large_arrays_take_the_array_core(any_library):
    """Where others are compiled, it falls back without being asked to."""
    student, teacher = logits((70, 1000))
    value, by_student, _ = held(student, teacher, 0.5)
    got, grad = AKL.value_and_grad(any_library.array(student), any_library.array(teacher))
    assert abs(float(got) / value.mean() - 1) < 1e3 * any_library.eps
    got = any_library.numpy(grad) * 70
    np.testing.assert_allclose(got, by_student, atol=1e3 * any_library.eps)


@pytest.mark.parametrize(
    "make", [np.asarray, torch.from_numpy, jnp.asarray], ids=["np", "pt", "jax"]
)
def test_compiled_is_an_error_that_says_why(make):
    if importlib.util.find_spec("llvmlite") is None:
        pytest.skip("no compiler to insist on")
    arrays = [make(a.astype("float32")) for a in logits()]
    for loss in (AKL, 0.5 * AKL + am.AMiD()):
        with pytest.raises(ValueError, match="backend 'compiled' cannot compute the function sort"):
            loss(*arrays, backend="compiled")
        with pytest.raises(ValueError, match="backend 'compiled' cannot compute the function sort"):
            loss.value_and_grad(*arrays, backend="compiled")


def test_sums_take_it(any_library):
    arrays = [any_library.array(a) for a in logits()]
    both = 0.25 * AKL + 2.0 * am.AMiD()
    value, grad = both.value_and_grad(*arrays)
    (one, one_grad), (two, two_grad) = (a.value_and_grad(*arrays) for a in (AKL, am.AMiD()))
    assert abs(float(value - 0.25 * one - 2.0 * two)) < 30 * any_library.eps
    wanted = any_library.numpy(0.25 * one_grad + 2.0 * two_grad)
    np.testing.assert_allclose(any_library.numpy(grad), wanted, atol=30 * any_library.eps)


@pytest.mark.parametrize(
    "make", [np.asarray, torch.from_numpy, jnp.asarray], ids=["np", "pt", "jax"]
)
def test_hidden_states(make):
    rng = np.random.default_rng(4)
    hidden, teacher_hidden = rng.normal(size=(6, 3)), rng.normal(size=(6, 5))
    head, teacher_head = rng.normal(size=(11, 3)), rng.normal(size=(11, 5))
    value, by_student, _ = held(hidden @ head.T, teacher_hidden @ teacher_head.T, 0.5)
    with jax.enable_x64(True):
        student = am.Hidden(make(hidden), make(head), chunk_rows=4)
        teacher = am.Hidden(make(teacher_hidden), make(teacher_head))
        got, by = AKL.value_and_grad(student, teacher)
        assert abs(float(AKL(student, teacher)) / value.mean() - 1) < 1e-13
    assert abs(float(got) / value.mean() - 1) < 1e-13
    np.testing.assert_allclose(by.states, by_student @ head / 6, atol=1e-14)
    np.testing.assert_allclose(by.head.weight, by_student.T @ hidden / 6, atol=1e-14)


def test_top_k_lists_of_all_tokens_are_the_whole_teacher():
    student, teacher = logits()
    value, grad = AKL.value_and_grad(student, am.top_k(teacher, 40))
    wanted, wanted_grad = AKL.value_and_grad(student, teacher)
    assert abs(value / wanted - 1) < 1e-13
    np.testing.assert_allclose(grad, wanted_grad, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    student, teacher = (torch.from_numpy(a).to(dtype) for a in logits())
    value, grad = AKL.value_and_grad(student, teacher)
    wanted, wanted_grad = AKL.value_and_grad(student.float(), teacher.float())
    assert value == wanted
    assert grad.dtype == dtype
    assert torch.equal(grad, wanted_grad.to(dtype))


def test_shards_of_a_vocabulary_are_refused():
    student, teacher = (torch.from_numpy(a[0]) for a in logits())
    with pytest.raises(NotImplementedError, match="sort would see one shard"):
        AKL.block(student, teacher, needs=(False, False), xp=Sharded(torch, None))


def test_it_compares_and_hashes_by_value():
    assert AdaptiveKL() == am.methods.akl() != am.methods.akl(0.4)
    assert len({AdaptiveKL(0.5), AdaptiveKL(0.5, 1.0), AdaptiveKL(0.5, 2.0)}) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"mu": 1.5}, ValueError, ["mu", "[0, 1]", "1.5"]),
        ({"mu": "most"}, TypeError, ["mu", "number", "'most'"]),
        ({"temperature": 0.0}, ValueError, ["temperature", "positive", "0.0"]),
    ],
)
def test_errors(arguments, error, told):
    with pytest.raises(error) as caught:
        AdaptiveKL(**arguments)
    for text in told:
        assert text in str(caught.value)
