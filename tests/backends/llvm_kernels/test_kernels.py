"""Kernels of the CPU: how rows are computed, when something is compiled, and what is kept of it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from compiled_rows import BOTH, KL, logits

import amidmath as am

pytest.importorskip("llvmlite")
from amidmath.backends.llvm_kernels import jit
from amidmath.backends.llvm_kernels import kernels as llvm_kernels

HELPER = Path(__file__).parents[2] / "helpers" / "kept_memory.py"


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


def test_one_compilation_serves_every_alpha(monkeypatch):
    compiled = []
    monkeypatch.setattr(llvm_kernels, "_KERNELS", type(llvm_kernels._KERNELS)(most=4))
    original = llvm_kernels._compiled
    monkeypatch.setattr(
        llvm_kernels, "_compiled", lambda *args: compiled.append(1) or original(*args)
    )
    rows = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    for alpha in (0.3, 0.4, -0.7):
        loss = am.AMiD(order="pr", alpha=alpha, lam=0.25)
        value, grad = loss.value_and_grad(*rows, backend="compiled")
        wanted, wanted_grad = loss.value_and_grad(*rows, backend="reference")
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        np.testing.assert_allclose(grad, wanted_grad, rtol=0, atol=1e-7)
    assert len(compiled) == 1


@pytest.mark.parametrize("lacking", ["fma", "a function"])
def test_the_core_computes_where_the_processor_cannot(monkeypatch, lacking):
    """And it is found out once."""
    tried = itertools.count()
    original = llvm_kernels.llvm_text

    def llvm_text(*args):
        next(tried)
        text, *rest = original(*args)
        if lacking == "a function":
            call = "call void @amidmath_has_no_such_function()"
            text = text.replace("entry:\n", f"entry:\n{call}\n")
            text += "\ndeclare void @amidmath_has_no_such_function()"
        return text, *rest

    monkeypatch.setattr(llvm_kernels, "llvm_text", llvm_text)
    monkeypatch.setattr(llvm_kernels, "_KERNELS", type(llvm_kernels._KERNELS)(most=4))
    if lacking == "fma":
        monkeypatch.setattr(jit, "fuses", lambda: False)
    student, teacher = np.random.default_rng(0).normal(size=(2, 65, 1024)).astype(np.float32)
    loss = am.AMiD()
    for _ in range(3):
        assert loss(student, teacher) == loss(student, teacher, backend="reference")
    with pytest.raises(ValueError, match=r"'compiled' cannot compute this on (this|a) "):
        loss(student, teacher, backend="compiled")
    assert next(tried) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="measures as Unix does")
@pytest.mark.parametrize("what", ["numbers", "structures"])
def test_memory_stays_as_it_is(what):
    """In MB, after 900 numbers or 120 programs more."""
    command = [sys.executable, str(HELPER), what]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 8.0


def test_a_kernel_that_is_let_go_while_it_is_used_is_right(monkeypatch):
    monkeypatch.setattr(llvm_kernels, "_KERNELS", type(llvm_kernels._KERNELS)(most=1))
    student, teacher = np.random.default_rng(0).normal(size=(2, 3, 40)).astype(np.float32)
    losses = [am.AMiD(order=order) for order in ("pr", "qr")]
    original = llvm_kernels.Kernel.__call__

    def call(kernel, *args):
        monkeypatch.setattr(llvm_kernels.Kernel, "__call__", original)
        losses[1](student, teacher, backend="compiled")  # compiled in between, frees what is let go
        losses[0](student, teacher, backend="compiled")
        return original(kernel, *args)

    monkeypatch.setattr(llvm_kernels.Kernel, "__call__", call)
    value = losses[0](student, teacher, backend="compiled")
    assert value == losses[0](student, teacher, backend="compiled")
