"""What is differentiated once in JAX: a second derivative is refused, and nothing else is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax_kinds
import numpy as np
import pytest
from jax_kinds import KINDS, LARGE, SMALL

import amidmath as am
from amidmath.integrations.plugins.jax_losses import am_loss

REFUSED = 'first derivatives only: .* Pass backend="reference"'
AT, STEP = jnp.zeros(2), jnp.ones(2)


def along(f):
    """The derivative of f by its first argument, along a step."""
    return lambda x, *others: jax.jvp(lambda x: f(x, *others), (x,), (STEP,))[1]


def first(f):
    return lambda x: jax.grad(f)(x)[0]


def looped(f):
    return lambda x: jax.lax.scan(lambda total, _: (total + f(x), None), 0.0, None, length=2)[0]


TWICE = {
    "hessian": jax.hessian,
    "grad of grad": lambda f: jax.grad(first(f)),
    "jvp of grad": lambda f: along(jax.grad(f)),
    "jvp of jvp": lambda f: along(along(f)),
    "jacrev of jacfwd": lambda f: jax.jacrev(jax.jacfwd(f)),
    "linearize twice": lambda f: (
        lambda x: jax.linearize(lambda x: jax.linearize(f, x)[1](STEP), x)[1](STEP)
    ),
    "vmap": lambda f: lambda x: jax.vmap(jax.hessian(f))(jnp.stack([x, x])),
    "jit": lambda f: jax.jit(jax.hessian(f)),
    "reverse in jit": lambda f: jax.jit(jax.grad(first(f))),
    "of a rematerialised loss": lambda f: jax.grad(first(jax.checkpoint(f))),
    "in a loop": lambda f: jax.jit(jax.hessian(looped(f))),
    "by the function that jit has": lambda f: along(jax.grad(jax.jit(f))),
}
CASES = [
    *(("dense", twice, LARGE) for twice in TWICE),
    *(("dense", twice, SMALL) for twice in ("hessian", "reverse in jit", "jvp of jvp")),
    *((kind, "jit", LARGE) for kind in KINDS if kind != "dense"),
    *((kind, "reverse in jit", SMALL) for kind in ("linear", "values, linear", "mean")),
]


def of(kind, rows):
    """The loss as a function of two numbers."""
    x, by_row, whole = jax_kinds.single(KINDS[kind].arrays(rows))
    directions = jax_kinds.directions(x)

    def f(by):
        moved = jnp.where(jnp.isfinite(x), x + jnp.tensordot(by, directions, 1), x)
        return KINDS[kind].sum(moved, by_row, whole)

    return f


@pytest.mark.parametrize(("kind", "twice", "rows"), CASES)
def test_second_derivatives_are_refused(kind, twice, rows):
    with pytest.raises(RuntimeError, match=REFUSED):
        TWICE[twice](of(kind, rows))(AT)


x, teacher = (jnp.asarray(jax_kinds.normal(seed, 4, 8), jnp.float32) for seed in (0, 1))
weights = jnp.asarray([0.5, -1.0, 2.0, 0.25])
hidden, head = x[:, :3], teacher[:, :3]
OTHER = am.Hidden(hidden, head)
LOSS = jax_kinds.LOSS
LOSSES = {
    "logits": lambda x: LOSS(x, teacher, reduction="none", backend="compiled"),
    "value_and_grad": lambda x: LOSS.value_and_grad(
        x, teacher, reduction="none", backend="compiled"
    )[0],
    "divergence": lambda x: am.AlphaBeta(0.2, 0.7)(x, teacher, backend="compiled"),
    "states": lambda x: LOSS(am.Hidden(x[:, :3], head), OTHER, reduction="none"),
    "both, states": lambda x: LOSS.value_and_grad(
        am.Hidden(x[:, :3], head), OTHER, reduction="none", wrt=("student.states", "student.head")
    )[0],
    "mixture": lambda x: am.alpha_mixture(x, teacher, alpha=0.5, lam=0.3)[:, 0],
}


def weighed(f):
    """A sum, whose gradient is linear in the weights."""
    return lambda weights, x: jnp.sum(weights * f(x))


@pytest.mark.parametrize("name", ["logits", "states", "mixture"])
def test_by_what_the_partial_derivatives_do_not_depend_on(name):
    grad = jax.grad(weighed(LOSSES[name]), argnums=1)

    def of_both(weights, x):
        return grad(jnp.ones(4), x), jax.jacfwd(grad)(weights, x), jax.jacrev(grad)(weights, x)

    whole, forward, backward = jax.jit(of_both)(weights, x)
    for by_weight in (forward, backward):
        np.testing.assert_allclose(by_weight.sum(axis=-1), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["logits", "value_and_grad", "divergence", "states", "both, states"]
)
def test_gradients_that_are_held(name):
    """As in meta-learning to first order: through a step of gradient descent."""
    f = weighed(LOSSES[name])

    def stepped(x):
        value, gradient = jax.value_and_grad(f, argnums=1)(weights, x)
        return value + f(jnp.ones(4), x - jax.lax.stop_gradient(gradient))

    def wanted_and_found(x):
        grad = jax.grad(f, argnums=1)
        wanted = grad(weights, x) + grad(jnp.ones(4), x - grad(weights, x))
        along = jax.jvp(stepped, (x,), (x,))[1]
        return wanted, jax.grad(stepped)(x), along

    wanted, backward, forward = jax.jit(wanted_and_found)(x)
    np.testing.assert_allclose(backward, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(forward, jnp.sum(wanted * x), rtol=1e-4, atol=1e-5)


def test_an_example_of_optax_s_kind():
    f = jax.jit(jax.hessian(lambda x: am_loss(x, teacher, loss=LOSS).sum()))
    with pytest.raises(RuntimeError, match=REFUSED):
        f(x)


def test_gradients_that_come_with_values_are_constant():
    for value_and_grad in (
        lambda x: LOSS.value_and_grad(x, teacher, backend="compiled")[1],
        lambda x: LOSS.value_and_grad(x, teacher, backend="reference")[1],
        lambda x: LOSS.value_and_grad(am.Hidden(x[:, :3], head), OTHER)[1],
        lambda x: LOSS.value_and_grad(x, am.top_k(teacher, k=3))[1],
        lambda x: am.AlphaBeta(0.2, 0.7).value_and_grad(x, teacher)[1],
    ):
        with pytest.raises(RuntimeError, match=REFUSED):
            jax.jit(lambda x, f=value_and_grad: jax.jvp(f, (x,), (x,)))(x)


def test_the_reference_has_second_derivatives():
    """Of KL(p‖q), by many logits too: the Fisher matrix, wherever the teacher is."""
    student = jnp.asarray(jax_kinds.normal(0, LARGE, 8), jnp.float32)
    loss = am.AMiD(am.KL(), "pr", lam=0.0)

    def of(by):
        return loss(student + by, student[::-1], reduction="sum", backend="reference")

    q = jax.nn.softmax(student)
    wanted = jnp.diag(q.sum(axis=0)) - q.T @ q
    got = jax.jit(jax.hessian(of))(jnp.zeros(8))
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
