"""The compiled rows of the CPU against the array core in double precision: what is computed.

Few losses, as each program takes a fraction of a second to compile.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import array_api_strict
import numpy as np
import pytest

import amidmath as am
from amidmath.divergences import REGISTRY

pytest.importorskip("llvmlite")
from amidmath.backends import choice
from amidmath.backends.llvm_kernels import kernels as llvm_kernels

ROWS, VOCABULARY = 5, 1003
KL = am.AMiD()
WHOLE = am.AMiD(am.AlphaBeta(0.2, 0.7), order="qr", alpha=3.0, lam=0.3, temperature=2.0)
BOTH = ("student", "teacher")


def logits(rows=ROWS, vocabulary=VOCABULARY, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    teacher = rng.normal(0, 3, (rows, vocabulary))
    student = teacher + rng.normal(size=teacher.shape)
    return student.astype(dtype), teacher.astype(dtype)


def truth(loss, student, teacher, **given):
    """The core's, in double precision."""
    wide = (np.asarray(a, dtype=np.float64) for a in (student, teacher))
    return loss.value_and_grad(*wide, backend="reference", **given)


def assert_near(got, wanted, dtype=np.float32, bound=16.0):
    """Values within eps of themselves, gradients within eps of the largest of their row."""
    (value, grads), (wanted_value, wanted_grads) = got, wanted
    computing = np.finfo(np.float64 if dtype == np.float64 else np.float32)
    eps = float(computing.eps)
    np.testing.assert_allclose(value, wanted_value, rtol=bound * eps, atol=bound * eps * 1e-3)
    if not isinstance(grads, tuple):
        grads, wanted_grads = (grads,), (wanted_grads,)
    for grad, truth in zip(grads, wanted_grads, strict=True):
        returned = float(np.finfo(grad.dtype).eps)
        scale = np.abs(truth).max(axis=-1, keepdims=truth.ndim > 1)
        error = np.abs(np.asarray(grad, dtype=np.float64) - truth)
        smallest = float(np.finfo(grad.dtype).smallest_subnormal)
        assert (error <= bound * eps * scale + returned * np.abs(truth) + smallest).all()


def compare(loss, student, teacher, bound=16.0, **given):
    got = loss.value_and_grad(student, teacher, backend="compiled", **given)
    assert_near(got, truth(loss, student, teacher, **given), student.dtype, bound)
    return got


# ---------------------------------------------------------------------------------------------
# What is computed


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


def spread_out(a):
    wide = np.full((2 * a.shape[0], a.shape[1] + 5), np.nan, a.dtype)
    wide[::2, 3:-2] = a
    return wide[::2, 3:-2]


ARRANGED = {
    "rows apart": spread_out,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "every other number": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "rows backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "numbers backwards": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "the other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("arranged", ARRANGED.values(), ids=ARRANGED)
def test_any_arrangement_in_memory(arranged):
    student, teacher = logits()
    wanted = KL.value_and_grad(student, teacher, wrt=BOTH, backend="compiled")
    there = arranged(student), arranged(teacher)
    before = there[0].copy()
    for array in there:
        array.flags.writeable = False
    value, grads = KL.value_and_grad(*there, wrt=BOTH, backend="compiled")
    assert value == wanted[0]
    for grad, truth in zip(grads, wanted[1], strict=True):
        np.testing.assert_array_equal(grad, truth)
    np.testing.assert_array_equal(there[0], before)


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


# ---------------------------------------------------------------------------------------------
# Zeros, infinities, NaN


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


# ---------------------------------------------------------------------------------------------
# How it is computed


def test_sums_are_accurate():
    """50,257 nearly equal terms, which a float32 running sum is a thousand eps off with."""
    rng = np.random.default_rng(0)
    teacher = (0.1 * rng.normal(size=(2, 50_257))).astype(np.float32)
    student = teacher + (0.1 * rng.normal(size=teacher.shape)).astype(np.float32)
    compare(KL, student, teacher, bound=4.0, reduction="none")


def test_the_number_of_threads_changes_nothing(monkeypatch):
    student, teacher = logits(37)
    results = []
    for threads in (1, 2, 3, 64):
        monkeypatch.setattr(llvm_kernels, "threads_at_hand", lambda threads=threads: threads)
        results.append(KL.value_and_grad(student, teacher, reduction="none", backend="compiled"))
    for value, grad in results[1:]:
        np.testing.assert_array_equal(value, results[0][0])
        np.testing.assert_array_equal(grad, results[0][1])


def test_calls_from_several_threads(monkeypatch):
    monkeypatch.setattr(llvm_kernels, "threads_at_hand", lambda: 2)
    pairs = [logits(9, 300 + 50 * seed, seed=seed) for seed in range(8)]
    wanted = [KL.value_and_grad(*pair, backend="compiled") for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda pair: KL.value_and_grad(*pair, backend="compiled"), pairs))
    for (value, grad), (wanted_value, wanted_grad) in zip(got, wanted, strict=True):
        assert value == wanted_value
        np.testing.assert_array_equal(grad, wanted_grad)


def _child(pair, connection):
    connection.send(float(KL.value_and_grad(*pair, backend="compiled")[0]))


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning")
def test_a_forked_child_computes_too(monkeypatch):
    monkeypatch.setattr(llvm_kernels, "threads_at_hand", lambda: 2)
    pair = logits(9)
    wanted = float(KL.value_and_grad(*pair, backend="compiled")[0])
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(pair, there))
    child.start()
    try:
        assert here.poll(30), "the child hangs"
        assert here.recv() == wanted
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_is_that_of_the_gradient(monkeypatch, gradient):
    monkeypatch.setattr(llvm_kernels, "threads_at_hand", lambda: 1)
    student, teacher = logits(200, 4096)

    def call():
        if gradient:
            return KL.value_and_grad(student, teacher, backend="compiled")
        return KL(student, teacher, backend="compiled")

    call()  # compiles
    tracemalloc.start()
    try:
        result = call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    del result
    assert peak < gradient * student.nbytes + 64 * 4096


def test_the_gradient_may_take_the_place_of_the_logits():
    student, teacher = logits()
    value, grad = KL.value_and_grad(student.copy(), teacher, backend="compiled")
    again, there = KL.value_and_grad(student, teacher, backend="compiled", overwrite_student=True)
    assert again == value
    np.testing.assert_array_equal(there, grad)


# ---------------------------------------------------------------------------------------------
# When it is computed by what


@pytest.mark.parametrize(
    ("rows", "backend", "compiled"),
    [(65, None, True), (1, None, False), (1, "compiled", True), (65, "reference", False)],
)
def test_choice(calls, rows, backend, compiled):
    student, teacher = logits(rows, 1024)
    assert choice.CPU.worth == 64 * 1024
    KL.value_and_grad(student, teacher, backend=backend)
    KL(student, teacher, backend=backend)
    assert len(calls) == 2 * compiled


def tangent(u, xp):
    return (u - 1.0) * xp.tan(0.1 * (u - 1.0))


def test_what_has_no_program_runs_in_the_core():
    loss = am.AMiD(am.FDivergence(tangent, smooth=True), order="rp", alpha=1.0)
    student, teacher = logits(70, 1024)
    value, grad = loss.value_and_grad(student, teacher)
    wanted = loss.value_and_grad(student, teacher, backend="reference")
    assert value == wanted[0]
    np.testing.assert_array_equal(grad, wanted[1])
    with pytest.raises(ValueError, match="'compiled' cannot compute the function tan"):
        loss(student, teacher, backend="compiled")


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(choice, "_found", lambda package: False)
    student, teacher = logits(70, 1024)
    with pytest.raises(ModuleNotFoundError, match=r"needs llvmlite: install amidmath\[cpu\]"):
        KL(student, teacher, backend="compiled")
    value = KL(student, teacher)
    assert value == KL(student, teacher, backend="reference")


@pytest.mark.parametrize("call", [KL, KL.value_and_grad], ids=["value", "gradient"])
def test_backends_that_cannot(call):
    student, teacher = logits()
    with pytest.raises(ValueError, match="backend must be one of 'reference', 'compiled', got"):
        call(student, teacher, backend="numba")
    strict = (array_api_strict.asarray(a) for a in (student, teacher))
    with pytest.raises(ValueError, match=r"'compiled' is for arrays of .*array_api_strict"):
        call(*strict, backend="compiled")


def test_unknown_backend_of_a_divergence():
    log_x = np.log([0.5, 0.5])
    for call in (am.KL(), am.KL().value_and_grad):
        with pytest.raises(ValueError, match="backend must be one of 'reference', 'compiled'"):
            call(log_x, log_x, backend="fast")
