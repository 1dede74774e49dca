"""Every kind of student with every kind of teacher: the loss of the logits, or a refusal."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.distributed as dist
from label_oracle import cross_entropy

import amidmath as am

RNG = np.random.default_rng(0)
SHAPE, VOCABULARY, SIZES, K = (2, 3), 5, (3, 4), 2
STATES, OTHER = (RNG.normal(size=(*SHAPE, size)) for size in SIZES)
HEAD, OTHER_HEAD = (RNG.normal(size=(VOCABULARY, size)) for size in SIZES)
S, T = STATES @ HEAD.T, OTHER @ OTHER_HEAD.T
TOP = am.top_k(T, K)
MASK = np.array([[True, False, True], [True, True, False]])
LABELS = np.array([[0, -100, 4], [3, -100, 2]])
WEIGHT = 0.3
LOSS = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)

PAIRS = tuple(itertools.product(("logits", "states"), ("logits", "states", "lists")))
WAYS = tuple(itertools.product((False, True), (False, True), ("mean", "sum", "none")))
# Every program takes seconds to compile.
FEW = ((False, False, "mean"), (True, True, "none"), (True, False, "sum"))

by_pair = pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=map("-".join, PAIRS))
by_labels = pytest.mark.parametrize("labelled", [False, True], ids=["", "labels"])


def side(kind, array, states, head, logits):
    """One side, made by ``array``."""
    if kind == "states":
        return am.Hidden(array(states), array(head), chunk_rows=4)
    return am.TopK(*map(array, TOP)) if kind == "lists" else array(logits)


def sides(array, student, teacher):
    return (
        side(student, array, STATES, HEAD, S),
        side(teacher, array, OTHER, OTHER_HEAD, T),
    )


def options_of(array, labelled, masked, reduction):
    """The arguments beside student and teacher."""
    options = {"reduction": reduction}
    if masked:
        options["mask"] = array(MASK)
    if labelled:
        options |= {"labels": array(LABELS), "label_weight": WEIGHT}
    return options


def wanted(teacher, labelled, masked, reduction):
    """Value, and gradient by the student's logits, of the plain logits or lists by themselves."""
    other = TOP if teacher == "lists" else T
    values, grads = LOSS.value_and_grad(S, other, reduction="none", backend="reference")
    if labelled:
        found = cross_entropy(S.reshape(-1, VOCABULARY), LABELS.ravel())
        values = values + WEIGHT * found[0].reshape(SHAPE)
        grads = grads + WEIGHT * found[1].reshape(S.shape)
    keep = MASK if masked else np.ones(SHAPE, bool)
    values, grads = np.where(keep, values, 0.0), np.where(keep[..., None], grads, 0.0)
    count = keep.sum() if reduction == "mean" else 1
    return (values if reduction == "none" else values.sum() / count), grads / count


def check(student, value, by, expected):
    """A value and a gradient in the form of the student."""
    np.testing.assert_allclose(np.asarray(value), expected[0], rtol=1e-13)
    outer = expected[1]
    if student == "logits":
        found = {"student": (by, outer)}
    else:
        assert type(by) is am.Hidden
        flat = outer.reshape(-1, VOCABULARY)
        found = {
            "states": (by.states, outer @ HEAD),
            "head": (by.head.weight, flat.T @ STATES.reshape(-1, SIZES[0])),
        }
    for name, (mine, theirs) in found.items():
        assert mine.shape == theirs.shape, name
        np.testing.assert_allclose(np.asarray(mine), theirs, atol=1e-14, err_msg=name)


@by_pair
def test_value_and_gradient(eager, student, teacher):
    for way in WAYS:
        here, there = sides(eager, student, teacher)
        options = options_of(eager, *way)
        value, by = LOSS.value_and_grad(here, there, **options)
        check(student, value, by, wanted(teacher, *way))
        np.testing.assert_allclose(np.asarray(LOSS(here, there, **options)), value, rtol=1e-13)


@by_pair
def test_autograd(student, teacher):
    for way in WAYS:
        here, there = sides(torch.tensor, student, teacher)
        leaves = [here] if student == "logits" else list(here.arrays().values())
        for leaf in leaves:
            leaf.requires_grad_()
        value = LOSS(here, there, **options_of(torch.tensor, *way))
        value.sum().backward()
        by = leaves[0].grad
        if student == "states":
            by = am.Hidden(by, leaves[1].grad)
        check(student, value.detach(), by, wanted(teacher, *way))


@by_pair
def test_jax(student, teacher):
    with jax.enable_x64(True):
        here, there = sides(jnp.asarray, student, teacher)

        @jax.jit
        def every(here, there):
            found = []
            for way in FEW:
                options = options_of(jnp.asarray, *way)

                def total(here, options=options):
                    value = LOSS(here, there, **options)
                    return value.sum(), value

                (_, value), by = jax.value_and_grad(total, has_aux=True)(here)
                found.append((value, by))
            return found

        for way, (value, by) in zip(FEW, every(here, there), strict=True):
            check(student, value, by, wanted(teacher, *way))


# ---------------------------------------------------------------------------------------------
# Shards: here one rank has the whole vocabulary; tests/backends have several


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """This process alone."""
    file = tmp_path_factory.mktemp("ranks") / "ranks"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@by_labels
def test_shards_in_torch(group, labelled):
    for masked, reduction in itertools.product((False, True), ("mean", "sum", "none")):
        way = (labelled, masked, reduction)
        options = options_of(torch.tensor, *way)
        shards = [am.Shard(torch.tensor(a), group, rows_per_chunk=4) for a in (S, T)]
        value, by = LOSS.value_and_grad(*shards, **options)
        assert (type(by), by.ranks, by.rows_per_chunk) == (am.Shard, group, 4)
        check("logits", value, by.logits, wanted("logits", *way))
        leaf = shards[0].logits.requires_grad_()
        value = LOSS(*shards, **options)
        value.sum().backward()
        check("logits", value.detach(), leaf.grad, wanted("logits", *way))


@by_labels
def test_shards_in_jax(labelled):
    way = (labelled, True, "none")
    rows, same = jax.P(None, None, "vocab"), jax.P()
    with jax.enable_x64(True):
        mesh = jax.sharding.Mesh(jax.devices()[:1], "vocab")
        options = options_of(jnp.asarray, *way)

        def loss(student, teacher):
            return LOSS(am.Shard(student, "vocab"), am.Shard(teacher, "vocab"), **options)

        whole = jax.shard_map(loss, mesh=mesh, in_specs=rows, out_specs=same)
        value, pull = jax.vjp(jax.jit(whole), jnp.asarray(S), jnp.asarray(T))
        check("logits", value, pull(jnp.ones_like(value))[0], wanted("logits", *way))

        def gradient(student, teacher):
            shards = (am.Shard(student, "vocab"), am.Shard(teacher, "vocab"))
            return LOSS.value_and_grad(*shards, **options)[1]

        within = jax.shard_map(gradient, mesh=mesh, in_specs=rows, out_specs=rows)
        by = jax.jit(within)(jnp.asarray(S), jnp.asarray(T))
        assert type(by) is am.Shard
        check("logits", value, by.logits, wanted("logits", *way))


# ---------------------------------------------------------------------------------------------
# Pairs that there are not

SHARD = am.Shard(torch.tensor(S), "vocab")
HIDDEN, LISTS = (side(kind, torch.tensor, STATES, HEAD, S) for kind in ("states", "lists"))
LISTED = "student must be logits, am.Hidden or am.Shard, got an am.TopK: lists have no gradient"
ALONE = "student and teacher must both be an am.Shard of one vocabulary, got {} and {}: of hidden"


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        *((LISTS, other, LISTED) for other in (torch.tensor(T), HIDDEN, LISTS, SHARD)),
        (SHARD, torch.tensor(T), ALONE.format("an am.Shard", r"Tensor of shape \(2, 3, 5\)")),
        (SHARD, HIDDEN, ALONE.format("an am.Shard", "an am.Hidden")),
        (SHARD, LISTS, ALONE.format("an am.Shard", "an am.TopK")),
        (torch.tensor(S), SHARD, ALONE.format(r"Tensor of shape \(2, 3, 5\)", "an am.Shard")),
        (HIDDEN, SHARD, ALONE.format("an am.Hidden", "an am.Shard")),
        (SHARD, [1.0], ALONE.format("an am.Shard", r"list: \[1.0\]")),
        (am.Head(torch.tensor(HEAD)), torch.tensor(T), "student must be an array .* got Head"),
        (torch.tensor(S), am.Head(torch.tensor(HEAD)), "teacher must be an array .* got Head"),
        (
            am.Shard(S, "vocab"),
            am.Shard(T, "vocab"),
            "student.logits must be a torch tensor or a JAX array, which have ranks, got ndarray",
        ),
    ],
    ids=lambda value: None,
)
@pytest.mark.parametrize("labels", [None, torch.tensor(LABELS)], ids=["", "labels"])
def test_pairs_that_there_are_not(student, teacher, message, labels):
    for call in (LOSS, LOSS.value_and_grad):
        with pytest.raises(TypeError, match=message):
            call(student, teacher, labels=labels)


@pytest.mark.parametrize("what", ["Hidden", "Shard", "labels"])
def test_backends_are_those_of_two_arrays_of_logits(what):
    student = {"Hidden": HIDDEN, "Shard": SHARD}.get(what, torch.tensor(S))
    teacher = {"Shard": SHARD}.get(what, torch.tensor(T))
    labels = torch.tensor(LABELS) if what == "labels" else None
    for backend in ("reference", "compiled"):
        with pytest.raises(
            ValueError, match=rf"a loss .*{what} has one backend, None, got '{backend}'"
        ):
            LOSS(student, teacher, labels=labels, backend=backend)
    with pytest.raises(ValueError, match="backend must be one of"):
        LOSS(student, teacher, labels=labels, backend="fastest")
