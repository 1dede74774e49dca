"""Closed forms under autograd, behind the compiled rows of the CPU and behind the core."""

from __future__ import annotations

import pytest
import torch
from torch_logits import ROWS, assert_near, logits

import amidmath as am

pytest.importorskip("llvmlite")

KL = am.AMiD()
AB = am.AMiD(am.AlphaBeta(0.2, 0.7), order="qr", alpha=3.0, lam=0.3)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_autograd_gives_the_gradient_of_value_and_grad(calls, reduction):
    student, teacher = logits()
    leaves = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    value = KL(*leaves, reduction=reduction, backend="compiled")
    grads = torch.autograd.grad(value.sum(), leaves)
    assert len(calls) == 1
    wanted, wanted_grads = KL.value_and_grad(
        *(a.double() for a in (student, teacher)),
        reduction=reduction,
        wrt=("student", "teacher"),
        backend="reference",
    )
    eps = torch.finfo(torch.float32).eps
    assert_near(value, wanted, eps)
    for grad, truth in zip(grads, wanted_grads, strict=True):
        assert_near(grad, truth, eps)


def test_gradcheck():
    pair = logits(2, 19, torch.float64)
    alpha = torch.tensor([0.5, -2.0], dtype=torch.float64)
    operands = [a.clone().requires_grad_() for a in (*pair, alpha)]

    def loss(student, teacher, alpha):
        return am.AMiD(order="rq", alpha=alpha, lam=0.3)(student, teacher, backend="compiled")

    assert torch.autograd.gradcheck(loss, operands)


def test_gradients_add_up_and_scale():
    """A graph that is used twice, and a loss that is part of another."""
    student, teacher = logits()
    _, grad = KL.value_and_grad(student, teacher, backend="compiled")
    leaf = student.clone().requires_grad_()
    value = KL(leaf, teacher, backend="compiled")
    value.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, grad, rtol=0, atol=0)
    value.backward()
    torch.testing.assert_close(leaf.grad, 2.0 * grad, rtol=1e-6, atol=0)
    leaf.grad = None
    (-3.0 * KL(leaf, teacher, backend="compiled") + 0.5 * (leaf**2).sum()).backward()
    torch.testing.assert_close(leaf.grad, -3.0 * grad + student, rtol=1e-6, atol=1e-8)
    leaf.grad = None
    weights = torch.linspace(-1.0, 2.0, ROWS)
    KL(leaf, teacher, reduction="none", backend="compiled").backward(weights)
    torch.testing.assert_close(leaf.grad, ROWS * weights[:, None] * grad, rtol=1e-5, atol=1e-9)


def test_no_second_derivative():
    leaf, teacher = logits(2, 9)[0].requires_grad_(), logits(2, 9)[1]
    value = KL(leaf, teacher, backend="compiled")
    (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"first derivatives only"):
        torch.autograd.grad(grad.sum(), leaf)


def without_autograd(student, teacher):
    with torch.no_grad():
        return KL(student.requires_grad_(), teacher, backend="compiled")


def in_inference_mode(student, teacher):
    with torch.inference_mode():
        return KL(student.clone(), teacher.clone(), backend="compiled")


@pytest.mark.parametrize("call", [without_autograd, in_inference_mode])
def test_values_alone(call):
    student, teacher = logits()
    value = call(student.clone(), teacher)
    assert not value.requires_grad
    wanted = KL(student.double(), teacher.double(), backend="reference")
    assert_near(value, wanted, torch.finfo(torch.float32).eps)


def largest_allocation(function):
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    return max((e.self_cpu_memory_usage for e in profile.events()), default=0)


def test_values_alone_allocate_no_gradient():
    student, teacher = logits(40, 1024)
    leaf = student.clone().requires_grad_()
    KL(leaf, teacher, backend="compiled")
    KL(student, teacher, backend="compiled")  # compiled, both
    with_gradient = largest_allocation(lambda: KL(leaf, teacher, backend="compiled"))
    without = largest_allocation(lambda: KL(student, teacher, backend="compiled"))
    assert with_gradient == student.nbytes
    assert without <= 4096


# ---------------------------------------------------------------------------------------------
# Second derivatives through the core


@pytest.mark.parametrize(
    "loss", [KL, AB, am.AMiD(am.Renyi(2.0), order="rp", alpha=0.5)], ids=["KL", "AB", "Rényi"]
)
def test_second_derivatives_by_the_core(loss):
    operands = [a.clone().requires_grad_() for a in logits(2, 5, torch.float64)]

    def value(student, teacher):
        return loss(student, teacher, backend="reference")

    assert torch.autograd.gradcheck(value, operands)
    assert torch.autograd.gradgradcheck(value, operands)


def test_second_derivatives_of_a_divergence_by_the_core():
    operands = [a.clone().requires_grad_() for a in logits(2, 5, torch.float64)]

    def value(x, y):
        return am.AlphaBeta(0.2, 0.7)(x.log_softmax(-1), y.log_softmax(-1), backend="reference")

    assert torch.autograd.gradgradcheck(value, operands)
