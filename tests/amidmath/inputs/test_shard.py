"""Shards of a vocabulary as values, as pytrees, and what is refused; losses: pairs, parallel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am

LOGITS = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize("array", [np.array, torch.tensor, jnp.asarray], ids=["np", "pt", "jax"])
def test_equality(array):
    shard = am.Shard(array(LOGITS), "vocab", 8)
    assert shard == am.Shard(array(LOGITS), "vocab", rows_per_chunk=8)
    assert shard != am.Shard(array(LOGITS), "vocab")
    assert shard != am.Shard(array(LOGITS), "model", 8)
    assert shard != am.Shard(array(2 * LOGITS), "vocab", 8)
    with pytest.raises(TypeError, match="no hash"):
        hash(shard)


def test_how_it_is_shown():
    assert repr(am.Shard(LOGITS, "vocab")) == (
        "Shard(logits=<numpy float64 (2, 3)>, ranks='vocab', rows_per_chunk=256)"
    )


def test_its_leaf_is_the_logits():
    shard = am.Shard(jnp.asarray(LOGITS), "vocab", 8)
    (leaf,) = jax.tree.leaves(shard)
    assert leaf is shard.logits
    assert jax.jit(lambda shard: jax.tree.map(lambda a: 2 * a, shard))(shard) == am.Shard(
        2 * shard.logits, "vocab", 8
    )
    here = am.Shard(torch.tensor(LOGITS), "vocab", 8)
    assert torch.utils._pytree.tree_leaves(here) == [here.logits]


def test_two_sides_share_ranks_and_chunks():
    one = am.Shard(torch.tensor(LOGITS), "vocab")
    for other, field in (
        (am.Shard(torch.tensor(LOGITS), "model"), "ranks"),
        (am.Shard(torch.tensor(LOGITS), "vocab", 8), "rows_per_chunk"),
    ):
        with pytest.raises(ValueError, match=f"student.{field} and teacher.{field} must be the sa"):
            am.AMiD()(one, other)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([1.0], "vocab"), TypeError, "logits must be an array .* got list"),
        ((LOGITS.astype(int), "vocab"), TypeError, "logits must have a real floating"),
        ((LOGITS, "vocab", 0), ValueError, "rows_per_chunk must be positive, got 0"),
        ((LOGITS, "vocab", 2.0), TypeError, "rows_per_chunk must be an integer, got 2.0"),
        ((LOGITS, "vocab", True), TypeError, "rows_per_chunk must be an integer, got True"),
    ],
)
def test_what_is_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        am.Shard(*arguments)
