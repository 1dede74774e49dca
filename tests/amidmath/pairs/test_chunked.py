"""Losses of hidden states on every library, against logits multiplied out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hidden_oracle import case, close, expected, on, same, same_gradient
from list_oracle import exact, truth

import amidmath as am
from amidmath.pairs import layers

K = 4
KL = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)
WARM = am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=0.5, lam=0.25, temperature=2.0)
SUM = 0.5 * am.AMiD(order="pr", alpha=0.0) + 0.5 * am.AMiD(am.JensenShannon(), order="rq")
WARM_SUM = 0.3 * WARM + -2.0 * am.AMiD(order="pr", temperature=2.0)
MASK = np.array([1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0], bool)
LABELS = np.array([1, 7, -100, 0, 10, -100, 3, 3, 2, 9, -100, 1, 5])
ALL = {"bias": True, "low_rank": True, "student": {"scale": 0.7, "softcap": 2.0}}
COMMON = {"vocab": "common"}
LABELLED = {"mask": MASK, "labels": LABELS, "label_weight": 0.3}

BOTH = {
    "plain": (KL, {}, {}),
    "positions of two axes": (KL, {"shape": (3, 4)}, {}),
    "all of a head": (KL, ALL, LABELLED),
    "mask of integers": (KL, {}, {"mask": MASK.astype(int)}),
    "sum": (KL, {}, {"mask": MASK, "reduction": "sum"}),
    "none": (KL, {"bias": True}, {"mask": MASK, "reduction": "none", "labels": LABELS}),
    "denominator": (KL, {}, {"mask": MASK, "denominator": 5.0, "labels": LABELS}),
    "ignore_index": (KL, {}, {"labels": LABELS, "ignore_index": 3, "mask": LABELS >= 0}),
}
CASES = {
    **{name: (loss, case(**of), options) for name, (loss, of, options) in BOTH.items()},
    "one position": (KL, case((1,)), {}),
    "a sum of losses": (SUM, case(), {}),
    "low rank": (KL, case(low_rank=True), {}),
    "soft caps": (KL, case(student={"softcap": 2.0}, teacher={"softcap": 3.0}), {}),
    "scales": (KL, case(student={"scale": 1 / 8}, teacher={"scale": 0.25}), {}),
    "labels alone": (0.0 * KL, case(), {"labels": LABELS}),
    "larger student": (KL, case(vocabulary=(11, 8)), COMMON | {"labels": LABELS}),
    "larger teacher": (KL, case(vocabulary=(11, 15)), COMMON | {"labels": LABELS}),
    "capped and larger": (KL, case(vocabulary=(11, 8), student={"softcap": 2.0}), COMMON),
    "common of equals": (KL, case(), COMMON),
    **{
        f"lists, {name}": (loss, case(**of, k=K), options)
        for name, (loss, of, options) in BOTH.items()
    },
    "lists, one token": (KL, case(k=1), {}),
    "lists, all tokens": (KL, case(k=11), {}),
    "lists, temperature": (WARM, case(k=K, temperature=2.0), {}),
    "lists, a sum": (WARM_SUM, case(k=K, temperature=2.0), {"mask": MASK}),
    "lists, warm, capped": (WARM, case(k=K, temperature=2.0, **ALL), LABELLED),
}
by_case = pytest.mark.parametrize(("loss", "given", "options"), CASES.values(), ids=CASES)
by_teacher = pytest.mark.parametrize("k", [None, K], ids=["states", "lists"])


def sides_on(library, given, **options):
    """Student and teacher in a library of the fixtures, tokens as integers."""
    return given.sides(library.array, lambda a: library.array(a, "int32"), **options)


def leave_out(given):
    """Make nonsense of positions that are left out."""
    given.student_hidden[~MASK], given.teacher_hidden[~MASK] = np.nan, np.inf
    if given.lists is not None:
        given.lists[0][~MASK], given.lists[1][~MASK] = 7.0, 99


# ---------------------------------------------------------------------------------------------
# Values and gradients


@by_case
def test_value_and_gradients(eager, loss, given, options):
    value, grads = expected(loss, given, **options)
    vocab = options.get("vocab", "strict")
    options = on(eager, {k: v for k, v in options.items() if k != "vocab"})
    student, teacher = given.sides(eager, vocab=vocab, chunk_rows=5)
    got, by = loss.value_and_grad(student, teacher, **options)
    same(got, value)
    same(loss(student, teacher, **options), value)
    same_gradient(by, grads)
    assert (by.vocab, by.chunk_rows) == (vocab, 5)
    assert by.head.projection == student.head.projection


@pytest.mark.parametrize(
    ("divergence", "order", "alpha", "temperature"),
    [(am.KL(), "qr", -1.0, 1.0), (am.KL(), "pr", 3.0, 2.0), (am.Renyi(2.0), "rq", 0.5, 0.5)],
)
def test_lists_by_definition(any_library, divergence, order, alpha, temperature):
    """k + 1 outcomes at 200 digits, of the exact logits of hidden states and a head."""
    given = case((3,), (6, 6), (2, 3), k=3, temperature=temperature)
    for array in (given.student_hidden, given.student_head):  # products that float32 has
        array[:] = np.round(8.0 * array) / 8.0
    logits = given.student_hidden @ given.student_head.T
    given.lists = (given.lists[0].astype("float32").astype("float64"), given.lists[1])
    rows = [
        truth(divergence, order, exact(row), tuple(logs), tuple(i), alpha, 0.25, temperature)
        for row, logs, i in zip(logits, *given.lists, strict=True)
    ]
    wanted = np.array([float(whole.value) for whole, _ in rows])
    outer = np.array([[float(v) for v in slopes] for _, slopes in rows])
    loss = am.AMiD(divergence, order=order, alpha=alpha, lam=0.25, temperature=temperature)
    value, by = loss.value_and_grad(*sides_on(any_library, given, chunk_rows=2), reduction="none")
    close(any_library, value, wanted)
    close(any_library, by.states, outer @ given.student_head)
    close(any_library, by.head.weight, outer.T @ given.student_hidden)


def test_tokens_that_the_list_leaves_out_without_mass_are_the_bucket_of_a_smaller_teacher(eager):
    """Two definitions meet: a teacher of the first 7 of 11 tokens, by its head and by its list."""
    small = case(vocabulary=(11, 7))
    value, grads = expected(KL, small, vocab="common", labels=LABELS)
    listed = case(vocabulary=(11, 7), k=7)
    logits = small.teacher_hidden @ small.teacher_head.T
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    listed.lists = (logs + 1e-13, np.tile(np.arange(7), (13, 1)))  # no tail, not even by rounding
    sides = listed.sides(eager, chunk_rows=5)
    got, by = KL.value_and_grad(*sides, labels=eager(LABELS))
    for mine, theirs in zip((got, *by.arrays().values()), (value, *grads.values()), strict=True):
        np.testing.assert_allclose(np.asarray(mine), theirs, rtol=1e-11, atol=1e-12)


def test_parts_of_a_gradient(any_library):
    given = case(bias=True)
    value, grads = expected(KL, given)
    sides = sides_on(any_library, given)
    got, (by_head, by_states) = KL.value_and_grad(*sides, wrt=("student.head", "student.states"))
    close(any_library, got, value)
    assert isinstance(by_head, am.Head)
    close(any_library, by_head.weight, grads["head.weight"])
    close(any_library, by_head.bias, grads["head.bias"])
    close(any_library, by_states, grads["states"])
    _, alone = KL.value_and_grad(*sides, wrt="student.states")
    close(any_library, alone, grads["states"])


@by_teacher
def test_what_is_left_out_is_not_read(any_library, k):
    given = case(k=k, bias=True)
    value, grads = expected(KL, given, mask=MASK)
    leave_out(given)
    got, by = KL.value_and_grad(
        *sides_on(any_library, given, chunk_rows=4),
        any_library.array(MASK, "bool"),
        labels=any_library.array(np.where(MASK, -100, 999), "int64"),
    )
    close(any_library, got, value)
    for name, mine in by.arrays().items():
        close(any_library, mine, grads[name], 4)
    assert (any_library.numpy(by.states)[~MASK] == 0.0).all()


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_what_is_left_out_is_not_multiplied(name, monkeypatch):
    rows = []
    outputs = layers.Layer.outputs
    monkeypatch.setattr(
        layers.Layer,
        "outputs",
        lambda self, hidden: rows.append(hidden.shape[0]) or outputs(self, hidden),
    )
    array = np.asarray if name == "numpy" else torch.from_numpy
    KL(*case().sides(array, chunk_rows=4), array(MASK))
    assert rows == [4, 4, 4, 4, 1, 1]


@by_teacher
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_kept_and_nothing_there(any_library, reduction, k):
    given = case(k=k)
    given.student_hidden[:] = np.nan
    mask = any_library.array(MASK & False, "bool")
    value, grad = KL.value_and_grad(*sides_on(any_library, given), mask, reduction)
    assert not any_library.numpy(value).any()
    assert not any(any_library.numpy(g).any() for g in grad.arrays().values())
    nothing = sides_on(any_library, case((0,), k=k))
    value, grad = KL.value_and_grad(*nothing, wrt="student.head")
    assert any_library.numpy(value) == 0.0
    assert not any_library.numpy(grad.weight).any()


@by_teacher
def test_parameters_of_every_position(any_library, k):
    rng = np.random.default_rng(3)
    lam, alpha = rng.uniform(0.1, 0.9, 13), rng.normal(size=())
    given, wrt = case(k=k), ("alpha", "lam")
    student, teacher = given.sides(np.asarray)
    other = teacher if k else teacher.states @ teacher.head.weight.T
    wanted, by = am.AMiD(order="rq", alpha=np.array(alpha), lam=lam).value_and_grad(
        student.states @ student.head.weight.T, other, MASK, wrt=wrt
    )
    array = any_library.array
    loss = am.AMiD(order="rq", alpha=array(alpha), lam=array(lam))
    value, grads = loss.value_and_grad(
        *sides_on(any_library, given, chunk_rows=4), array(MASK, "bool"), wrt=wrt
    )
    for mine, theirs in zip((value, *grads), (wanted, *by), strict=True):
        assert mine.shape == theirs.shape
        close(any_library, mine, theirs, 16)


def test_uneven_chunks_make_the_same_sum(any_library):
    whole, one = (
        KL(*sides_on(any_library, case(), chunk_rows=n), reduction="none") for n in (100, 1)
    )
    close(any_library, one, any_library.numpy(whole))


def test_of_two_sides_the_smaller_chunk_counts(monkeypatch):
    rows = []
    take = layers.Library.take
    monkeypatch.setattr(
        layers.Library,
        "take",
        lambda self, a, at, fill=0: rows.append(at.stop - at.start) or take(self, a, at, fill),
    )
    student, teacher = case().sides(np.asarray)
    for here, there in ((5, 9), (9, 5), (5, None), (None, 5)):
        rows.clear()
        KL(
            am.Hidden(student.states, student.head, chunk_rows=here),
            am.Hidden(teacher.states, teacher.head, chunk_rows=there),
        )
        assert set(rows) == {5, 3}


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_rows_that_are_worth_compiling(name):
    given = case((40,), (11_000, 11_000), (4, 6))
    array = np.asarray if name == "numpy" else torch.from_numpy
    mask = np.arange(40) % 7 != 0
    value, grads = KL.value_and_grad(*given.sides(array, chunk_rows=64), array(mask))
    s = given.student_hidden @ given.student_head.T
    t = given.teacher_hidden @ given.teacher_head.T
    wanted, by = KL.value_and_grad(s, t, mask, backend="reference")
    same(value, wanted)
    same(grads.states, by @ given.student_head)
    same(grads.head.weight, by.T @ given.student_hidden)


def test_float16_in_numpy():
    given = case((40,), (300, 300), (16, 16), bias=True)
    student, teacher = given.sides(lambda a: a.astype(np.float16) / np.float16(4))
    value, by = KL.value_and_grad(student, teacher)
    h, w, b = (np.float64(a) for a in student.arrays().values())
    wanted, outer = KL.value_and_grad(
        h @ w.T + b, np.float64(teacher.states) @ np.float64(teacher.head.weight).T
    )
    assert value.dtype == np.float32
    assert abs(value - wanted) < 1e-5 * wanted
    exactly = (outer @ w, outer.T @ h, outer.sum(0))
    for mine, theirs in zip(by.arrays().values(), exactly, strict=True):
        assert mine.dtype == np.float16
        assert np.abs(mine - theirs).max() <= 2**-10 * np.abs(theirs).max()


def test_a_token_that_only_the_student_has_makes_the_reverse_divergence_infinite():
    sides = case(vocabulary=(11, 8)).sides(np.asarray, vocab="common")
    assert am.AMiD(am.ReverseKL(), lam=0.0)(*sides) == np.inf
    assert np.isfinite(am.AMiD(am.KL(), lam=0.0)(*sides))


def test_far_out_a_soft_cap_has_a_small_gradient_not_none():
    hidden = torch.tensor([[30.0]], dtype=torch.float64, requires_grad=True)
    head = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    wanted = torch.autograd.grad(KL(1.0 * torch.tanh(hidden @ head.T), head.T * 0), hidden)[0]
    student = am.Hidden(hidden.detach(), am.Head(head, softcap=1.0))
    got = KL.value_and_grad(student, am.Hidden(hidden.detach() * 0, head))[1].states
    slope = 4 * np.exp(-60.0)  # of tanh, which is 1 there to the last digit
    assert wanted == 0.0
    outer = KL.value_and_grad(np.array([[1.0, 0.0]]), np.zeros((1, 2)))[1][0, 0]
    assert abs(float(got) - outer * slope) < 1e-12 * slope
