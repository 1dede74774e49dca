"""The loss from hidden states on every library, against logits multiplied out in float64."""

from __future__ import annotations

import re

import array_api_strict
import numpy as np
import pytest
import torch
from linear_oracle import bucketed, case, close, expected, flat, on, same

import amidmath as am
from amidmath.formulas import buckets
from amidmath.inputs import hidden_layer

KL = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)
MASK = np.array([1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0], bool)
LABELS = np.array([1, 7, -100, 0, 10, -100, 3, 3, 2, 9, -100, 1, 5])
SUM = 0.5 * am.AMiD(order="pr", alpha=0.0) + 0.5 * am.AMiD(am.JensenShannon(), order="rq")

CASES = {
    "plain": (KL, case(), {}),
    "positions of two axes": (KL, case((3, 4)), {}),
    "one position": (KL, case((1,)), {}),
    "a sum of losses": (SUM, case(), {}),
    "bias": (KL, case(bias=True), {}),
    "low rank": (KL, case(low_rank=True), {}),
    "soft cap": (KL, case(student={"softcap": 2.0}, teacher={"softcap": 3.0}), {}),
    "scales": (KL, case(student={"scale": 1 / 8}, teacher={"scale": 0.25}), {}),
    "all of a head": (
        KL,
        case(bias=True, low_rank=True, student={"scale": 0.7, "softcap": 2.0}),
        {"mask": MASK, "labels": LABELS, "label_weight": 0.3},
    ),
    "mask": (KL, case(), {"mask": MASK}),
    "mask of integers": (KL, case(), {"mask": MASK.astype(int)}),
    "sum": (KL, case(), {"mask": MASK, "reduction": "sum"}),
    "none": (KL, case(bias=True), {"mask": MASK, "reduction": "none", "labels": LABELS}),
    "denominator": (KL, case(), {"mask": MASK, "denominator": 5.0, "labels": LABELS}),
    "ignore_index": (KL, case(), {"labels": LABELS, "ignore_index": 3, "mask": LABELS >= 0}),
    "labels alone": (0.0 * KL, case(), {"labels": LABELS}),
    "larger student": (KL, case(vocabulary=(11, 8)), {"vocab": "common", "labels": LABELS}),
    "larger teacher": (KL, case(vocabulary=(11, 15)), {"vocab": "common", "labels": LABELS}),
    "capped and larger": (
        KL,
        case(vocabulary=(11, 8), student={"softcap": 2.0}),
        {"vocab": "common"},
    ),
    "common of equals": (KL, case(), {"vocab": "common"}),
}  # fmt: skip
by_case = pytest.mark.parametrize(("loss", "given", "options"), CASES.values(), ids=CASES)


@by_case
def test_value_and_gradients(eager, loss, given, options):
    value, grads = expected(loss, given, **options)
    arguments, options = given.arguments(am, eager), on(eager, options)
    got, by = loss.linear_value_and_grad(*arguments, wrt=given.names, chunk_rows=8, **options)
    same(got, value)
    same(loss.linear(*arguments, chunk_rows=8, **options), value)
    for mine, theirs in zip(flat(by), flat(grads[n] for n in given.names), strict=True):
        same(mine, theirs)


def test_one_gradient_comes_alone(any_library):
    given = case(bias=True)
    _, grads = expected(KL, given)
    _, by_bias = KL.linear_value_and_grad(
        *given.arguments(am, any_library.array), wrt="student_bias"
    )
    close(any_library, by_bias, grads["student_bias"])


def test_a_weight_is_a_head(any_library):
    given = case()
    hidden, head, other, other_head = given.arguments(am, any_library.array)
    value = KL.linear(hidden, head.weight, other, other_head.weight)
    close(any_library, value, expected(KL, given)[0])


def test_what_is_left_out_is_not_read(any_library):
    given = case(bias=True)
    value, grads = expected(KL, given, mask=MASK)
    given.student_hidden[~MASK], given.teacher_hidden[~MASK] = np.nan, np.inf
    labels = any_library.array(np.where(MASK, -100, 999), "int64")
    got, by = KL.linear_value_and_grad(
        *given.arguments(am, any_library.array),
        any_library.array(MASK, "bool"),
        wrt=given.names,
        labels=labels,
        chunk_rows=4,
    )
    close(any_library, got, value)
    for name, mine in zip(given.names, by, strict=True):
        close(any_library, mine, grads[name])
    assert (any_library.numpy(by[0])[~MASK] == 0.0).all()


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_what_is_left_out_is_not_multiplied(name, monkeypatch):
    rows = []
    outputs = hidden_layer.Layer.outputs
    monkeypatch.setattr(
        hidden_layer.Layer,
        "outputs",
        lambda self, hidden: rows.append(hidden.shape[0]) or outputs(self, hidden),
    )
    array = np.asarray if name == "numpy" else torch.from_numpy
    KL.linear(*case().arguments(am, array), array(MASK), chunk_rows=4)
    assert rows == [4, 4, 4, 4, 1, 1]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_kept_and_nothing_there(any_library, reduction):
    given = case()
    given.student_hidden[:] = np.nan
    arguments = given.arguments(am, any_library.array)
    mask = any_library.array(MASK & False, "bool")
    value, grads = KL.linear_value_and_grad(
        *arguments, mask, reduction, wrt=("student_hidden", "student_head")
    )
    assert not any_library.numpy(value).any()
    assert not any(any_library.numpy(g).any() for g in grads)
    value, grad = KL.linear_value_and_grad(
        *case((0,)).arguments(am, any_library.array), wrt="student_head"
    )
    assert any_library.numpy(value) == 0.0
    assert not any_library.numpy(grad).any()


def test_parameters_of_every_position(any_library):
    rng = np.random.default_rng(3)
    lam, alpha = rng.uniform(0.1, 0.9, 13), rng.normal(size=())
    given = case()
    dense = am.AMiD(order="rq", alpha=np.array(alpha), lam=lam).value_and_grad(
        given.student_hidden @ given.student_head.T,
        given.teacher_hidden @ given.teacher_head.T,
        MASK,
        wrt=("alpha", "lam"),
    )
    array = any_library.array
    loss = am.AMiD(order="rq", alpha=array(alpha), lam=array(lam))
    value, grads = loss.linear_value_and_grad(
        *given.arguments(am, array), array(MASK, "bool"), wrt=("alpha", "lam"), chunk_rows=4
    )
    for mine, theirs in zip((value, *grads), (dense[0], *dense[1]), strict=True):
        assert mine.shape == theirs.shape
        close(any_library, mine, theirs, 16)


def test_uneven_chunks_make_the_same_sum(any_library):
    arguments = case().arguments(am, any_library.array)
    whole, one = (KL.linear(*arguments, chunk_rows=n, reduction="none") for n in (100, 1))
    close(any_library, one, any_library.numpy(whole))


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_rows_that_are_worth_compiling(name):
    given = case((40,), (11_000, 11_000), (4, 6))
    array = np.asarray if name == "numpy" else torch.from_numpy
    mask = np.arange(40) % 7 != 0
    value, grads = KL.linear_value_and_grad(
        *given.arguments(am, array), array(mask), wrt=given.names, chunk_rows=64
    )
    s = given.student_hidden @ given.student_head.T
    t = given.teacher_hidden @ given.teacher_head.T
    wanted, by = KL.value_and_grad(s, t, mask, backend="reference")
    same(value, wanted)
    for mine, theirs in zip(
        grads, (by @ given.student_head, by.T @ given.student_hidden), strict=True
    ):
        same(mine, theirs)


def test_float16_in_numpy():
    given = case((40,), (300, 300), (16, 16), bias=True)
    half = given.arguments(am, lambda a: a.astype(np.float16) / np.float16(4))
    value, grads = KL.linear_value_and_grad(*half, wrt=given.names)
    exactly = [np.float64(a) for a in (half[0], half[1].weight, half[1].bias, half[2])]
    s = exactly[0] @ exactly[1].T + exactly[2]
    t = exactly[3] @ np.float64(half[3].weight).T
    wanted, by = KL.value_and_grad(s, t)
    assert value.dtype == np.float32
    assert abs(value - wanted) < 1e-5 * wanted
    for mine, theirs in zip(grads, (by @ exactly[1], by.T @ exactly[0], by.sum(0)), strict=True):
        assert mine.dtype == np.float16
        assert np.abs(mine - theirs).max() <= 2**-10 * np.abs(theirs).max()


# ---------------------------------------------------------------------------------------------
# Buckets, labels


@pytest.mark.parametrize("hidden_tokens", [0, 1, 5])
def test_the_bucket(hidden_tokens):
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.normal(size=(4, 6 + hidden_tokens)) * 5, requires_grad=True)
    cotangent = torch.tensor(rng.normal(size=(4, 7)))
    wanted = bucketed(x, 6)
    raw = x.detach().numpy()
    np.testing.assert_allclose(buckets.fold(raw, 6, np), wanted.detach(), rtol=1e-14)
    finite = cotangent if hidden_tokens else cotangent[:, :6]
    (by,) = torch.autograd.grad(wanted[:, : finite.shape[-1]], x, finite)
    np.testing.assert_allclose(buckets.unfold(cotangent.numpy(), raw, 6, np), by, rtol=1e-13)


def test_a_bucket_of_impossible_tokens():
    x = np.array([[0.0, 1.0, -np.inf, -np.inf]])
    with np.errstate(all="ignore"):
        assert buckets.fold(x, 2, np).tolist() == [[0.0, 1.0, -np.inf]]
        grad = buckets.unfold(np.array([[1.0, 2.0, np.nan]]), x, 2, np)
    assert grad.tolist() == [[1.0, 2.0, 0.0, 0.0]]


def test_a_token_that_only_the_student_has_makes_the_reverse_divergence_infinite():
    arguments = case(vocabulary=(11, 8)).arguments(am, np.asarray)
    assert am.AMiD(am.ReverseKL(), lam=0.0).linear(*arguments, vocab="common") == np.inf
    assert np.isfinite(am.AMiD(am.KL(), lam=0.0).linear(*arguments, vocab="common"))


def test_a_label_that_is_impossible_is_infinitely_wrong():
    hidden, head, other, other_head = case((1,)).arguments(am, np.asarray)
    bias = np.where(np.arange(11) == 4, -np.inf, 0.0)
    head = am.Head(head.weight, bias)
    value = (0.0 * KL).linear(hidden, head, other, other_head, labels=np.array([4]))
    assert value == np.inf


def test_far_out_a_soft_cap_has_a_small_gradient_not_none():
    hidden = torch.tensor([[30.0]], dtype=torch.float64, requires_grad=True)
    head = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    wanted = torch.autograd.grad(KL(1.0 * torch.tanh(hidden @ head.T), head.T * 0), hidden)[0]
    got = KL.linear_value_and_grad(
        hidden.detach(), am.Head(head, softcap=1.0), hidden.detach() * 0, head
    )[1]
    slope = 4 * np.exp(-60.0)  # of tanh, which is 1 there to the last digit
    assert wanted == 0.0
    outer = KL.value_and_grad(np.array([[1.0, 0.0]]), np.zeros((1, 2)))[1][0, 0]
    assert abs(float(got) - outer * slope) < 1e-12 * slope


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_labels_of_any_integers(any_library, dtype):
    given, labels = case(vocabulary=(300, 300)), np.arange(13)
    value, _ = expected(KL, given, labels=labels)
    arguments = given.arguments(am, any_library.array)
    close(any_library, KL.linear(*arguments, labels=any_library.array(labels, dtype)), value)


# ---------------------------------------------------------------------------------------------
# Errors

WRONG = {
    "no hidden array": ({"student_hidden": [1.0]}, TypeError, "student_hidden must be an array"),
    "an integer": ({"teacher_hidden": np.zeros((2, 5), int)}, TypeError, "teacher_hidden must"),
    "two libraries": (
        {"teacher_hidden": torch.zeros(2, 5)},
        TypeError,
        "student_hidden and teacher_hidden must come from one array library",
    ),
    "a layer": ({"student_head": torch.nn.Linear(3, 4)}, TypeError, "student_head must be a we"),
    "a vector": ({"student_head": np.zeros(4)}, ValueError, r"student_head must have shape \(V"),
    "hidden size": (
        {"student_head": np.zeros((4, 2))},
        ValueError,
        r"student_hidden must have a last axis of the size of student_head's, 2 .* got shape "
        r"\(2, 3\)",
    ),
    "positions": (
        {"teacher_hidden": np.zeros((3, 5))},
        ValueError,
        r"same positions, got shapes \(2, 3\) and \(3, 5\)",
    ),
    "vocabularies": (
        {"teacher_head": np.zeros((6, 5))},
        ValueError,
        "one vocabulary, got 4 and 6 tokens; .*vocab='common'",
    ),
    "vocab": ({"vocab": "first"}, ValueError, "vocab must be one of 'strict', 'common'"),
    "mask": ({"mask": np.ones(3, bool)}, ValueError, r"mask must broadcast to shape \(2,\)"),
    "mask's dtype": ({"mask": np.ones(2)}, TypeError, "mask must be boolean or 0/1 integers"),
    "mask's library": ({"mask": torch.ones(2)}, TypeError, "student_hidden and mask must come"),
    "reduction": ({"reduction": "batchmean"}, ValueError, "reduction must be one of"),
    "denominator": ({"denominator": 0.0}, ValueError, "denominator must be positive"),
    "no number": ({"denominator": "2"}, TypeError, "denominator must be a number or a scalar"),
    "labels' shape": ({"labels": np.zeros(3, int)}, ValueError, "labels must have the shape"),
    "labels' dtype": ({"labels": np.zeros(2)}, TypeError, "labels must be integers, got dtype"),
    "label": (
        {"labels": np.array([0, 4])},
        ValueError,
        r"labels must be tokens in \[0, 4\) or ignore_index -100, but 1 of them are not; .* 4.0",
    ),
    "label_weight": ({"label_weight": np.nan}, ValueError, "label_weight must be finite"),
    "ignore_index": (
        {"labels": np.zeros(2, int), "ignore_index": 0.5},
        TypeError,
        "ignore_index must be an integer, got 0.5",
    ),
    "chunk_rows": ({"chunk_rows": 0}, ValueError, "chunk_rows must be positive, got 0"),
    "no chunk_rows": ({"chunk_rows": 1.5}, TypeError, "chunk_rows must be an integer or None"),
}


@pytest.mark.parametrize(("change", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(change, kind, message):
    given = {
        "student_hidden": np.zeros((2, 3)),
        "student_head": np.zeros((4, 3)),
        "teacher_hidden": np.zeros((2, 5)),
        "teacher_head": np.zeros((4, 5)),
    }
    with pytest.raises(kind, match=message):
        KL.linear(**(given | change))
    with pytest.raises(kind, match=message):
        KL.linear_value_and_grad(**(given | change))


def test_what_there_is_to_differentiate_by():
    arguments = case(bias=True).arguments(am, np.asarray)
    message = "wrt must be one of 'student_hidden', 'student_head', 'student_bias', got 'lam'"
    with pytest.raises(ValueError, match=message):
        KL.linear_value_and_grad(*arguments, wrt=("student_head", "lam"))


def test_parts_of_the_vocabulary_are_no_rows():
    arguments = case().arguments(am, np.asarray)
    with pytest.raises(TypeError, match="linear needs a loss of whole rows"):
        am.VocabParallel(KL, "vocab").linear(*arguments)


W = np.zeros((4, 3))
WRONG_HEADS = {
    "weight": ((np.zeros(4),), {}, ValueError, r"weight must have shape \(V, H\), got \(4,\)"),
    "no weight": (([1.0],), {}, TypeError, "weight must be an array"),
    "integers": ((W.astype(int),), {}, TypeError, "weight must have a real floating-point dtype"),
    "bias": ((W, np.zeros(3)), {}, ValueError, r"bias must have shape \(V,\) = \(4,\)"),
    "another library": (
        (W, array_api_strict.zeros(4)),
        {},
        TypeError,
        "weight and bias must come from one array library",
    ),
    "softcap": ((W,), {"softcap": 0.0}, ValueError, "softcap must be positive, got 0.0"),
    "scale": ((W,), {"scale": np.inf}, ValueError, "scale must be finite, got inf"),
    "low_rank": ((W,), {"low_rank": (W, W)}, TypeError, r"low_rank must be a tuple \(A, B, fa"),
    "its shapes": (
        (W,),
        {"low_rank": (np.zeros((2, 3)), np.zeros((2, 4)), 1.0)},
        ValueError,
        r"low_rank must have A of shape \(r, H\) = \(r, 3\) and B of shape \(V, r\) = \(4, r\), "
        r"got \(2, 3\) and \(2, 4\)",
    ),
    "its factor": (
        (W,),
        {"low_rank": (np.zeros((2, 3)), np.zeros((4, 2)), None)},
        TypeError,
        re.escape("low_rank[2] must be a number"),
    ),
}


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"), WRONG_HEADS.values(), ids=WRONG_HEADS
)
def test_wrong_heads(arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        am.Head(*arguments, **options)


def test_a_head_does_not_change():
    with pytest.raises(AttributeError):
        am.Head(W).scale = 2.0
