"""A teacher's most probable tokens: what they are, in every library, and what is refused."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from definitions import log_softmax
from list_oracle import exact

import amidmath as am
from amidmath.rows import forms

INF, V = math.inf, 6
STUDENT = np.zeros((2, 5))


@pytest.mark.parametrize("k", [1, 4, V])
def test_top_k(library, oracle, k):
    logits = np.random.default_rng(2).normal(size=(2, 3, V)).astype(library.dtype)
    logits[0, 0, :2] = -INF
    logs, indices = am.top_k(library.array(logits), k, temperature=0.5)
    logs, indices = library.numpy(logs), library.numpy(indices)
    assert logs.shape == indices.shape == (2, 3, k)
    assert logs.dtype == library.dtype
    for row in np.ndindex(2, 3):
        wanted = log_softmax([2 * v for v in exact(logits[row])])
        order = sorted(range(V), key=lambda i, row=wanted: -row[i])[:k]
        found = [float(wanted[i]) for i in order]
        np.testing.assert_allclose(logs[row], found, rtol=8 * library.eps, atol=4 * library.eps)
        there = [wanted[i] > -mpmath.inf for i in order]
        assert np.all((indices[row] == order) | ~np.array(there))
        assert len(set(indices[row].tolist())) == k


def test_top_k_of_half_precision_and_in_chunks(monkeypatch):
    logits = torch.randn(7, V, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    whole = am.top_k(logits, 2)
    assert whole.log_probs.dtype == torch.float32
    monkeypatch.setattr(forms, "CPU_CHUNK", 2 * V)
    parts = am.top_k(logits, 2)
    for a, b in zip(parts, whole, strict=True):
        assert torch.equal(a, b)
    assert am.top_k(logits[:0], 2).indices.shape == (0, 2)
    assert am.AMiD()(logits[:0], am.top_k(logits[:0], 2)) == 0.0


def test_it_is_a_pytree_and_a_tuple():
    top = am.top_k(jnp.asarray([[0.0, 1.0, 2.0]]), 2)
    assert jax.tree.structure(jax.tree.map(lambda a: a, top)) == jax.tree.structure(top)
    assert isinstance(jax.tree.map(lambda a: a, top), am.TopK)
    logs, indices = top
    assert logs is top.log_probs
    assert indices.tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: am.top_k(STUDENT, 0), ValueError, ["k", "0", "(2, 5)"]),
        (lambda: am.top_k(STUDENT, 6), ValueError, ["k", "6", "(2, 5)"]),
        (lambda: am.top_k(STUDENT, 2.0), TypeError, ["k", "integer", "2.0"]),
        (lambda: am.top_k(STUDENT, 2, temperature=0.0), ValueError, ["temperature", "0.0"]),
        (lambda: am.top_k(np.zeros((2, 3), int), 2), TypeError, ["teacher_logits", "int64"]),
    ],
)
def test_wrong_arguments(call, error, words):
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value)
