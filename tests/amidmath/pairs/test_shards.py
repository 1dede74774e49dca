"""VocabParallel: its arguments, what it is made of, and the namespace that goes over ranks."""

from __future__ import annotations

import pickle

import array_api_compat.numpy as xp
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.distributed as dist

import amidmath as am
from amidmath.pairs.shards import Sharded

LOSS = am.VocabParallel(am.AMiD(), "vocab")


@pytest.fixture
def alone(tmp_path):
    """A group of this process only."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def logits():
    rng = np.random.default_rng(3)
    return tuple(torch.from_numpy(rng.normal(size=(3, 5))) for _ in "st")


def test_a_group_of_one_changes_nothing(alone):
    loss = am.AMiD(am.AlphaBeta(0.2, 0.7), order="qr", alpha=3.0)
    for got, wanted in zip(
        am.VocabParallel(loss, alone).value_and_grad(*logits()),
        loss.value_and_grad(*logits()),
        strict=True,
    ):
        assert torch.equal(got, wanted)


def test_sums_and_multiples_are_of_whole_losses(alone):
    a, b = am.AMiD(lam=0.5), am.AMiD(order="qr", lam=0.5)
    both = 0.5 * am.VocabParallel(a, alone) + am.VocabParallel(b, alone) * 0.25
    assert both == am.VocabParallel(0.5 * a + 0.25 * b, alone)
    assert torch.equal(both(*logits()), (0.5 * a + 0.25 * b)(*logits()))
    less = am.VocabParallel(a, alone) / 2.0 - am.VocabParallel(b, alone)
    assert less == am.VocabParallel(0.5 * a + -1.0 * b, alone)
    assert sum([both, less]) == both + less


def test_parts_of_both_kinds_are_refused(alone):
    with pytest.raises(TypeError, match=r"am\.VocabParallel\(a \+ b, group\)"):
        LOSS + am.AMiD()
    with pytest.raises(TypeError, match="one group of ranks, got 'vocab' and 'model'"):
        LOSS + am.VocabParallel(am.AMiD(), "model")
    with pytest.raises(TypeError, match=r"am\.VocabParallel\(a \+ b, group\)"):
        (am.AMiD() + am.VocabParallel(am.AMiD(), alone))(*logits())


def test_arrays_are_looked_at_as_by_other_losses(alone):
    loss, (student, teacher) = am.VocabParallel(am.AMiD(), alone), logits()
    mask = torch.ones(3, dtype=torch.bool)
    for name, arguments in {
        "student": (student.to_sparse(), teacher),
        "teacher": (student, torch._neg_view(teacher)),
        "mask": (student, teacher, mask.to_sparse()),
    }.items():
        with pytest.raises((TypeError, ValueError), match=rf"{name}.*\.(to_dense|resolve_neg)"):
            loss(*arguments)
    with pytest.raises(TypeError, match=r"teacher_logits must be an array .*list"):
        loss(student, teacher.tolist())
    with pytest.raises(ValueError, match=r"mask must broadcast to shape \(3,\)"):
        loss(student, teacher, mask[:2])
    assert torch.equal(loss(student, teacher, mask[:1]), loss(student, teacher))


def test_compares_and_pickles_by_value():
    assert am.VocabParallel(am.AMiD(), "vocab") == LOSS != am.VocabParallel(am.AMiD(), "model")
    assert hash(am.VocabParallel(am.AMiD(), "vocab")) == hash(LOSS)
    assert pickle.loads(pickle.dumps(LOSS)) == LOSS


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((am.KL(), "vocab"), TypeError, "loss must be a loss such as am.AMiD()"),
        ((LOSS, "vocab"), TypeError, "loss must be one of whole rows"),
        ((am.AMiD(), "vocab", 0), ValueError, "rows_per_chunk must be positive, got 0"),
        ((am.AMiD(), "vocab", 2.0), TypeError, "rows_per_chunk must be an integer, got 2.0"),
        ((am.AMiD(), "vocab", True), TypeError, "rows_per_chunk must be an integer, got True"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(").replace(")", r"\)")):
        am.VocabParallel(*arguments)


@pytest.mark.parametrize("group", ["vocab", None, [0, 1]])
def test_a_group_that_is_not_of_torch(group):
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed ProcessGroup or"):
        am.VocabParallel(am.AMiD(), group)(*logits())


def test_a_group_that_is_not_of_jax(alone):
    x = jnp.zeros((2, 3))
    with pytest.raises(TypeError, match="group must be the name of a mesh axis for JAX arrays"):
        am.VocabParallel(am.AMiD(), alone)(x, x)


def test_other_libraries():
    x = np.zeros((2, 3))
    for call in (LOSS, LOSS.value_and_grad):
        with pytest.raises(TypeError, match="must be a torch tensor or a JAX array, got ndarray"):
            call(x, x)


def test_other_backends(alone):
    loss = am.VocabParallel(am.AMiD(), alone)
    for call in (loss, loss.value_and_grad):
        with pytest.raises(ValueError, match="has one backend, None, got 'compiled'"):
            call(*logits(), backend="compiled")


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
