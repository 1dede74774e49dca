"""Losses as arguments of JAX's and torch's transformations: their arrays are leaves."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (jnp.asarray(a, jnp.float32) for a in RNG.normal(size=(2, 3, 4)))
ALPHAS = jnp.asarray([-1.0, 0.5, 3.0])


def call(loss, student, teacher):
    return loss(student, teacher)


def make(alpha):
    """A sum whose parts have arrays and numbers, of α as it is given."""
    return 0.5 * am.AMiD(order="qr", alpha=alpha) + am.AMiD(lam=jnp.asarray(0.25)) * ALPHAS


def test_jit_and_grad():
    loss = make(ALPHAS)
    value, grads = jax.jit(jax.value_and_grad(call))(loss, STUDENT, TEACHER)
    names = tuple(loss.knobs)
    wanted, wanted_grads = loss.value_and_grad(STUDENT, TEACHER, wrt=names)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    assert isinstance(grads, am.WeightedSum)
    assert jax.tree.structure(grads) == jax.tree.structure(loss)
    for got, want in zip(grads.knobs.values(), wanted_grads, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_arrays_change_without_compiling_anew_and_numbers_do_not():
    traced = []

    @jax.jit
    def f(loss, student, teacher):
        traced.append(loss)
        return loss(student, teacher)

    for alpha in (0.0, 1.0, 2.0):
        f(am.AMiD(alpha=jnp.asarray(alpha)), STUDENT, TEACHER)
    assert len(traced) == 1
    for alpha in (0.0, 1.0, 1.0):
        f(am.AMiD(alpha=alpha), STUDENT, TEACHER)
    assert len(traced) == 3


def test_vmap_over_a_loss_and_over_its_specification():
    losses = am.AMiD(am.KL(), "rq", alpha=ALPHAS, lam=0.25)
    one_by_one = [am.AMiD(am.KL(), "rq", float(a), 0.25)(STUDENT, TEACHER) for a in ALPHAS]
    axes = jax.tree.map(lambda _: 0, losses)  # a loss of integers, which no check may look at
    for in_axes in ((0, None, None), (axes, None, None)):
        got = jax.jit(jax.vmap(call, in_axes=in_axes))(losses, STUDENT, TEACHER)
        np.testing.assert_allclose(got, one_by_one, rtol=1e-6)


def test_a_loss_is_carried_through_a_scan():
    def step(loss, _):
        value, grads = jax.value_and_grad(call)(loss, STUDENT, TEACHER)
        return jax.tree.map(lambda p, g: p - 0.1 * g, loss, grads), value

    start = am.AMiD(order="qr", alpha=jnp.asarray(0.5), lam=jnp.asarray(0.5))
    last, values = jax.lax.scan(step, start, length=3)
    assert values[2] < values[1] < values[0]
    assert type(last) is am.AMiD
    assert last.order == "qr"
    np.testing.assert_allclose(last.alpha, _three_steps(start).alpha, rtol=1e-5)


def _three_steps(loss):
    alpha, lam = loss.alpha, loss.lam
    for _ in range(3):
        here = am.AMiD(order="qr", alpha=alpha, lam=lam)
        _, (by_alpha, by_lam) = here.value_and_grad(STUDENT, TEACHER, wrt=("alpha", "lam"))
        alpha, lam = alpha - 0.1 * by_alpha, lam - 0.1 * by_lam
    return am.AMiD(order="qr", alpha=alpha, lam=lam)


@pytest.mark.parametrize("leaf", [None, "word", object(), (1, 2), float("nan"), 7])
def test_whatever_fills_the_slots_comes_out_again(leaf):
    """JAX puts specifications, axes and placeholders there."""
    leaves, tree = jax.tree.flatten(make(ALPHAS))
    filled = jax.tree.unflatten(tree, [leaf] * len(leaves))
    assert jax.tree.structure(filled, is_leaf=lambda x: x is leaf) == tree
    assert jax.tree.leaves(filled, is_leaf=lambda x: x is leaf) == [leaf] * len(leaves)
    assert type(repr(filled)) is str


def test_specifications_and_copies_of_what_was_taken_apart():
    loss = make(ALPHAS)
    shapes = jax.eval_shape(lambda loss: loss, loss)
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [(3,), (3,), ()]
    again = jax.tree.map(lambda a: a, loss)
    assert pickle.loads(pickle.dumps(again)) == again == loss


def test_paths_name_the_parameters():
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(make(ALPHAS))]
    assert paths == [".parts[0][1].alpha", ".parts[1][0]", ".parts[1][1].lam"]


@pytest.mark.parametrize(
    "loss",
    [
        am.AlphaJensenShannon(),
        am.methods.akl(mu=jnp.asarray(0.5)),
        am.AMiD(alpha=np.asarray([0.0, 1.0, 2.0], "f4")),  # of NumPy, as jit takes arrays
        am.methods.distillm2(beta=jnp.asarray(1.0))["student"],
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_every_loss_is_an_argument(loss):
    got = jax.jit(call)(loss, STUDENT, TEACHER)
    loss = jax.tree.map(jnp.asarray, loss)
    np.testing.assert_allclose(got, loss(STUDENT, TEACHER), rtol=1e-6)


def test_losses_of_shards_and_shards_are_arguments_too():
    mesh = jax.sharding.Mesh(jax.devices()[:1], "vocab")
    loss, logits = am.AMiD(alpha=jnp.asarray(0.5)), jax.P(None, "vocab")
    student, teacher = am.Shard(STUDENT, "vocab"), am.Shard(TEACHER, "vocab")
    sharded = jax.shard_map(call, mesh=mesh, in_specs=(jax.P(), logits, logits), out_specs=jax.P())
    got = jax.jit(sharded)(loss, student, teacher)
    np.testing.assert_allclose(got, loss(STUDENT, TEACHER), rtol=1e-6)


def test_a_class_of_a_users_own():
    @dataclass(frozen=True, eq=False)
    class Twice(am.Loss):
        loss: am.Loss

        @property
        def block(self):
            return (2.0 * self.loss).block

        @property
        def knobs(self):
            return self.loss.knobs

    loss = Twice(am.AMiD(alpha=ALPHAS))
    got = jax.jit(call)(loss, STUDENT, TEACHER)
    np.testing.assert_allclose(got, 2.0 * loss.loss(STUDENT, TEACHER), rtol=1e-6)
    assert Twice(am.AMiD(alpha=ALPHAS)) == loss

    @jax.tree_util.register_pytree_node_class
    @dataclass(frozen=True, eq=False)
    class Own(Twice):
        def tree_flatten(self):
            return (self.loss,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    np.testing.assert_allclose(jax.jit(call)(Own(loss.loss), STUDENT, TEACHER), got, rtol=1e-6)


def test_torch_func():
    student, teacher = (torch.tensor(np.array(a)) for a in (STUDENT, TEACHER))
    alphas = torch.tensor(np.array(ALPHAS))
    divergence = am.KL()
    losses = am.AMiD(divergence, "rq", alpha=alphas, lam=0.25)
    got = torch.func.vmap(call, in_dims=(0, None, None))(losses, student, teacher)
    wanted = [am.AMiD(divergence, "rq", float(a), 0.25)(student, teacher) for a in alphas]
    torch.testing.assert_close(got, torch.stack(wanted))
    loss = am.AMiD(divergence, "rq", alpha=alphas[1])
    grad = torch.func.grad(call)(loss, student, teacher)
    torch.testing.assert_close(
        grad.alpha, loss.value_and_grad(student, teacher, wrt="alpha")[1].reshape(())
    )


ORDERS = """
import amidmath as am
early = am.AMiD(order="qr")
import jax, jax.numpy as jnp
x = jnp.arange(12.0).reshape(3, 4)
{}
print(jax.jit(lambda loss: loss(x, -x))(early) > 0.0)
"""


@pytest.mark.parametrize("between", ["am.AMiD()", "early(x, x)"])
def test_a_loss_made_before_jax_was_imported(between):
    """It is known once another is made, or one is called with JAX's arrays."""
    done = subprocess.run(
        [sys.executable, "-c", ORDERS.format(between)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == "True", done.stderr
