"""Losses over the positions of a batch, against whole logits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amidmath as am
from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.jax_loop.loss.compare import Whole, in_chunks

LOSS = am.AMiD(am.KL(), order="pr", alpha=-1.0, lam=0.3)
MASK = jnp.array([[True, True, False], [True, False, True]])
LABELS = jnp.array([[3, 1, NO_LABEL], [0, NO_LABEL, 5]])


def states(seed: int, tokens: int = 6) -> am.Hidden:
    hidden, head = jax.random.split(jax.random.key(seed))
    return am.Hidden(jax.random.normal(hidden, (2, 3, 4)), jax.random.normal(head, (tokens, 4)))


def logits(of: am.Hidden, tokens: int | None = None) -> jax.Array:
    return (of.states @ of.head.weight.T)[..., :tokens]


@pytest.mark.parametrize("step", [1, 4, 6, 10])
def test_chunks_have_what_the_function_gives_of_all(step: int) -> None:
    rows = (jnp.arange(12.0).reshape(2, 3, 2), MASK)

    def of_chunk(chunk: Any) -> jax.Array:
        numbers, keep = chunk
        assert numbers.shape == (step, 2)
        return jnp.where(keep, numbers.sum(-1), 0.0)

    found = in_chunks(of_chunk, rows, step).reshape(-1)
    expected = jnp.where(MASK, rows[0].sum(-1), 0.0).reshape(-1)
    np.testing.assert_array_equal(found[:6], expected)
    np.testing.assert_array_equal(found[6:], 0.0)  # what fills the last chunk


@pytest.mark.parametrize("tokens", [None, 4])
def test_a_loss_is_that_of_whole_logits(tokens: int | None) -> None:
    student, teacher = states(0), states(1)
    found = Whole(tokens=tokens)(LOSS, student, teacher, MASK)
    dense = LOSS(logits(student, tokens), logits(teacher, tokens), MASK, reduction="sum")
    np.testing.assert_allclose(found, dense, rtol=1e-5)
    each = Whole(tokens=tokens)(LOSS, student, teacher, MASK, "none")
    assert each.shape == MASK.shape
    np.testing.assert_allclose(each.sum(), found, rtol=1e-5)
    np.testing.assert_array_equal(each[~MASK], 0.0)


@pytest.mark.parametrize("tokens", [None, 4])
def test_labels_add_their_cross_entropy(tokens: int | None) -> None:
    """A label beyond the tokens that are compared is none."""
    student, teacher = states(0), states(1)
    compare = Whole(tokens=tokens)
    plain = compare(LOSS, student, teacher, MASK)
    found = compare(LOSS, student, teacher, MASK, labels=LABELS, label_weight=0.5)
    known = (LABELS != NO_LABEL) & ((tokens or 6) > LABELS)
    nll = optax.softmax_cross_entropy_with_integer_labels(
        logits(student, tokens), jnp.where(known, LABELS, 0)
    )
    np.testing.assert_allclose(found - plain, 0.5 * jnp.where(known, nll, 0.0).sum(), rtol=1e-5)


def test_further_tokens_of_a_side_are_one_token() -> None:
    student, teacher = states(0), states(1, tokens=8)
    found = Whole("common")(LOSS, student, teacher, MASK)
    whole = logits(teacher)
    rest = jax.nn.logsumexp(whole[..., 6:], axis=-1, keepdims=True)
    p = jnp.concatenate([whole[..., :6], rest], axis=-1)
    q = jnp.concatenate([logits(student), jnp.full((2, 3, 1), -jnp.inf)], axis=-1)
    np.testing.assert_allclose(found, LOSS(q, p, MASK, reduction="sum"), rtol=1e-5)


def test_no_gradient_reaches_the_teacher() -> None:
    student = states(0)
    gradient = jax.grad(lambda teacher: Whole()(LOSS, student, teacher, MASK))(states(1))
    assert not any(np.any(part) for part in jax.tree.leaves(gradient))
