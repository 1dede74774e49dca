"""The loss from hidden states under JAX's transformations."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_oracle import case, expected

import amidmath as am

LOSS = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)
CASE = case(bias=True, low_rank=True, student={"softcap": 2.0, "scale": 0.7})
MASK = np.array([1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0], bool)
LABELS = np.array([1, 7, -100, 0, 10, -100, 3, 3, 2, 9, -100, 1, 5])
EVERY = tuple(range(5))


@pytest.fixture(autouse=True)
def in_double():
    with jax.enable_x64(True):
        yield


def leaves():
    """Hidden states, weight, bias, A and B; positions that are left out are NaN."""
    hidden = np.where(MASK[:, None], CASE.student_hidden, np.nan)
    arrays = (hidden, CASE.student_head, CASE.student_bias, *CASE.student_low_rank)
    return [jnp.asarray(a) for a in arrays]


def of(hidden, weight, bias, a, b, mask=MASK, reduction="mean"):
    head = am.Head(weight, bias, low_rank=(a, b, CASE.factor), **CASE.student)
    other = jnp.where(MASK[:, None], CASE.teacher_hidden, jnp.nan)
    return LOSS.linear(
        hidden, head, other, jnp.asarray(CASE.teacher_head), jnp.asarray(mask), reduction,
        labels=jnp.asarray(LABELS), label_weight=0.3, chunk_rows=4,
    )  # fmt: skip


@functools.cache
def wanted():
    value, grads = expected(LOSS, CASE, mask=MASK, labels=LABELS, label_weight=0.3)
    return value, [grads[n] for n in CASE.names[:3]] + list(grads["student_low_rank"])


def close(got, grads):
    for mine, theirs in zip(got, grads, strict=False):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("jitted", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradients(jitted):
    value, by = jitted(jax.value_and_grad(lambda *a: 2.0 * of(*a), argnums=EVERY))(*leaves())
    close([value, *by], [2.0 * wanted()[0], *(2.0 * g for g in wanted()[1])])


def test_every_value_has_a_cotangent_of_its_own():
    weights = jnp.linspace(-1.0, 2.0, 13)
    by = jax.grad(lambda *a: (of(*a, reduction="none") * weights).sum(), argnums=EVERY)(*leaves())
    given = case(bias=True, low_rank=True, student=CASE.student)
    singly = []
    for i in np.flatnonzero(MASK):
        _, grads = expected(
            LOSS, given, mask=np.arange(13) == i, labels=LABELS, label_weight=0.3, reduction="sum"
        )
        flat = [grads[n] for n in CASE.names[:3]] + list(grads["student_low_rank"])
        singly.append([float(weights[i]) * g for g in flat])
    close(by, [sum(column) for column in zip(*singly, strict=True)])


def test_forward_mode():
    primals = leaves()
    tangents = [jnp.ones_like(a) for a in primals]
    value, change = jax.jvp(of, primals, tangents)
    close([value, change], [wanted()[0], sum(g.sum() for g in wanted()[1])])


def test_vmap():
    hidden, *rest = leaves()
    twice, masks = jnp.stack([hidden, hidden]), jnp.stack([jnp.asarray(MASK)] * 2)
    batched = jax.vmap(jax.value_and_grad(of, argnums=(0, 1)), in_axes=(0, *4 * (None,), 0))
    values, by = batched(twice, *rest, masks)
    for i in (0, 1):
        close([values[i], *(g[i] for g in by)], [wanted()[0], *wanted()[1]])


def test_a_vocabulary_that_is_larger():
    given = case(vocabulary=(11, 8))
    value, grads = expected(LOSS, given, vocab="common", labels=LABELS)
    hidden, head, other, other_head = given.arguments(am, jnp.asarray)

    def loss(hidden, weight):
        return LOSS.linear(
            hidden, weight, other, other_head, vocab="common", labels=jnp.asarray(LABELS),
            chunk_rows=4,
        )  # fmt: skip

    got, by = jax.value_and_grad(loss, argnums=(0, 1))(hidden, head.weight)
    close([got, *by], [value, grads["student_hidden"], grads["student_head"]])


def test_the_teacher_gets_zeros():
    hidden, head, other, other_head = case().arguments(am, jnp.asarray)
    by = jax.grad(lambda a, b: LOSS.linear(hidden, head, a, b), argnums=(0, 1))(
        other, other_head.weight
    )
    assert not any(g.any() for g in by)


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_not_differentiated_by_has_no_buffer(frozen):
    hidden, head, other, other_head = case().arguments(am, jnp.asarray)

    def loss(hidden, weight):
        return LOSS.linear(hidden, weight, other, other_head, chunk_rows=4)

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=0 if frozen else 1))(hidden, head.weight)
    added_up = [line for line in str(jaxpr).splitlines() if ":f64[11,3] = add" in line]
    assert bool(added_up) is not frozen


def test_rows_left_out_are_no_chunks():
    hidden, head, other, other_head = case((40,)).arguments(am, jnp.asarray)
    rows = []

    class Counted(am.Loss):
        @property
        def block(self):
            return block

    def block(x, y, *, needs, xp):
        jax.debug.callback(lambda _: rows.append(1), x[0, 0])
        return xp.sum(x, axis=-1), (None, None)

    mask = jnp.arange(40) % 5 == 0
    jax.block_until_ready(Counted().linear(hidden, head, other, other_head, mask, chunk_rows=4))
    jax.effects_barrier()
    assert len(rows) == 2


def test_a_label_outside_the_vocabulary_is_seen_where_labels_are_not_at_hand():
    hidden, head, other, other_head = case().arguments(am, jnp.asarray)
    labels = jnp.asarray(np.where(LABELS == 7, 11, LABELS))

    def loss(labels):
        return LOSS.linear(hidden, head, other, other_head, labels=labels)

    with pytest.raises(ValueError, match="labels must be tokens"):
        loss(labels)
    assert jnp.isnan(jax.jit(loss)(labels))


def test_bfloat16():
    rng = np.random.default_rng(0)
    hidden, other = (jnp.asarray(rng.normal(size=(64, 32)), jnp.bfloat16) for _ in range(2))
    head, other_head = (jnp.asarray(rng.normal(size=(500, 32)) / 6, jnp.bfloat16) for _ in range(2))

    def loss(hidden, weight):
        return LOSS.linear(hidden, weight, other, other_head, chunk_rows=16)

    value, by = jax.value_and_grad(loss, argnums=(0, 1))(hidden, head)
    h, w, t, v = (np.asarray(a, np.float64) for a in (hidden, head, other, other_head))
    exact, outer = LOSS.value_and_grad(h @ w.T, t @ v.T)
    exactly = (outer @ w, outer.T @ h)
    assert value.dtype == jnp.float32
    assert abs(value / exact - 1) < 2**-9
    for mine, theirs in zip(by, exactly, strict=True):
        assert mine.dtype == jnp.bfloat16
        assert np.abs(mine - theirs).max() < 2**-7 * np.abs(theirs).max()
