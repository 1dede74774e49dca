"""Losses of hidden states in half precision: what is multiplied in it, and what is not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hidden_oracle import case

import amidmath as am

LOSS = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)

by_teacher = pytest.mark.parametrize("listed", [False, True], ids=["states", "lists"])
by_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def random_model(dtype, listed):
    """The student's states and head, and a teacher."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden, head = normal(64, 32), normal(500, 32) / 6
    if listed:
        return hidden, head, am.top_k(3.0 * torch.randn(64, 500, generator=generator), 16)
    return hidden, head, am.Hidden(normal(64, 32), normal(500, 32) / 6)


def multiplied(teacher, as_dtype):
    """The teacher as its logits, or its lists."""
    if isinstance(teacher, am.TopK):
        return teacher
    return as_dtype(teacher.states) @ as_dtype(teacher.head.weight).T


def in_double(hidden, head, teacher):
    hidden, head = (a.detach().double().requires_grad_() for a in (hidden, head))
    value = LOSS(hidden @ head.T, multiplied(teacher, torch.Tensor.double))
    value.backward()
    return float(value.detach()), hidden.grad, head.grad


def off(got, wanted):
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


@by_teacher
@pytest.mark.parametrize("autocast", [False, True])
@by_dtype
def test_it_multiplies_as_a_linear_layer_does_and_computes_in_float32(dtype, autocast, listed):
    hidden, head, teacher = random_model(torch.float32 if autocast else dtype, listed)
    value, by_hidden, by_head = in_double(hidden, head, teacher)
    hidden.requires_grad_()
    head.requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        got = LOSS(am.Hidden(hidden, head, chunk_rows=16), teacher)
        logits = torch.nn.functional.linear(hidden, head)
        other = teacher
        if not listed:
            other = torch.nn.functional.linear(teacher.states, teacher.head.weight).float()
    (0.75 * got).backward()
    assert (got.dtype, logits.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(got, LOSS(logits.float(), other), rtol=1e-6, atol=0.0)
    eps = torch.finfo(dtype).eps
    assert abs(float(got.detach()) / value - 1) < eps / 4
    for leaf, wanted in ((hidden, by_hidden), (head, by_head)):
        assert leaf.grad.dtype == leaf.dtype
        assert off(leaf.grad, 0.75 * wanted) < 2 * eps


@by_teacher
def test_float16_does_not_underflow_before_it_is_scaled_up(listed):
    hidden, head, teacher = random_model(torch.float16, listed)
    _, by_hidden, by_head = in_double(hidden, head, teacher)
    hidden.requires_grad_()
    head.requires_grad_()
    loss_scale = 2.0**16
    value = LOSS(am.Hidden(hidden, head), teacher, denominator=64 * loss_scale)
    (loss_scale * value).backward()
    assert off(hidden.grad, by_hidden) < 2**-9
    assert off(head.grad, by_head) < 2**-9


def test_hidden_states_and_head_of_different_dtypes():
    hidden, head, teacher = random_model(torch.float32, listed=False)
    half = hidden.bfloat16().requires_grad_()
    head.requires_grad_()
    LOSS(
        am.Hidden(half, head), am.Hidden(teacher.states.bfloat16(), teacher.head.weight)
    ).backward()
    assert (half.grad.dtype, head.grad.dtype) == (torch.bfloat16, torch.float32)
    _, by_hidden, by_head = in_double(hidden, head, teacher)
    assert off(half.grad, by_hidden) < 2**-6
    assert off(head.grad, by_head) < 2**-6


def test_lists_in_float64_make_all_of_it_float64():
    student, top = case(k=4).sides(torch.tensor)
    states, weight = student.states.float(), student.head.weight.float()
    exactly = LOSS(am.Hidden(states.double(), weight.double()), top)
    value = LOSS(am.Hidden(states, weight), top)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, exactly, rtol=1e-5, atol=0.0)


@by_teacher
def test_bfloat16_in_jax(listed):
    rng = np.random.default_rng(0)
    hidden, other = (jnp.asarray(rng.normal(size=(64, 32)), jnp.bfloat16) for _ in range(2))
    head, other_head = (jnp.asarray(rng.normal(size=(500, 32)) / 6, jnp.bfloat16) for _ in range(2))
    teacher = am.Hidden(other, other_head)
    if listed:
        teacher = am.top_k(jnp.asarray(3 * rng.normal(size=(64, 500)), jnp.float32), 16)
    student = am.Hidden(hidden, head, chunk_rows=16)
    value, by = jax.jit(jax.value_and_grad(LOSS))(student, teacher)
    h, w = (np.asarray(a, np.float64) for a in (hidden, head))
    exact, outer = LOSS.value_and_grad(
        h @ w.T,
        jax.tree.map(np.asarray, teacher)
        if listed
        else multiplied(teacher, lambda a: np.asarray(a, np.float64)),
    )
    assert value.dtype == jnp.float32
    assert abs(value / exact - 1) < 2**-9
    for mine, theirs in zip(by.arrays().values(), (outer @ w, outer.T @ h), strict=True):
        assert mine.dtype == jnp.bfloat16
        assert np.abs(mine - theirs).max() < 2**-7 * np.abs(theirs).max()
