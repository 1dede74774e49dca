"""Divergences of all pairs of rows by a loop over the pairs, with no broadcasting of theirs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
import pytest
import torch

import amidmath as am
from amidmath.rows import forms

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def chunks_of(size: int) -> Iterator[None]:
    """Chunks of so many numbers, and none of what was compiled for others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "CPU_CHUNK", size)
        jax.clear_caches()
        yield
    jax.clear_caches()


def log_probs(shape, axis=-1, seed=0):
    logits = np.random.default_rng([seed, *shape]).normal(size=shape)
    return logits - np.log(np.exp(logits).sum(axis=axis, keepdims=True))


def by_pairs(f, x, y, axis):
    """What f gives for each pair of rows, a number or a row, stacked: a loop, no broadcasting."""
    return looped(f, x, y, axis, lambda out, *_: np.asarray(out))


def looped(f, x, y, axis, take):
    x, y = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
    shape = np.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    places = [
        np.broadcast_to(np.arange(a[..., 0].size).reshape(a.shape[:-1]), shape) for a in (x, y)
    ]
    rows = [a.reshape(-1, a.shape[-1]) for a in (x, y)]
    found = [
        take(f(rows[0][places[0][at]], rows[1][places[1][at]]), places[0][at], places[1][at], at)
        for at in np.ndindex(shape)
    ]
    return np.array(found).reshape((*shape, *np.shape(found[0]))) if found else np.zeros(shape)


def gradients_by_pairs(divergence, x, y, axis, counts):
    """The gradients of the sum of the pairs' values, each of which counts as much as that."""
    sums = [np.zeros((a.size // a.shape[axis], a.shape[axis])) for a in (x, y)]

    def take(out, i, j, at):
        for total, row, grad in zip(sums, (i, j), out[1], strict=True):
            total[row] += counts[at] * grad
        return 0.0

    looped(divergence.value_and_grad, x, y, axis, take)
    shapes = [np.moveaxis(a, axis, -1).shape for a in (x, y)]
    return [np.moveaxis(s.reshape(n), -1, axis) for s, n in zip(sums, shapes, strict=True)]


@dataclass(frozen=True)
class Case:
    """A table with an axis of 5 that both have, repeated ones around it, and its derivatives.

    In chunks of 50 numbers the axis is cut into 2, 2 and 1.
    """

    divergence = am.AlphaBeta(0.2, 0.7)
    arrays = (log_probs((2, 5, 1, 4, 3)), log_probs((5, 2, 1, 3), seed=1))
    along = tuple(np.random.default_rng(3).normal(size=a.shape) for a in arrays)
    counts = np.random.default_rng(4).normal(size=(2, 5, 2, 4))

    @property
    def gradients(self):
        """Of the values, each of which counts as much as that."""
        return gradients_by_pairs(self.divergence, *self.arrays, -1, self.counts)

    @property
    def tangent(self):
        """Of the values, along directions of the arguments; nothing broadcasts in it."""
        wide = [np.broadcast_to(a, (*self.counts.shape, 3)).copy() for a in self.arrays]
        _, grads = self.divergence.value_and_grad(*wide)
        return sum((g * d).sum(axis=-1) for g, d in zip(grads, self.along, strict=True))


def hessians_by_pairs(divergence, x, y):
    """∂²/∂log x² of the sum over y (M, V) of D(x‖y), for each of x (N, V), by torch."""
    found = np.zeros((*x.shape, x.shape[-1]))
    for i, j in np.ndindex(len(x), len(y)):
        row = torch.from_numpy(y[j])

        def pair(x, row=row):
            return divergence(x, row, backend="reference")

        found[i] += torch.func.hessian(pair)(torch.from_numpy(x[i])).numpy()
    return found
