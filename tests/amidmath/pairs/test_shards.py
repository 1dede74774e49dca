"""Losses of shards: their arguments, and what they are where there is one rank only.

On two processes: tests/backends/torch_backend/test_shards.py; on eight devices, the same file of
jax_backend.
"""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.distributed as dist
from jax.sharding import PartitionSpec as P

import amidmath as am


@pytest.fixture
def alone(tmp_path):
    """A group of this process only."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def logits():
    rng = np.random.default_rng(3)
    return tuple(torch.from_numpy(rng.normal(size=(3, 5))) for _ in "st")


def shards(ranks, *arrays, rows_per_chunk=256):
    return [am.Shard(array, ranks, rows_per_chunk) for array in arrays or logits()]


@pytest.mark.parametrize("labels", [None, torch.tensor([4, -100, 0])], ids=["", "labels"])
def test_a_group_of_one_changes_nothing(alone, labels):
    loss = am.AMiD(am.AlphaBeta(0.2, 0.7), order="qr", alpha=3.0)
    value, grad = loss.value_and_grad(*shards(alone), labels=labels)
    wanted, wanted_grad = loss.value_and_grad(*logits(), labels=labels)
    torch.testing.assert_close(value, wanted, rtol=1e-15, atol=0)
    assert (grad.ranks, grad.rows_per_chunk) == (alone, 256)
    torch.testing.assert_close(grad.logits, wanted_grad, rtol=1e-14, atol=1e-17)


def test_sums_and_multiples_are_of_whole_losses(alone):
    a, b = am.AMiD(lam=0.5), am.AMiD(order="qr", lam=0.5)
    for loss in (0.5 * a + b * 0.25, a / 2.0 - b, sum([a, b])):
        assert torch.equal(loss(*shards(alone)), loss(*logits()))


def test_both_sides_are_shards(alone):
    student, teacher = logits()
    shard, head = am.Shard(student, alone), torch.ones(5, 2, dtype=torch.float64)
    others = {
        "Tensor of shape": teacher,
        "an am.TopK": am.top_k(teacher, 2),
        "an am.Hidden": am.Hidden(teacher[:, :2], head),
    }
    for kind, other in others.items():
        with pytest.raises(TypeError, match=f"both be an am.Shard of one vocabulary.*{kind}"):
            am.AMiD()(shard, other)
    with pytest.raises(TypeError, match=r"both be an am.Shard of one vocabulary.*Tensor of shape"):
        am.AMiD()(student, am.Shard(teacher, alone))


def test_both_sides_are_on_the_same_ranks(alone):
    student, teacher = logits()
    with pytest.raises(ValueError, match=r"student\.ranks and teacher\.ranks must be the same"):
        am.AMiD()(am.Shard(student, alone), am.Shard(teacher, dist.new_group([0])))
    with pytest.raises(ValueError, match="rows_per_chunk must be the same, got 256 and 2"):
        am.AMiD()(am.Shard(student, alone), am.Shard(teacher, alone, 2))
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="ranks must be the same, got 'vocab' and 'model'"):
        am.AMiD()(am.Shard(x, "vocab"), am.Shard(x, "model"))


def test_arrays_are_looked_at_as_by_other_losses(alone):
    loss, (student, teacher) = am.AMiD(), logits()
    mask = torch.ones(3, dtype=torch.bool)
    for made in (student.to_sparse(), torch._neg_view(teacher)):
        with pytest.raises((TypeError, ValueError), match=r"logits.*\.(to_dense|resolve_neg)"):
            am.Shard(made, alone)
    with pytest.raises(TypeError, match=r"logits must be an array .*list"):
        am.Shard(teacher.tolist(), alone)
    with pytest.raises(TypeError, match="logits must have a real floating-point dtype"):
        am.Shard(teacher.long(), alone)
    with pytest.raises((TypeError, ValueError), match=r"mask.*\.to_dense"):
        loss(*shards(alone), mask.to_sparse())
    with pytest.raises(ValueError, match=r"mask must broadcast to shape \(3,\)"):
        loss(*shards(alone), mask[:2])
    assert torch.equal(loss(*shards(alone), mask[:1]), loss(*logits()))
    with pytest.raises((TypeError, ValueError), match=r"student\.logits and teacher\.logits"):
        loss(am.Shard(student, alone), am.Shard(teacher[:2], alone))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, 5, 1]), ValueError, r"labels must be tokens in \[0, 5\)"),
        (torch.tensor([0, 1]), ValueError, r"shape of the positions, \(3,\), got \(2,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, "labels"),
    ],
)
def test_wrong_labels(alone, labels, error, message):
    with pytest.raises(error, match=message):
        am.AMiD()(*shards(alone), labels=labels)


def test_compares_and_pickles_by_value():
    x = np.arange(6.0).reshape(2, 3)
    shard = am.Shard(x, "vocab")
    assert shard == am.Shard(x.copy(), "vocab")
    for other in (am.Shard(x, "model"), am.Shard(x, "vocab", 2), am.Shard(x + 1.0, "vocab")):
        assert shard != other
    assert pickle.loads(pickle.dumps(shard)) == shard


@pytest.mark.parametrize(
    ("rows_per_chunk", "error", "message"),
    [
        (0, ValueError, "rows_per_chunk must be positive, got 0"),
        (2.0, TypeError, "rows_per_chunk must be an integer, got 2.0"),
        (True, TypeError, "rows_per_chunk must be an integer, got True"),
    ],
)
def test_wrong_arguments(rows_per_chunk, error, message):
    with pytest.raises(error, match=message):
        am.Shard(np.zeros((2, 3)), "vocab", rows_per_chunk)


@pytest.mark.parametrize("ranks", ["vocab", None, [0, 1]])
def test_ranks_that_are_not_of_torch(ranks):
    with pytest.raises(TypeError, match=r"ranks must be a torch\.distributed ProcessGroup or"):
        am.AMiD()(*shards(ranks))


def test_ranks_that_are_not_of_jax(alone):
    with pytest.raises(TypeError, match="ranks must be the name of a mesh axis for JAX arrays"):
        am.AMiD()(*shards(alone, jnp.zeros((2, 3)), jnp.zeros((2, 3))))


def test_other_libraries():
    sides = shards("vocab", np.zeros((2, 3)), np.zeros((2, 3)))
    for call in (am.AMiD(), am.AMiD().value_and_grad):
        with pytest.raises(TypeError, match=r"torch tensor or a JAX array, .* got ndarray"):
            call(*sides)


def test_other_backends(alone):
    for call in (am.AMiD(), am.AMiD().value_and_grad):
        with pytest.raises(ValueError, match="has one backend, None, got 'compiled'"):
            call(*shards(alone), backend="compiled")


def test_a_shard_goes_through_jax_as_an_argument():
    """In and out of shard_map, jit and grad, as a pytree with one leaf."""
    mesh = jax.make_mesh((1,), ("vocab",), axis_types=(jax.sharding.AxisType.Auto,))
    student, teacher = (jnp.asarray(x.numpy()) for x in logits())
    specs = {"in_specs": P(None, "vocab"), "out_specs": (P(), P(None, "vocab"))}
    whole = jax.jit(jax.shard_map(jax.value_and_grad(am.AMiD()), mesh=mesh, **specs))
    value, grad = whole(*shards("vocab", student, teacher, rows_per_chunk=2))
    assert (grad.ranks, grad.rows_per_chunk) == ("vocab", 2)
    wanted, by_logits = jax.value_and_grad(am.AMiD())(student, teacher)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(grad.logits, by_logits, rtol=1e-4, atol=1e-7)
