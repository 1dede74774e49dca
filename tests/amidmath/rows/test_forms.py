"""Chunks of rows, masks, reductions, denominators, dtypes and memory."""

from __future__ import annotations

import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am
from amidmath.backends.jax_backend import rows as jax_rows
from amidmath.rows import forms

ORDERS = ("pr", "rp", "qr", "rq")
LOSSES = {
    "KL": am.AMiD(order="pr", alpha=0.0),
    "AB": am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=3.0, lam=0.3),
}
by_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def logits(library, shape=(2, 2, 4)):
    rng = np.random.default_rng(6)
    return tuple(library.array(rng.normal(size=shape)) for _ in range(2))


def close(library, got, wanted, factor=8):
    got, wanted = library.numpy(got), library.numpy(wanted)
    np.testing.assert_allclose(
        got, wanted, rtol=factor * library.eps, atol=library.eps * np.abs(wanted).max()
    )


@pytest.fixture
def chunk_of(monkeypatch):
    """Make chunks of so many numbers, and see of what shapes they are."""
    shapes, chunk = set(), forms.RowForm.chunk

    def spy(self, x, *args, **kwargs):
        shapes.add(x.shape)
        return chunk(self, x, *args, **kwargs)

    def patch(size):
        monkeypatch.setattr(forms, "CPU_CHUNK", size)
        monkeypatch.setattr(forms.RowForm, "chunk", spy)
        jax_rows.rows.clear_cache()
        jax_rows.in_chunks.clear_cache()
        return shapes

    yield patch
    jax_rows.rows.clear_cache()
    jax_rows.in_chunks.clear_cache()


@pytest.mark.parametrize("per_chunk", [1, 2, 3])
@by_loss
def test_chunks_change_nothing(any_library, chunk_of, loss, per_chunk):
    student, teacher = logits(any_library)
    mask = any_library.array([[1, 0], [1, 1]], "bool")
    wanted = loss.value_and_grad(student, teacher, mask, reduction="none")
    shapes = chunk_of(4 * per_chunk + 1)
    got = loss.value_and_grad(student, teacher, mask, reduction="none")
    if any_library.name != "jax":  # which maps over rows and batches them itself
        assert shapes <= {(per_chunk, 4), (4 % per_chunk, 4)}
    assert shapes
    for a, b in zip(got, wanted, strict=True):
        close(any_library, a, b)
    close(any_library, loss(student, teacher, mask, reduction="none"), wanted[0])


def test_chunks_change_nothing_under_differentiation(any_autodiff, chunk_of):
    student, teacher = logits(any_autodiff)
    loss = am.AMiD(order="qr", alpha=3.0, lam=0.31)  # which JAX has not traced yet
    value, grad = loss.value_and_grad(student, teacher)
    shapes = chunk_of(4)
    chunked, (chunked_grad, _) = any_autodiff.derivatives(loss, student, teacher)
    assert ((4,) in shapes) if any_autodiff.name == "jax" else (shapes == {(1, 4)})
    close(any_autodiff, any_autodiff.array(chunked), value)
    close(any_autodiff, any_autodiff.array(chunked_grad), grad)


def test_chunks_of_a_divergence(any_library, chunk_of):
    x, y = (any_library.array(np.log(any_library.numpy(a) ** 2)) for a in logits(any_library))
    divergence = am.GeneralizedKL()
    wanted, wanted_grads = divergence.value_and_grad(x, y)
    assert chunk_of(4) == set()
    value, grads = divergence.value_and_grad(x, y)
    for got, want in zip((value, *grads), (wanted, *wanted_grads), strict=True):
        close(any_library, got, want)


@by_loss
def test_every_row_by_itself_gives_the_same(any_library, loss):
    student, teacher = logits(any_library, (4, 4))
    value, grad = loss.value_and_grad(student, teacher, reduction="none")
    for row in range(4):
        one, one_grad = loss.value_and_grad(student[row, :], teacher[row, :], reduction="none")
        assert one.shape == ()
        close(any_library, one, value[row])
        close(any_library, one_grad, grad[row, :])


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@by_loss
def test_reductions(any_library, loss, masked):
    student, teacher = logits(any_library)
    keep = np.array([[1, 0], [1, 1]], bool) if masked else np.ones((2, 2), bool)
    mask = any_library.array(keep, "bool") if masked else None
    each, each_grad = loss.value_and_grad(student, teacher, mask, "none")
    every = any_library.numpy(loss.value_and_grad(student, teacher, None, "none")[0])
    each, each_grad = any_library.numpy(each), any_library.numpy(each_grad)
    assert each.shape == (2, 2)
    np.testing.assert_array_equal(each, np.where(keep, every, 0.0))
    assert np.all(each_grad[~keep] == 0.0)
    divided_by = {"sum": 1.0, "mean": keep.sum()}
    for reduction, count in divided_by.items():
        value, grad = loss.value_and_grad(student, teacher, mask, reduction)
        assert value.shape == ()
        rtol = 8 * any_library.eps
        np.testing.assert_allclose(any_library.numpy(value), each.sum() / count, rtol=rtol)
        np.testing.assert_allclose(any_library.numpy(grad), each_grad / count, rtol=rtol)
        called = loss(student, teacher, mask, reduction)
        np.testing.assert_array_equal(any_library.numpy(called), any_library.numpy(value))


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
def test_denominators(any_library, masked):
    """A number, or a scalar array of a float or an integer dtype."""
    loss = LOSSES["KL"]
    student, teacher = logits(any_library)
    mask = any_library.array(np.arange(4).reshape(2, 2) % 3, "bool") if masked else None
    total, total_grad = loss.value_and_grad(student, teacher, mask, "sum")
    total, total_grad = any_library.numpy(total), any_library.numpy(total_grad)
    rtol = 8 * any_library.eps
    for denominator in (7, 7.0, any_library.array(7.0), any_library.array(7, "int32")):
        value, grad = loss.value_and_grad(student, teacher, mask, denominator=denominator)
        np.testing.assert_allclose(any_library.numpy(value), total / 7, rtol=rtol)
        np.testing.assert_allclose(any_library.numpy(grad), total_grad / 7, rtol=rtol)
        assert str(any_library.numpy(value).dtype) == any_library.dtype
        called = loss(student, teacher, mask, denominator=denominator)
        np.testing.assert_allclose(any_library.numpy(called), total / 7, rtol=rtol)


def test_gradient_accumulation_by_denominator(any_autodiff):
    """Two halves of a batch over the count of the whole add up to the whole."""
    student, teacher = logits(any_autodiff)
    loss = LOSSES["KL"]
    value, (grad, _) = any_autodiff.derivatives(loss, student, teacher)
    halves = []
    for rows in ([[1, 0], [1, 0]], [[0, 1], [0, 1]]):
        mask = any_autodiff.array(rows, "bool")
        part = partial(loss, mask=mask, denominator=4)
        halves.append(any_autodiff.derivatives(part, student, teacher))
    np.testing.assert_allclose(sum(v for v, _ in halves), value, rtol=8 * any_autodiff.eps)
    np.testing.assert_allclose(sum(g for _, (g, _) in halves), grad, rtol=8 * any_autodiff.eps)


def test_integer_masks_keep_where_they_are_not_zero(any_library):
    student, teacher = logits(any_library, (4, 4))
    loss = LOSSES["KL"]
    wanted = loss(student, teacher, any_library.array([True, False, True, False], "bool"))
    for dtype in ("int32", "uint8"):
        mask = any_library.array([1, 0, 1, 0], dtype)
        close(any_library, loss(student, teacher, mask), wanted)


def test_empty_batches(any_library):
    student, teacher = logits(any_library, (0, 3))
    value, grad = am.AMiD().value_and_grad(student, teacher)
    assert any_library.numpy(value) == 0.0
    assert tuple(grad.shape) == (0, 3)
    assert am.AMiD()(student, teacher, reduction="none").shape == (0,)
    assert am.KL()(student, teacher).shape == (0,)


def test_a_vocabulary_of_one(any_library):
    student, teacher = logits(any_library, (2, 1))
    for order in ORDERS:
        value, grad = am.AMiD(order=order, alpha=3.0).value_and_grad(student, teacher)
        assert any_library.numpy(value) == 0.0
        np.testing.assert_array_equal(any_library.numpy(grad), 0.0)


@pytest.mark.parametrize(
    ("student", "teacher", "computed"),
    [
        ("float16", "float16", "float32"),
        ("bfloat16", "bfloat16", "float32"),
        ("float16", "bfloat16", "float32"),
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "float32"),
        ("float32", "float64", "float64"),
        ("float64", "float16", "float64"),
    ],
)
def test_dtypes(student, teacher, computed):
    """The value in the computing dtype, each gradient in its own argument's."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 3, 4))
    leaves = [
        torch.tensor(v, dtype=getattr(torch, d)).requires_grad_()
        for v, d in zip(values, (student, teacher), strict=True)
    ]
    mask = torch.tensor([True, False, True])
    value = am.AMiD()(*leaves, mask=mask)
    assert value.dtype == getattr(torch, computed)
    value.backward()
    assert [leaf.grad.dtype for leaf in leaves] == [leaf.dtype for leaf in leaves]
    value, grad = am.AMiD().value_and_grad(*(a.detach() for a in leaves), mask)
    assert (value.dtype, grad.dtype) == (getattr(torch, computed), leaves[0].dtype)
    if "float64" not in (student, teacher):
        arrays = [jnp.asarray(v, dtype=d) for v, d in zip(values, (student, teacher), strict=True)]
        value, grads = jax.value_and_grad(am.AMiD(), argnums=(0, 1))(*arrays)
        assert str(value.dtype) == computed
        assert [str(g.dtype) for g in grads] == [student, teacher]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "loss",
    [am.AMiD(), am.AMiD(am.AlphaBeta(2.0, -0.5), order="qr", alpha=3.0)],
    ids=["KL, α=-1", "AB, α=3"],
)
def test_no_temporary_is_larger_than_a_chunk(monkeypatch, loss, dtype):
    """1,200 rows in 100 chunks: the gradient, and some four dozen arrays of a chunk."""
    monkeypatch.setattr(forms, "CPU_CHUNK", 12_000)
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 1200, 1000)).astype(dtype)
    mask = rng.random(1200) > 0.2
    loss.value_and_grad(student[:20], teacher[:20], backend="reference")
    chunk = 12_000 * max(4, student.itemsize)
    tracemalloc.start()
    try:
        _, grad = loss.value_and_grad(student, teacher, mask, backend="reference")
        with_grad = tracemalloc.get_traced_memory()[1]
        del grad
        tracemalloc.reset_peak()
        loss(student, teacher, mask, backend="reference")
        without = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert with_grad <= student.nbytes + 48 * chunk
    assert without <= 48 * chunk


def test_inputs_are_left_as_they_were(any_library):
    student, teacher = logits(any_library)
    before = [any_library.numpy(a).copy() for a in (student, teacher)]
    mask = any_library.array(np.arange(4).reshape(2, 2) % 2, "bool")
    am.AMiD(alpha=3.0).value_and_grad(student, teacher, mask)
    am.GeneralizedKL().value_and_grad(student, teacher)
    am.alpha_mixture(student, teacher, alpha=0.0, lam=0.5)
    for array, kept in zip((student, teacher), before, strict=True):
        np.testing.assert_array_equal(any_library.numpy(array), kept)


def test_views_and_transposed_inputs():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 4, 3))
    loss = LOSSES["AB"]
    wanted, wanted_grad = loss.value_and_grad(student, teacher)
    fortran = (np.asfortranarray(a) for a in (student, teacher))
    value, grad = loss.value_and_grad(*fortran)
    np.testing.assert_allclose(value, wanted, rtol=1e-14)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-12, atol=1e-16)
    turned = (torch.from_numpy(a).transpose(0, 1) for a in (student, teacher))
    value, grad = loss.value_and_grad(*turned)
    np.testing.assert_allclose(value, wanted, rtol=1e-14)
    np.testing.assert_allclose(grad.transpose(0, 1), wanted_grad, rtol=1e-12, atol=1e-16)
