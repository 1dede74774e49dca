"""Losses of hidden states under JAX's transformations, of which a Hidden is an argument."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hidden_oracle import case, expected
from jax.sharding import PartitionSpec

import amidmath as am

K = 4
KL = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)
LOSS = -2.0 * KL
MASK = np.array([1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0], bool)
LABELS = np.array([1, 7, -100, 0, 10, -100, 3, 3, 2, 9, -100, 1, 5])
CASES = {
    k: case(bias=True, low_rank=True, student={"softcap": 2.0, "scale": 0.7}, k=k)
    for k in (None, K)
}
by_teacher = pytest.mark.parametrize("k", CASES, ids=["states", "lists"])


@pytest.fixture(autouse=True)
def in_double():
    with jax.enable_x64(True):
        yield


def sides(k):
    """Both sides; positions that are left out hold nonsense."""
    student, teacher = CASES[k].sides(jnp.asarray, chunk_rows=4)
    left_out = ~MASK[:, None]
    student = am.Hidden(jnp.where(left_out, jnp.nan, student.states), student.head, chunk_rows=4)
    if k is None:
        states = jnp.where(left_out, jnp.nan, teacher.states)
        return student, am.Hidden(states, teacher.head)
    return student, am.TopK(
        jnp.where(left_out, jnp.nan, teacher.log_probs), jnp.where(left_out, 99, teacher.indices)
    )


def loss(student, teacher, mask=MASK, reduction="mean"):
    return LOSS(
        student, teacher, jnp.asarray(mask), reduction,
        labels=jnp.asarray(LABELS), label_weight=0.3,
    )  # fmt: skip


@functools.cache
def wanted(k, only=None):
    """Value and gradients, of all positions that are kept or the sum's of one."""
    options = {"mask": MASK} if only is None else {"mask": np.arange(13) == only}
    options["reduction"] = "mean" if only is None else "sum"
    return expected(LOSS, CASES[k], labels=LABELS, label_weight=0.3, **options)


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-14)


def close_gradient(got, grads, factor=1.0):
    for name, mine in got.arrays().items():
        close(mine, factor * grads[name])


@pytest.mark.parametrize(("k", "jitted"), [(None, False), (None, True), (K, True)])
def test_gradients(jitted, k):
    student, teacher = sides(k)
    f = jax.value_and_grad(lambda *a: 2.0 * loss(*a))
    value, by = (jax.jit(f) if jitted else f)(student, teacher)
    close(value, 2.0 * wanted(k)[0])
    close_gradient(by, wanted(k)[1], 2.0)
    assert jax.tree.structure(by) == jax.tree.structure(student)


@by_teacher
def test_every_value_has_a_cotangent_of_its_own(k):
    weights = jnp.linspace(-1.0, 2.0, 13)

    @jax.jit
    @jax.grad
    def by(student, teacher):
        return (loss(student, teacher, reduction="none") * weights).sum()

    singly = [(float(weights[i]), wanted(k, i)[1]) for i in np.flatnonzero(MASK)]
    close_gradient(
        by(*sides(k)), {name: sum(w * g[name] for w, g in singly) for name in singly[0][1]}
    )


@by_teacher
def test_forward_mode(k):
    student, teacher = sides(k)
    ones = jax.tree.map(jnp.ones_like, student)
    along = jax.jit(lambda s, d: jax.jvp(lambda s: loss(s, teacher), (s,), (d,)))
    value, change = along(student, ones)
    close(value, wanted(k)[0])
    close(change, sum(g.sum() for g in wanted(k)[1].values()))


@by_teacher
def test_vmap_over_states_and_lists_and_not_over_the_head(k):
    student, teacher = sides(k)
    over, shared = (jax.tree.map(lambda _, a=axis: a, student.head) for axis in (0, None))
    assert jax.tree.structure(over) == jax.tree.structure(student.head)
    twice = jax.tree.map(lambda a: jnp.stack([a, a]), (student.states, teacher, jnp.asarray(MASK)))
    if k is None:
        twice = (twice[0], teacher, twice[2])

    def f(states, head, teacher, mask):
        return loss(am.Hidden(states, head, chunk_rows=4), teacher, mask)

    axes = (0, shared, None if k is None else 0, 0)
    batched = jax.jit(jax.vmap(jax.value_and_grad(f, argnums=(0, 1)), in_axes=axes))
    values, (by_states, by_head) = batched(twice[0], student.head, *twice[1:])
    for i in (0, 1):
        close(values[i], wanted(k)[0])
        close(by_states[i], wanted(k)[1]["states"])
        close(by_head.weight[i], wanted(k)[1]["head.weight"])


@by_teacher
def test_shard_map_over_positions(k):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, same = PartitionSpec("data"), PartitionSpec()
    student, teacher = case(k=k).sides(jnp.asarray, chunk_rows=4)
    placed = am.Hidden(student.states, student.head, chunk_rows=4)
    spec = jax.tree.unflatten(jax.tree.structure(placed), [rows, same])
    other = jax.tree.unflatten(jax.tree.structure(teacher), [rows, rows if k else same])

    def total(student, teacher):
        return jax.lax.psum(KL(student, teacher, reduction="sum"), "data")

    sharded = jax.shard_map(total, mesh=mesh, in_specs=(spec, other), out_specs=same)
    value, by = jax.jit(jax.value_and_grad(sharded))(student, teacher)
    here, grads = expected(KL, case(k=k), reduction="sum")
    close(value, here)
    close_gradient(by, grads)


def test_a_vocabulary_that_is_larger():
    given = case(vocabulary=(11, 8))
    value, grads = expected(KL, given, vocab="common", labels=LABELS)
    student, teacher = given.sides(jnp.asarray, vocab="common", chunk_rows=4)
    f = jax.jit(jax.value_and_grad(lambda s, t: KL(s, t, labels=jnp.asarray(LABELS))))
    got, by = f(student, teacher)
    close(got, value)
    close_gradient(by, grads)


def test_hidden_states_of_the_teacher_get_zeros_and_lists_an_error():
    student, teacher = case().sides(jnp.asarray)
    by = jax.grad(KL, argnums=1)(student, teacher)
    assert isinstance(by, am.Hidden)
    assert not any(g.any() for g in by.arrays().values())
    student, top = case(k=K).sides(jnp.asarray)
    logs = jnp.nan_to_num(top.log_probs)

    def of(logs, reduction="mean"):
        return jnp.sum(KL(student, am.TopK(logs, top.indices), None, reduction))

    for reduction in ("mean", "none"):
        with pytest.raises(ValueError, match=r"teacher\.log_probs are constant"):
            jax.grad(of)(logs, reduction)
    held = jax.grad(lambda logs: of(jax.lax.stop_gradient(logs)))(logs)
    assert not held.any()


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_not_differentiated_by_has_no_buffer(frozen):
    student, teacher = case().sides(jnp.asarray)

    def of(states, weight):
        return KL(am.Hidden(states, weight, chunk_rows=4), teacher)

    grad = jax.grad(of, argnums=0 if frozen else 1)
    jaxpr = jax.make_jaxpr(grad)(student.states, student.head.weight)
    added_up = [line for line in str(jaxpr).splitlines() if ":f64[11,3] = add" in line]
    assert bool(added_up) is not frozen


def test_rows_left_out_are_no_chunks():
    student, teacher = case((40,)).sides(jnp.asarray, chunk_rows=4)
    rows = []

    class Counted(am.Loss):
        @property
        def block(self):
            return block

    def block(x, y, *, needs, xp):
        jax.debug.callback(lambda _: rows.append(1), x[0, 0])
        return xp.sum(x, axis=-1), (None, None)

    jax.block_until_ready(Counted()(student, teacher, jnp.arange(40) % 5 == 0))
    jax.effects_barrier()
    assert len(rows) == 2


def test_a_list_that_cannot_be_is_nan_where_it_is_not_at_hand():
    student, top = case(k=K).sides(jnp.asarray, chunk_rows=4)
    wrong = top._replace(indices=top.indices.at[3, 0].set(11))
    with pytest.raises(ValueError, match=r"teacher\.indices must be tokens in \[0, 11\)"):
        KL(student, wrong)
    f = jax.jit(lambda top: KL(student, top, reduction="none"))
    assert (np.isnan(f(wrong)) == (np.arange(13) == 3)).all()
