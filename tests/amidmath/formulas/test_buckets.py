"""Tokens put together in one: the logits, and gradients through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hidden_oracle import bucketed

from amidmath.formulas import buckets


@pytest.mark.parametrize("hidden_tokens", [0, 1, 5])
def test_the_bucket(hidden_tokens):
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.normal(size=(4, 6 + hidden_tokens)) * 5, requires_grad=True)
    cotangent = torch.tensor(rng.normal(size=(4, 7)))
    wanted = bucketed(x, 6)
    raw = x.detach().numpy()
    np.testing.assert_allclose(buckets.fold(raw, 6, np), wanted.detach(), rtol=1e-14)
    finite = cotangent if hidden_tokens else cotangent[:, :6]
    (by,) = torch.autograd.grad(wanted[:, : finite.shape[-1]], x, finite)
    np.testing.assert_allclose(buckets.unfold(cotangent.numpy(), raw, 6, np), by, rtol=1e-13)


def test_a_bucket_of_impossible_tokens():
    x = np.array([[0.0, 1.0, -np.inf, -np.inf]])
    with np.errstate(all="ignore"):
        assert buckets.fold(x, 2, np).tolist() == [[0.0, 1.0, -np.inf]]
        grad = buckets.unfold(np.array([[1.0, 2.0, np.nan]]), x, 2, np)
    assert grad.tolist() == [[1.0, 2.0, 0.0, 0.0]]
