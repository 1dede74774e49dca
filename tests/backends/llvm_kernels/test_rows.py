"""Rows of the CPU's kernels: what is computed.

Few losses, as each program takes a fraction of a second to compile.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from compiled_rows import BOTH, KL, ROWS, VOCABULARY, WHOLE, assert_near, compare, logits, truth

import amidmath as am
from amidmath.divergences import REGISTRY

pytest.importorskip("llvmlite")


@pytest.mark.parametrize(
    ("name", "order", "alpha"),
    list(
        zip(
            sorted(REGISTRY),
            itertools.cycle(("pr", "qr", "rp", "rq")),
            itertools.cycle((-1.0, 0.5, 1.0, 3.0, -5.0)),
            strict=False,
        )
    ),
)
def test_divergences(name, order, alpha):
    divergence = REGISTRY[name](*REGISTRY[name].examples[0])
    loss = am.AMiD(divergence, order=order, alpha=alpha, lam=0.3)
    compare(loss, *logits(), bound=64.0, reduction="none", wrt=BOTH)


@pytest.mark.parametrize(
    "loss",
    [
        am.AMiD(order="qr", alpha=float("inf")),
        am.AMiD(order="rp", alpha=float("-inf")),
        am.AMiD(order="qr", alpha=0.5, detach_assistant=True),
        0.25 * am.AMiD(lam=0.25) + 0.75 * am.AMiD(order="qr", lam=0.25),
        am.AlphaJensenShannon(alpha=0.5, lam=0.25),
        am.AMiD(am.FDivergence(lambda u, xp: (u - 1.0) ** 2 / (u + 1.0), smooth=True), alpha=0.0),
    ],
    ids=["α = ∞", "α = -∞", "detached", "sum", "α-Jensen-Shannon", "function"],
)
def test_losses(loss):
    compare(loss, *logits(), bound=64.0, reduction="none")


def test_divergences_by_themselves():
    log_x, log_y = (
        a - np.log(np.exp(a.astype(np.float64)).sum(axis=-1, keepdims=True)).astype(np.float64)
        for a in logits(dtype=np.float64)
    )
    value, grads = am.Renyi(2.0).value_and_grad(log_x.T, log_y.T, axis=0, backend="compiled")
    wanted, wanted_grads = am.Renyi(2.0).value_and_grad(log_x, log_y, backend="reference")
    assert_near((value, tuple(g.T for g in grads)), (wanted, wanted_grads), np.float64, 64.0)
    np.testing.assert_array_equal(am.Renyi(2.0)(log_x, log_y, backend="compiled"), value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_knobs(dtype):
    student, teacher = logits(dtype=dtype)
    rng = np.random.default_rng(1)
    alpha, lam = rng.uniform(-3, 3, ROWS).astype(dtype), rng.uniform(0, 1, ROWS).astype(dtype)
    alpha[:2], lam[2:4] = (-1.0, 1.0), (0.0, 1.0)
    loss = am.AMiD(order="rq", alpha=alpha, lam=lam)
    wrt = (*BOTH, "alpha", "lam")
    got = loss.value_and_grad(student, teacher, reduction="none", wrt=wrt, backend="compiled")
    wide = am.AMiD(order="rq", alpha=alpha.astype(np.float64), lam=lam.astype(np.float64))
    assert_near(got, truth(wide, student, teacher, reduction="none", wrt=wrt), dtype, 256.0)
    one = am.AMiD(order="rq", alpha=alpha[:1], lam=lam)  # broadcast: no number a row in memory
    value, _ = one.value_and_grad(student, teacher, reduction="none", backend="compiled")
    np.testing.assert_allclose(
        value, one.value_and_grad(student, teacher, reduction="none", backend="reference")[0], 1e-5
    )


@pytest.mark.parametrize("given", [{}, {"denominator": 3.0}, {"reduction": "sum"}], ids=str)
def test_masks_and_reductions(given):
    student, teacher = logits()
    mask = np.array([True, False, True, True, False])
    wanted = truth(KL, student, teacher, mask=mask, **given)
    student[~mask], teacher[1] = np.nan, np.inf
    value, grad = KL.value_and_grad(student, teacher, mask=mask, backend="compiled", **given)
    assert_near((value, grad), wanted)
    np.testing.assert_array_equal(grad[~mask], 0.0)
    assert KL(student, teacher, mask=mask, backend="compiled", **given) == value


def test_nothing_kept_and_nothing_there():
    student, teacher = logits()
    value, grad = KL.value_and_grad(student, teacher, mask=np.zeros(ROWS, bool), backend="compiled")
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)
    value, grad = KL.value_and_grad(student[:0], teacher[:0], backend="compiled")
    assert value == 0.0
    assert grad.shape == (0, VOCABULARY)


@pytest.mark.parametrize(
    ("student_dtype", "teacher_dtype"),
    [("float16", "float16"), ("float32", "float64"), ("float16", "float32"), ("float64",) * 2],
)
def test_dtypes(student_dtype, teacher_dtype):
    student, teacher = logits()[0].astype(student_dtype), logits()[1].astype(teacher_dtype)
    value, grads = KL.value_and_grad(student, teacher, wrt=BOTH, backend="compiled")
    double = "float64" in (student_dtype, teacher_dtype)
    assert value.dtype == (np.float64 if double else np.float32)
    assert [g.dtype for g in grads] == [student_dtype, teacher_dtype]
    wanted = truth(KL, student, teacher, wrt=BOTH)
    assert_near((value, grads), wanted, np.float64 if double else np.float32, 64.0)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("vocabulary", [1, 2, 15, 16, 17, 255, 256, 257, 1000, 1003])
def test_vocabularies_that_do_not_fill_vectors(vocabulary, rows):
    """And nothing is written beyond the end of a row."""
    student, teacher = logits(rows, vocabulary, seed=vocabulary)
    compare(KL, student, teacher, reduction="none", wrt=BOTH)
    compare(WHOLE, student, teacher, bound=64.0, reduction="none", wrt=BOTH)


def test_one_teacher_row_for_all():
    student, teacher = logits()
    same = np.broadcast_to(teacher[:1], teacher.shape)
    wanted = KL.value_and_grad(student, same.copy(), wrt=BOTH, backend="compiled")
    value, grads = KL.value_and_grad(student, same, wrt=BOTH, backend="compiled")
    assert value == wanted[0]
    np.testing.assert_array_equal(grads[1], wanted[1][1])


def test_more_axes():
    student, teacher = (a.reshape(2, 3, 101) for a in logits(6, 101))
    compare(KL, student, teacher, reduction="none", wrt=BOTH)


@pytest.mark.parametrize("loss", [KL, WHOLE], ids=["KL", "AB"])
def test_tokens_of_no_probability(loss):
    student, teacher = logits()
    student[:, -7:] = teacher[:, -7:] = -np.inf  # padding of the vocabulary
    teacher[0, :3] = student[1, 5:9] = -np.inf
    got = loss.value_and_grad(student, teacher, reduction="none", wrt=BOTH, backend="compiled")
    wanted = truth(loss, student, teacher, reduction="none", wrt=BOTH)
    finite = np.isfinite(wanted[0])
    np.testing.assert_array_equal(np.isposinf(got[0]), ~finite)
    rows = tuple(g[finite] for g in got[1]), tuple(g[finite] for g in wanted[1])
    assert_near((got[0][finite], rows[0]), (wanted[0][finite], rows[1]), bound=64.0)
    assert all((g[finite, -7:] == 0.0).all() for g in got[1])


def test_rows_of_no_probability_are_those_of_the_core():
    student, teacher = logits()
    student[0] = teacher[1] = -np.inf
    student[2] = teacher[2] = -np.inf
    got, _ = KL.value_and_grad(student, teacher, reduction="none", backend="compiled")
    wanted, _ = KL.value_and_grad(student, teacher, reduction="none", backend="reference")
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted))
    np.testing.assert_allclose(got[3:], wanted[3:], rtol=1e-5)


@pytest.mark.parametrize("place", [0, 500, VOCABULARY - 1])
@pytest.mark.parametrize("side", [0, 1], ids=["student", "teacher"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("loss", [KL, WHOLE], ids=["KL", "AB"])
def test_what_is_no_number_shows_in_its_row_alone(loss, bad, side, place):
    pair = logits()
    clean, _ = loss.value_and_grad(*pair, reduction="none", backend="compiled")
    pair[side][2, place] = bad
    value, grad = loss.value_and_grad(*pair, reduction="none", backend="compiled")
    assert not np.isfinite(value[2])
    assert np.isnan(grad[2]).all()
    others = np.arange(ROWS) != 2
    np.testing.assert_array_equal(value[others], clean[others])


def test_sums_are_accurate():
    """50,257 nearly equal terms, which a float32 running sum is a thousand eps off with."""
    rng = np.random.default_rng(0)
    teacher = (0.1 * rng.normal(size=(2, 50_257))).astype(np.float32)
    student = teacher + (0.1 * rng.normal(size=teacher.shape)).astype(np.float32)
    compare(KL, student, teacher, bound=4.0, reduction="none")
