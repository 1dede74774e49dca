"""JAX: tables of distances under its transformations, against a loop over the pairs."""

from __future__ import annotations

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from pairs_oracle import Case, chunks_of, hessians_by_pairs, log_probs

import amidmath as am


@pytest.fixture
def chunk_of():
    """Make chunks of so many numbers; in 64 bits."""
    with contextlib.ExitStack() as stack, jax.enable_x64(True):
        yield lambda size: stack.enter_context(chunks_of(size))


def backward(f, arrays, counts, along):
    return jax.vjp(f, *arrays)[1](counts)


def jitted(f, arrays, counts, along):
    return jax.jit(lambda *a: jax.vjp(f, *a)[1](counts))(*arrays)


def vmap(f, arrays, counts, along):
    return backward(jax.vmap(f, (0, None)), arrays, counts, along)


def forward(f, arrays, counts, along):
    return jax.jit(lambda a, d: jax.jvp(f, a, d))(tuple(arrays), tuple(along))[1]


def linearized(f, arrays, counts, along):
    return jax.linearize(f, *arrays)[1](*along)


def by_cotangents(f, arrays, counts, along):
    def pulled(counts):
        return jax.vjp(f, *arrays)[1](counts)

    return jax.vjp(pulled, counts)[1](tuple(along))[0]


GRADIENTS = {f.__name__: f for f in (backward, jitted, vmap)}
TANGENTS = {f.__name__: f for f in (forward, linearized, by_cotangents)}
by_size = pytest.mark.parametrize("size", [2**20, 50], ids=["laid out", "in chunks"])


def taken(way):
    """What a way gives of the case, as NumPy's arrays."""
    case = Case()
    arrays, along = ([jnp.asarray(a) for a in given] for given in (case.arrays, case.along))
    return way(case.divergence, arrays, jnp.asarray(case.counts), along)


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
        return divergence(x, jnp.asarray(y), **kwargs).sum()

    hessian = jax.hessian
    got = hessian(partial(total, backend="reference"))(jnp.asarray(x))
    own = [got[i, 0, :, i, 0] for i in range(4)]
    np.testing.assert_allclose(own, hessians_by_pairs(divergence, x[:, 0], y), rtol=1e-9)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        hessian(total)(jnp.asarray(x))


def test_shapes_that_jax_does_not_know():
    """For ``jax.export``."""
    (rows,) = export.symbolic_shape("rows")
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, 1, 3), (4, 3))]
    program = export.export(jax.jit(am.KL().value_and_grad))(*shapes)
    x, y = log_probs((5, 1, 3)).astype("f4"), log_probs((4, 3), seed=1).astype("f4")
    values, (by_x, by_y) = program.call(x, y)
    wanted, (of_x, of_y) = am.KL().value_and_grad(x, y)
    for got, there in ((values, wanted), (by_x, of_x), (by_y, of_y)):
        np.testing.assert_allclose(got, there, rtol=1e-4, atol=1e-5)
