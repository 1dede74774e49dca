"""Losses of every kind in JAX, and what must come out.

A kind is a loss of ``x``, of arrays with the same rows and of whole arrays. A way of running one
(:mod:`jax_ways`) gives its sum over the rows, and the gradient by x, or what the sum changes by
along two directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import amidmath as am

SMALL, LARGE = 64, 8192
"""Rows of eight logits: fewer than a kernel is worth, and as many."""

LOSS = am.AMiD(order="qr", alpha=0.5, lam=0.3)
SIZE, HIDDEN, KEPT = 8, 3, 3


@dataclass(frozen=True)
class Kind:
    """A loss: ``total(x, rows, whole)``, its ``values`` by row, and its derivatives.

    ``derivatives`` gives the values of all rows and their gradients, in double precision.
    """

    values: Callable[..., Any]
    arrays: Callable[[int], tuple[Any, dict[str, Any], dict[str, Any]]]
    derivatives: Callable[..., Any]
    total: Callable[..., Any] | None = None

    def sum(self, x, rows, whole):
        """Over all rows."""
        return (self.total or (lambda *a: self.values(*a).sum()))(x, rows, whole)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def logits(n):
    x, teacher = 2.0 * normal(0, n, SIZE), 2.0 * normal(1, n, SIZE)
    x[:, -1] = teacher[:, -2] = -np.inf
    return x, {"teacher": teacher, "mask": np.arange(n) % 7 != 3}, {}


def with_knobs(n):
    x, rows, _ = logits(n)
    return x, rows | {"alpha": np.linspace(-3.0, 0.5, n)}, {"lam": np.array(0.3)}


def lists(n):
    x, rows, _ = logits(n)
    top = am.top_k(rows["teacher"], k=KEPT)
    return x, {"log_probs": top.log_probs, "indices": top.indices, "mask": rows["mask"]}, {}


def states(n):
    rows = {"teacher": normal(1, n, HIDDEN + 1), "mask": np.arange(n) % 7 != 3}
    return (
        normal(0, n, HIDDEN),
        rows,
        {"head": normal(2, SIZE, HIDDEN), "other": normal(3, SIZE, 4)},
    )


def dense(x, rows, whole, reduction="none"):
    loss = (
        am.AMiD(order="qr", **{k: (rows | whole)[k] for k in ("alpha", "lam")}) if whole else LOSS
    )
    return loss(x, rows["teacher"], rows["mask"], reduction)


def listed(x, rows, whole, reduction="none"):
    log_probs = jax.lax.stop_gradient(rows["log_probs"])  # an exported program has all derivatives
    return LOSS(x, am.TopK(log_probs, rows["indices"]), rows["mask"], reduction)


def of_states(x, rows, whole, reduction="none"):
    student, teacher = am.Hidden(x, whole["head"]), am.Hidden(rows["teacher"], whole["other"])
    return LOSS(student, teacher, rows["mask"], reduction)


def divergence(x, rows, whole):
    return am.AlphaBeta(0.2, 0.7)(x, rows["teacher"])


def divergence_derivatives(x, rows, whole):
    measure = am.AlphaBeta(0.2, 0.7)
    value, (grad, _) = measure.value_and_grad(x, rows["teacher"], backend="reference")
    return value, grad


def mean(x, rows, whole):
    return am.log_falpha_mean(jnp.stack([x, rows["teacher"]]), alpha=0.5).sum(axis=-1)


def mean_derivatives(x, rows, whole):
    """(½Σxᵏ)^(1/k), k = 1/4: an x's share of the sum is the derivative by its logarithm."""
    powers = np.exp(0.25 * x), np.exp(0.25 * rows["teacher"])
    return (4.0 * np.log(0.5 * sum(powers))).sum(axis=-1), powers[0] / sum(powers)


def unmasked(n):
    return normal(0, n, SIZE) - 3.0, {"teacher": normal(1, n, SIZE) - 3.0}, {}


def dense_derivatives(x, rows, whole):
    loss = am.AMiD(order="qr", alpha=rows["alpha"], lam=whole["lam"]) if whole else LOSS
    options = {"reduction": "none", "backend": "reference"}
    return loss.value_and_grad(x, rows["teacher"], rows["mask"], **options)


def listed_derivatives(x, rows, whole):
    teacher = am.TopK(rows["log_probs"], rows["indices"])
    return LOSS.value_and_grad(x, teacher, rows["mask"], reduction="none")


def of_states_derivatives(x, rows, whole):
    logits = rows | {"teacher": rows["teacher"] @ whole["other"].T}
    value, grad = dense_derivatives(x @ whole["head"].T, logits, {})
    return value, grad @ whole["head"]


def summed(f):
    return partial(f, reduction="sum")


KINDS = {
    "dense": Kind(dense, logits, dense_derivatives, summed(dense)),
    "knobs": Kind(dense, with_knobs, dense_derivatives, summed(dense)),
    "sparse": Kind(listed, lists, listed_derivatives, summed(listed)),
    "linear": Kind(of_states, states, of_states_derivatives, summed(of_states)),
    "values, linear": Kind(of_states, states, of_states_derivatives),
    "values": Kind(dense, logits, dense_derivatives),
    "divergence": Kind(divergence, unmasked, divergence_derivatives),
    "mean": Kind(mean, unmasked, mean_derivatives),
}


def single(tree):
    """NumPy's arrays as JAX's in single precision."""
    return jax.tree.map(lambda a: jnp.asarray(a, "float32" if a.dtype.kind == "f" else None), tree)


def directions(x):
    """Two, which leave what has probability 0 alone."""
    found = np.stack([np.cos(np.arange(x.size)), np.linspace(-1, 1, x.size)]).reshape(2, *x.shape)
    return jnp.asarray(np.where(np.isfinite(x), found, 0.0), jnp.float32)


def outcome(name, way, rows, finite=False):
    """What a way makes of a kind; ``finite`` leaves the tokens of probability 0 out."""
    kind = KINDS[name]
    x, by_row, whole = single(arrays(name, rows, finite))
    value, change = way(lambda x, r: kind.sum(x, r, whole), x, by_row)
    return jax.tree.map(np.asarray, (value, change))


def arrays(name, rows, finite=False):
    """Those of a kind."""
    given = KINDS[name].arrays(rows)
    return jax.tree.map(lambda a: np.maximum(a, -20) if finite else a, given)


def check(name, rows, value, change, finite=False, eps=2.0**-23):
    """Raise AssertionError unless it is the sum and its change."""
    x, by_row, whole = jax.tree.map(in_single, arrays(name, rows, finite))
    values, grads = KINDS[name].derivatives(x, by_row, whole)
    if value is not None:
        np.testing.assert_allclose(value, np.sum(values), rtol=64 * eps)
    if change is None:
        return
    if change.shape == grads.shape or change.shape[1:] == grads.shape:
        bound = 64 * eps * np.abs(grads).max()
        np.testing.assert_allclose(change, np.broadcast_to(grads, change.shape), atol=bound)
        return
    along = np.asarray(directions(x), np.float64)
    moved = np.where(along == 0.0, 0.0, along * grads)[: max(1, change.size)]
    bound = 32 * eps * np.abs(moved).sum(axis=(1, 2)).max()
    wanted = moved.sum(axis=(1, 2)).reshape(change.shape)
    np.testing.assert_allclose(change, wanted, atol=bound)


def in_single(a):
    """Rounded as the devices see it, in double precision."""
    return a.astype(np.float32).astype(np.float64) if a.dtype.kind == "f" else a
