"""Torch refuses the second derivative of a closed form, however it is asked for.

What it would have to be made of is constant to autograd: zeros would come out without a word.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import amidmath as am

SMALL, COMPILED = (4, 8), (64, 1024)


def arrays(shape, dtype=torch.float64):
    rng = np.random.default_rng(3)
    return tuple(torch.from_numpy(rng.normal(size=shape)).to(dtype) for _ in range(2))


def by_logits(x, t):
    return am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=0.3)(x, t)


def each(x, t):
    return am.AMiD()(x, t, mask=t[:, 0] > -5, reduction="none").sum()


def in_half(x, t):
    return am.AMiD(temperature=2.0)(x.half(), t.half()).double()


def by_hidden(x, t):
    return am.AMiD()(am.Hidden(x, t.detach()), am.Hidden(2 * t.detach(), t.detach()))


def each_by_hidden(x, t):
    teacher = am.Hidden(2 * t.detach(), t.detach())
    return am.AMiD()(am.Hidden(x, t.detach()), teacher, reduction="none").sum()


def by_list(x, t):
    return am.AMiD()(x, am.top_k(t.detach(), 3))


def by_knobs(x, t):
    return am.AMiD(alpha=x[:, 0], lam=torch.sigmoid(x[:, 1]))(t.detach(), t.detach().flip(0))


def by_divergence(x, t):
    return am.Renyi(2.0)(x.log_softmax(-1), t.log_softmax(-1)).sum()


def by_mixture(x, t):
    return am.alpha_mixture(x, t, alpha=0.3, lam=0.2).square().sum()


def by_mean(x, t):
    return am.log_falpha_mean(torch.stack([x, t]), alpha=0.3).square().sum()


def by_value_and_grad(x, t):
    value, found = am.AMiD().value_and_grad(x, t)
    return value + found.pow(2).sum()


VALUES = (by_logits, each, in_half, by_hidden, each_by_hidden, by_list, by_knobs)
VALUES += (by_divergence, by_mixture, by_mean)


def penalised(f, x, t):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(x, t), x, create_graph=True)
    (f(x, t) + slope.pow(2).sum()).backward()


def retained(f, x, t):
    x = x.clone().requires_grad_()
    value = f(x, t)
    torch.autograd.grad(value, x, retain_graph=True)
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    torch.autograd.grad(slope.sum(), x, allow_unused=True)


def both_ways(f, x, t):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.clone().requires_grad_(), torch.ones_like(x))
        torch.autograd.grad(f(dual, t), dual, create_graph=True)


ONE_VALUE = {
    "penalty": penalised,
    "retained": retained,
    "grad(grad)": lambda f, x, t: grad(lambda x: grad(f)(x, t).pow(2).sum())(x),
    "jvp(grad)": lambda f, x, t: jvp(lambda x: grad(f)(x, t), (x,), (torch.ones_like(x),)),
    "grad(vmap(grad))": lambda f, x, t: grad(
        lambda x: vmap(grad(f))(x[None], t[None]).pow(2).sum()
    )(x),
    "vmap(grad(grad))": lambda f, x, t: vmap(
        grad(lambda x, t: grad(f)(x, t).pow(2).sum()), in_dims=(0, None)
    )(x[None], t),
}
HESSIANS = {
    "functional": lambda f, x, t: torch.autograd.functional.hessian(lambda x: f(x, t), x),
    "vectorized": lambda f, x, t: torch.autograd.functional.hessian(
        lambda x: f(x, t), x, vectorize=True
    ),
    "hessian": lambda f, x, t: torch.func.hessian(f)(x, t),
    "jacrev(jacrev)": lambda f, x, t: jacrev(jacrev(f))(x, t),
    "jacrev(jacfwd)": lambda f, x, t: jacrev(jacfwd(f))(x, t),
    "jacfwd(jacfwd)": lambda f, x, t: jacfwd(jacfwd(f))(x, t),
}
REFUSED = r'backend="reference"|forward mode is for'
by_value = pytest.mark.parametrize("value", VALUES, ids=lambda f: f.__name__)


@by_value
@pytest.mark.parametrize("way", ONE_VALUE)
def test_none_is_zero(value, way):
    for shape in (SMALL, COMPILED):
        with pytest.raises(NotImplementedError, match=REFUSED):
            ONE_VALUE[way](value, *arrays(shape))


@by_value
@pytest.mark.parametrize("way", HESSIANS)
def test_no_hessian_is_zero(value, way):
    with pytest.raises(NotImplementedError, match=REFUSED):
        HESSIANS[way](value, *arrays(SMALL))


@pytest.mark.parametrize("value", [by_logits, each, by_divergence, by_mixture, by_mean])
def test_nor_by_the_other_side(value):
    """The gradient by one argument depends on the other too."""
    x, t = arrays(SMALL)
    ones = torch.ones_like(t)
    x.requires_grad_()
    t.requires_grad_()
    (slope,) = torch.autograd.grad(value(x, t), x, create_graph=True)
    for mixed in (
        lambda: torch.autograd.grad(slope.sum(), t, allow_unused=True),
        lambda: grad(lambda t: grad(value)(x, t).sum())(t),
        lambda: jvp(lambda t: grad(value)(x, t), (t,), (ones,)),
        lambda: grad(lambda x: jvp(lambda t: value(x, t), (t,), (ones,))[1])(x),
    ):
        with pytest.raises(NotImplementedError, match='backend="reference"'):
            mixed()


def test_nor_of_the_gradient_that_comes_with_the_value():
    with pytest.raises(NotImplementedError, match='backend="reference"'):
        grad(by_value_and_grad)(*arrays(SMALL))


@by_value
def test_first_derivatives_go_on(value):
    """Under one transformation, under several where one differentiates, and beside a constant."""
    x, t = arrays(SMALL)
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(value(leaf, t), leaf)
    found = [
        grad(value)(x, t),
        vmap(grad(value))(x[None], t[None])[0],
        grad(lambda x: vmap(value)(x[None], t[None]).sum())(x),
        grad(lambda x: value(x, t) + grad(value)(x, t).detach().sum())(x),
        jacrev(value)(x, t),
    ]
    if value is not each_by_hidden:
        found += [jacfwd(value)(x, t)]
        direction = torch.ones_like(x)
        _, moved = jvp(lambda x: value(x, t), (x,), (direction,))
        torch.testing.assert_close(moved, (wanted * direction).sum())
    (slope,) = torch.autograd.grad(value(leaf, t), leaf, create_graph=True)
    found.append(slope)
    for got in found:
        torch.testing.assert_close(got, wanted)


def test_what_weighs_a_gradient_is_differentiated():
    """The gradient is linear in the weight of the loss, and that derivative is a first one."""
    x, t = arrays(SMALL)
    x.requires_grad_()
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for value in (by_logits, each):
        (wanted,) = torch.autograd.grad(value(x, t), x)
        (slope,) = torch.autograd.grad(weight * value(x, t), x, create_graph=True)
        (by_weight,) = torch.autograd.grad(slope.sum(), weight)
        torch.testing.assert_close(by_weight, wanted.sum())


def test_the_reference_has_them():
    """By differences of the closed form's gradient, in every way of asking."""
    x, t = arrays((2, 3))

    def reference(x, t):
        return am.AMiD(alpha=0.3)(x, t, backend="reference")

    def slope(x):
        return am.AMiD(alpha=0.3).value_and_grad(x, t)[1]

    step, wanted = 1e-6, torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    for i, j in itertools.product(range(2), range(3)):
        moved = torch.zeros_like(x)
        moved[i, j] = step
        wanted[..., i, j] = (slope(x + moved) - slope(x - moved)) / (2 * step)
    for way in HESSIANS.values():
        torch.testing.assert_close(way(reference, x, t), wanted, rtol=1e-6, atol=1e-8)


MEANS = {
    "mixture": lambda p, q, a, w, **how: am.alpha_mixture(p, q, alpha=a, lam=w[0], **how),
    "log r": lambda p, q, a, w, **how: am.alpha_mixture(
        p, q, alpha=a, lam=w[0], normalize=False, **how
    ),
    "log mean": lambda p, q, a, w, **how: am.log_falpha_mean(
        torch.stack([p, q]), alpha=a, weights=w, **how
    ),
    "mean": lambda p, q, a, w, **how: am.falpha_mean(
        torch.stack([p, q]).exp(), alpha=a, weights=w, **how
    ),
}


@pytest.mark.parametrize("equal", [False, True], ids=["apart", "equal"])
@pytest.mark.parametrize("alpha", [-3.0, -1.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("mean", MEANS)
def test_means_have_them_under_the_reference(mean, alpha, equal):
    """By every argument, by differences of the closed form's gradient; α = 1 and p = q too."""
    p, q = (a.log_softmax(-1) for a in arrays((1, 3)))
    knobs = torch.tensor([alpha, 0.3, 0.7], dtype=torch.float64)
    at = torch.cat([p[0], (p if equal else q)[0], knobs])
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def value(z, **how):
        w = torch.stack([z[7], 1.0 - z[7]])
        return (MEANS[mean](z[None, :3], z[None, 3:6], z[6], w, **how)[0] * factors).sum()

    def slope(z):
        z = z.clone().requires_grad_()
        return torch.autograd.grad(value(z), z)[0]

    step, wanted = 1e-5, torch.zeros(9, 9, dtype=torch.float64)
    for j in range(8):
        moved = torch.zeros(9, dtype=torch.float64)
        moved[j] = step
        wanted[:, j] = (slope(at + moved) - slope(at - moved)) / (2 * step)
    leaf = at.clone().requires_grad_()
    (first,) = torch.autograd.grad(value(leaf, backend="reference"), leaf)
    torch.testing.assert_close(first, slope(at), rtol=1e-9, atol=1e-9)
    got = torch.func.hessian(lambda z: value(z, backend="reference"))(at)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


def test_means_have_no_kernel():
    with pytest.raises(ValueError, match="backend 'compiled' computes losses"):
        am.log_falpha_mean(torch.zeros(2, 3), alpha=1.0, backend="compiled")
