"""torch: tables of distances under autograd, torch.func, vmap and compile, against a loop."""

from __future__ import annotations

import contextlib
from functools import partial

import numpy as np
import pytest
import torch
from pairs_oracle import Case, chunks_of, hessians_by_pairs, log_probs

import amidmath as am


@pytest.fixture
def chunk_of():
    """Make chunks of so many numbers."""
    with contextlib.ExitStack() as stack:
        yield lambda size: stack.enter_context(chunks_of(size))


def backward(f, arrays, counts, along):
    leaves = [a.clone().requires_grad_() for a in arrays]
    return torch.autograd.grad(f(*leaves), leaves, counts)


def one_by_one(f, arrays, counts, along):
    x, y = arrays
    (by_x,) = backward(lambda x: f(x, y), [x], counts, along)
    (by_y,) = backward(lambda y: f(x, y), [y], counts, along)
    return by_x, by_y


def again(f, arrays, counts, along):
    """A second pass through a graph that was retained."""
    leaves = [a.clone().requires_grad_() for a in arrays]
    value = f(*leaves)
    torch.autograd.grad(value, leaves, counts, retain_graph=True)
    return torch.autograd.grad(value, leaves, counts)


def compiled(f, arrays, counts, along):
    torch._dynamo.reset()
    return backward(torch.compile(f, fullgraph=True, backend="aot_eager"), arrays, counts, along)


def func(f, arrays, counts, along):
    return torch.func.grad(lambda *a: (f(*a) * counts).sum(), argnums=(0, 1))(*arrays)


def vmap(f, arrays, counts, along):
    x, y = arrays
    (by_x,) = backward(lambda x: torch.vmap(f, (0, None))(x, y), [x], counts, along)
    (by_y,) = backward(lambda y: torch.vmap(f, (0, None))(x, y), [y], counts, along)
    return by_x, by_y


def by_cotangents(f, arrays, counts, along):
    """The tangent, as the derivative of the gradients by what they are linear in."""
    leaves = [a.clone().requires_grad_() for a in arrays]
    value = f(*leaves)
    counts = torch.zeros_like(value, requires_grad=True)
    grads = torch.autograd.grad(value, leaves, counts, create_graph=True)
    return torch.autograd.grad(grads, counts, along)[0]


def forward(f, arrays, counts, along):
    return torch.func.jvp(f, tuple(arrays), tuple(along))[1]


GRADIENTS = {f.__name__: f for f in (backward, one_by_one, again, compiled, func, vmap)}
TANGENTS = {f.__name__: f for f in (by_cotangents, forward)}
by_size = pytest.mark.parametrize("size", [2**20, 50], ids=["laid out", "in chunks"])


def taken(way):
    """What a way gives of the case, as NumPy's arrays."""
    case = Case()
    arrays, along = ([torch.from_numpy(a) for a in given] for given in (case.arrays, case.along))
    return way(case.divergence, arrays, torch.from_numpy(case.counts), along)


@by_size
@pytest.mark.parametrize("way", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients(chunk_of, way, size):
    chunk_of(size)
    for got, wanted in zip(taken(way), Case().gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


@by_size
@pytest.mark.parametrize("way", TANGENTS.values(), ids=TANGENTS)
def test_tangents(chunk_of, way, size):
    chunk_of(size)
    np.testing.assert_allclose(taken(way), Case().tangent, rtol=1e-10, atol=1e-12)


def test_second_derivatives_by_reference_and_refused_elsewhere(chunk_of):
    chunk_of(12)
    divergence, (x, y) = am.Renyi(2.0), (log_probs((4, 1, 3)), log_probs((2, 3), seed=1))

    def total(x, **kwargs):
        return divergence(x, torch.from_numpy(y), **kwargs).sum()

    hessian = torch.autograd.functional.hessian
    got = hessian(partial(total, backend="reference"), torch.from_numpy(x))
    own = [got[i, 0, :, i, 0] for i in range(4)]
    np.testing.assert_allclose(own, hessians_by_pairs(divergence, x[:, 0], y), rtol=1e-9)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        hessian(total, torch.from_numpy(x))
