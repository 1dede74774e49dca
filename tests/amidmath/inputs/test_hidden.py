"""Hidden states with their head as values, as pytrees, and what is refused."""

from __future__ import annotations

import copy
import pickle

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am

H, W = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(4, 3)
LOSS = am.AMiD(order="qr", lam=0.5)


def whole(array, factor=1.0):
    """One with every field."""
    low_rank = (array(factor * W[:2]), array(factor * W[:, :2]), 0.5)
    head = am.Head(array(factor * W), array(factor * W[:, 0]), 30.0, 0.5, low_rank)
    return am.Hidden(array(factor * H), head, "common", 8)


NAMES = ["states", *(f"head.{n}" for n in ("weight", "bias", "low_rank[0]", "low_rank[1]"))]


# ---------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("array", [np.array, torch.tensor, jnp.asarray], ids=["np", "pt", "jax"])
def test_equality_copies_and_how_it_is_shown(array):
    hidden = whole(array)
    assert hidden == whole(array)
    assert hidden != whole(array, 2.0)
    for other in (
        am.Hidden(hidden.states, hidden.head),
        am.Hidden(hidden.states, hidden.head, "common"),
        am.Hidden(hidden.states, hidden.head.weight, "common", 8),
        hidden.head,
        hidden.states,
    ):
        assert not isinstance(other, am.Hidden) or hidden != other
    for same in (copy.copy(hidden), copy.deepcopy(hidden), pickle.loads(pickle.dumps(hidden))):
        assert same == hidden
    assert list(hidden.arrays()) == NAMES
    with pytest.raises(TypeError, match="no hash"):
        hash(hidden)
    with pytest.raises(AttributeError):
        hidden.states = None


def test_a_weight_is_a_head():
    hidden = am.Hidden(H, W)
    assert hidden == am.Hidden(H, am.Head(W))
    assert repr(hidden) == (
        "Hidden(states=<numpy float64 (2, 3)>, head=Head(weight=<numpy float64 (4, 3)>, bias=None, "
        "softcap=None, scale=1.0, low_rank=None), vocab='strict', chunk_rows=None)"
    )


# ---------------------------------------------------------------------------------------------
# Pytrees


def test_leaves_and_their_names():
    hidden = whole(jnp.asarray)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(hidden)]
    assert paths == [f".{name}" for name in NAMES]
    doubled = jax.tree.map(lambda a: 2.0 * a, hidden)
    assert doubled == whole(jnp.asarray, 2.0)
    by_torch = torch.utils._pytree.tree_map(lambda a: 2.0 * a, whole(torch.tensor))
    assert by_torch == whole(torch.tensor, 2.0)


def test_arguments_and_results_of_jit_grad_and_vmap():
    """A step of descent; arrays change without compiling anew, what is no array does not."""
    traced = []
    teacher = jnp.eye(2, 4)

    @jax.jit
    def step(hidden):
        traced.append(hidden)
        by = jax.grad(LOSS)(hidden, teacher)
        return jax.tree.map(lambda p, g: p - 0.1 * g, hidden, by)

    start = am.Hidden(jnp.asarray(H), jnp.asarray(W))
    here = start
    for _ in range(2):
        after = step(here)
        assert type(after) is am.Hidden
        assert jax.tree.structure(after) == jax.tree.structure(start)
        assert LOSS(after, teacher) < LOSS(here, teacher)
        here = after
    assert len(traced) == 1
    step(am.Hidden(start.states, start.head, chunk_rows=8))
    assert len(traced) == 2

    many = jax.tree.map(lambda a: jnp.stack([a, -a]), start)
    values = jax.jit(jax.vmap(LOSS, in_axes=(0, None)))(many, teacher)
    one_by_one = [LOSS(jax.tree.map(lambda a, i=i: a[i], many), teacher) for i in (0, 1)]
    np.testing.assert_allclose(values, one_by_one, rtol=1e-5)


def test_transformations_of_torch():
    hidden = am.Hidden(torch.tensor(H), am.Head(torch.tensor(W), torch.zeros(4).double()))
    teacher = torch.eye(2, 4, dtype=torch.float64)
    by = torch.func.grad(LOSS)(hidden, teacher)
    _, wanted = LOSS.value_and_grad(hidden, teacher)
    assert type(by) is am.Hidden
    assert list(by.arrays()) == list(wanted.arrays())
    for mine, theirs in zip(by.arrays().values(), wanted.arrays().values(), strict=True):
        torch.testing.assert_close(mine, theirs)


# ---------------------------------------------------------------------------------------------
# Errors

WRONG = {
    "no array": (([1.0], W), {}, TypeError, r"states must be an array .* got list"),
    "integers": ((H.astype(int), W), {}, TypeError, "states must have a real floating"),
    "a layer": ((H, torch.nn.Linear(3, 4)), {}, TypeError, "head must be a weight of shape"),
    "a list": ((H, [1.0]), {}, TypeError, r"head must be a weight .* got list: \[1.0\]"),
    "a vector": ((H, np.zeros(3)), {}, ValueError, r"head must have shape \(V, H\), got \(3,\)"),
    "integer weights": ((H, W.astype(int)), {}, TypeError, "head must have a real floating"),
    "two libraries": (
        (H, array_api_strict.asarray(W)),
        {},
        TypeError,
        "states and head.weight must come from one array library",
    ),
    "two devices": (
        (torch.zeros(2, 3), torch.zeros((4, 3), device="meta")),
        {},
        ValueError,
        "states and head.weight must be on .* device",
    ),
    "hidden size": (
        (H, np.zeros((4, 2))),
        {},
        ValueError,
        r"states must have a last axis of the size of the head's, 2 \(weight of shape \(4, 2\)\), "
        r"got shape \(2, 3\)",
    ),
    "no axis": ((np.array(1.0), W), {}, ValueError, r"states must have a last .* got shape \(\)"),
    "vocab": ((H, W, "first"), {}, ValueError, "vocab must be one of 'strict', 'common'"),
    "chunk_rows": ((H, W), {"chunk_rows": 0}, ValueError, "chunk_rows must be positive, got 0"),
    "no integer": ((H, W), {"chunk_rows": 1.5}, TypeError, "chunk_rows must be an integer or No"),
    "a flag": ((H, W), {"chunk_rows": True}, TypeError, "chunk_rows must be an integer or None"),
}


@pytest.mark.parametrize(("arguments", "options", "kind", "message"), WRONG.values(), ids=WRONG)
def test_what_is_refused(arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        am.Hidden(*arguments, **options)
