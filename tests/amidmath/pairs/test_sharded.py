"""The namespace whose reductions go over ranks."""

from __future__ import annotations

import array_api_compat.numpy as xp
import pytest

from amidmath.pairs.sharded import Sharded


class Here:
    """One of three ranks, the middle one; the others hold these numbers less and more one."""

    index = 1

    def total(self, x):
        return 3 * x

    def largest(self, x):
        return x + 1

    def gathered(self, x):
        return xp.stack([x - 1, x, x + 1])


def test_reductions_of_the_namespace():
    over = Sharded(xp, Here())
    x = xp.asarray([[1.0, 4.0, 2.0]])
    assert over.sum(x, axis=-1) == 21.0
    assert over.max(x, axis=-1, keepdims=True) == [[5.0]]
    assert over.argmax(x, axis=-1) == -1
    assert over.any(x > 3.0, axis=-1)
    assert not over.any(x > 4.0, axis=-1)
    assert over.exp is xp.exp


def test_what_the_namespace_cannot_reduce():
    over = Sharded(xp, Here())
    with pytest.raises(NotImplementedError, match="sort would see one shard"):
        over.sort(xp.zeros((1, 3)))
    with pytest.raises(NotImplementedError, match="the vocabulary is the last axis, got axis 0"):
        over.sum(xp.zeros((1, 3)), axis=0)
