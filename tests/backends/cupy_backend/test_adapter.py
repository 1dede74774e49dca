"""The CUDA kernels behind CuPy: their source under NVRTC, what they compute on the CPU, on a GPU.

NVRTC compiles without a GPU. The CPU runs the same source, launched by the same code, with threads
in place of a block's; see cuda_on_cpu.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from pathlib import Path

import array_api_compat.numpy
import cuda_on_cpu
import numpy as np
import nvrtc
import pytest

import amidmath as am
from amidmath.backends.cuda_kernels.source import source
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm

ROWS, VOCABULARY = 3, 333
LOSSES = {
    "KL": am.AMiD(),
    "AB": am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=3.0, temperature=2.0),
    "Fisher-Rao": am.AMiD(am.FisherRao(), order="qr", alpha=0.3, lam=0.1),
    "Rényi": am.AMiD(am.Renyi(2.0), order="rp", alpha=1.0),
    "sum": 0.5 * am.AMiD() + 0.5 * am.AlphaJensenShannon(),
}
FLOATS = ("float32", "float64", "float16")


def logits(dtype="float32", rows=ROWS, vocabulary=VOCABULARY):
    rng = np.random.default_rng(0)
    teacher = 3.0 * rng.normal(size=(rows, vocabulary))
    student = teacher + rng.normal(size=teacher.shape)
    return student.astype(dtype), teacher.astype(dtype)


def truth(loss, student, teacher, *args, **kwargs):
    wide = (a.astype(np.float64) for a in (student, teacher))
    return loss.value_and_grad(*wide, *args, backend="reference", **kwargs)


def assert_near(found, expected, dtype="float32", bound=16.0):
    """Values and gradients, to a few units of what they are computed or stored in."""
    computed = float(np.finfo("float64" if dtype == "float64" else "float32").eps)
    (value, grad), (wanted, wanted_grad) = found, expected
    np.testing.assert_allclose(value, wanted, rtol=bound * computed)
    stored = np.finfo(grad.dtype)
    eps = bound * computed + (0.0 if dtype == "float64" else float(stored.eps))
    scale = np.abs(wanted_grad).max(axis=-1, keepdims=True)
    error = np.abs(np.asarray(grad, dtype=np.float64) - wanted_grad)
    assert (error <= eps * scale + float(stored.smallest_subnormal)).all()


@pytest.fixture(scope="module")
def cupy_backend():
    """The module that runs CuPy's arrays, with a CuPy over NumPy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", cuda_on_cpu.cupy())
        patch.setitem(sys.modules, "array_api_compat.cupy", array_api_compat.numpy)
        patch.delitem(sys.modules, "amidmath.backends.cupy_backend.adapter", raising=False)
        backend = importlib.import_module("amidmath.backends.cupy_backend.adapter")
        del sys.modules["amidmath.backends.cupy_backend.adapter"]
    return backend


# ---------------------------------------------------------------------------------------------
# NVRTC


def headers():
    """Where CUDA's headers are: Triton brings them."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        pytest.skip("no cuda_fp16.h: pip install triton")
    return str(Path(spec.origin).parent / "backends" / "nvidia" / "include")


@pytest.mark.skipif(nvrtc.library() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc-cu12")
@pytest.mark.parametrize("architecture", ["compute_80", "compute_90"])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [("float32", "float32"), ("float64", "float16"), ("float16", "float16")],
)
def test_source_compiles(cupy_backend, architecture, student, teacher):
    loss = am.AMiD(am.FisherRao(), order="qr", alpha=np.array(0.3), lam=np.array(0.1))
    double = student == "float64"
    form = RowForm(loss.block, knobs=2, masked=True, scaled=True)
    program = row_program(form, (True, True, True, True, False, False), double)
    dtypes = (student, teacher, "float32", "float64")
    written = source(program, dtypes=dtypes, masked=True, double=double)
    options = [*cupy_backend.OPTIONS, f"--gpu-architecture={architecture}"]
    if "float16" in dtypes:
        options += [f"--include-path={headers()}"]
    assert ".entry rows(" in nvrtc.ptx(nvrtc.library(), written.text, *options)


# ---------------------------------------------------------------------------------------------
# On the CPU

on_cpu = pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="no C++ compiler")


def compiled(cupy_backend, form, operands, needs, overwrite=False):
    """By the kernel, or an error that says why not."""
    adapter = cupy_backend.CupyAdapter()
    return adapter.value_and_partials(form, needs, operands, "compiled", overwrite)


@pytest.fixture
def run(cupy_backend, monkeypatch):
    """Rows through the kernel: values and partial derivatives."""
    monkeypatch.setattr(cupy_backend.choice.Compiler, "installed", lambda self: True)

    def run(form, operands, needs, **kwargs):
        arrays = tuple(cuda_on_cpu.array(a) for a in operands)
        return compiled(cupy_backend, form, arrays, needs, **kwargs)

    return run


@on_cpu
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in LOSSES), ("Fisher-Rao", "float64"), ("KL", "float16")],
)
def test_values_and_gradients(run, name, dtype):
    loss, arrays = LOSSES[name], logits(dtype)
    value, partials = run(RowForm(loss.block), arrays, (True, False))
    assert partials[1] is None
    assert partials[0].dtype == dtype
    assert_near((value, partials[0]), truth(loss, *arrays, reduction="none"), dtype)


@on_cpu
def test_operands_of_several_dtypes(run):
    """Each gradient is that of the computing dtype, rounded once to the operand's own."""
    dtypes = ("float64", "float16", "float16")
    operands = [*logits(vocabulary=20_000), np.array([[0.5], [0.25], [0.75]])]
    operands = [a.astype("float16").astype(d) for a, d in zip(operands, dtypes, strict=True)]
    form = RowForm(am.AMiD(lam=operands[2][:, 0]).block, knobs=1, scaled=True)
    needs = (True, True, True, False)
    scale = np.full(ROWS, 4096.0)  # so that few gradients are subnormal
    value, partials = run(form, (*operands, scale), needs)
    wanted, exact = run(form, (*(a.astype("float64") for a in operands), scale), needs)
    np.testing.assert_array_equal(value, wanted)
    for found, partial, dtype in zip(partials[:3], exact[:3], dtypes, strict=True):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, partial.astype(dtype))


@on_cpu
def test_parameters_do_not_stick(run):
    """A kernel serves all losses that differ in their numbers only."""
    arrays = logits()
    for alpha in (0.3, 0.4):
        loss = am.AMiD(alpha=alpha)
        value, partials = run(RowForm(loss.block), arrays, (True, False))
        assert_near((value, partials[0]), truth(loss, *arrays, reduction="none"))


@on_cpu
def test_mask_scale_and_knobs(run):
    student, teacher = logits(rows=4)
    alpha, lam = np.array([-3.0, 0.0, 0.3, 1.0], "float32"), np.full(4, 0.25)
    keep, scale = np.array([True, False, True, True]), np.full(4, 0.5, "float32")
    student[1] = math.nan
    loss = am.AMiD(alpha=alpha, lam=lam)
    form = RowForm(loss.block, knobs=2, masked=True, scaled=True)
    operands = (student, teacher, alpha[:, None], lam[:, None], keep, scale)
    needs = (True, False, True, True, False, False)
    value, (grad, _, by_alpha, by_lam, *_) = run(form, operands, needs)
    wide = am.AMiD(alpha=alpha.astype(float), lam=lam)
    wanted, (wanted_grad, *by_knobs) = truth(
        wide, student, teacher, keep, reduction="none", wrt=("student", "alpha", "lam")
    )
    assert_near((value, grad), (wanted, 0.5 * wanted_grad))
    assert (grad[1] == 0.0).all()
    for found, by_knob in zip((by_alpha, by_lam), by_knobs, strict=True):
        np.testing.assert_allclose(found[:, 0], 0.5 * by_knob, rtol=1e-5)


@on_cpu
@pytest.mark.parametrize("vocabulary", [1, 2, 31])
def test_fewer_tokens_than_threads(run, vocabulary):
    loss, arrays = LOSSES["KL"], logits(vocabulary=vocabulary)
    value, partials = run(RowForm(loss.block), arrays, (True, False))
    assert_near((value, partials[0]), truth(loss, *arrays, reduction="none"))


@on_cpu
def test_zeros_and_infinities(run):
    student, teacher = logits()
    student[0, 5], teacher[1, 7] = -math.inf, -math.inf
    loss = LOSSES["KL"]
    value, partials = run(RowForm(loss.block), (student, teacher), (True, False))
    wanted, wanted_grad = truth(loss, student, teacher, reduction="none")
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(partials[0], wanted_grad, rtol=1e-4, atol=1e-6)


@on_cpu
def test_in_place(run, cupy_backend):
    student, teacher = (cuda_on_cpu.array(a) for a in logits())
    form = RowForm(LOSSES["KL"].block)
    _, wanted = run(form, (student, teacher), (True, False))
    operands = (student, teacher)
    _, partials = compiled(cupy_backend, form, operands, (True, False), overwrite=True)
    assert partials[0] is student
    np.testing.assert_array_equal(student, wanted[0])


@on_cpu
def test_other_layouts(run, cupy_backend):
    student, teacher = logits()
    form = RowForm(LOSSES["KL"].block)
    _, wanted = run(form, (student, teacher), (True, False))
    columns = np.asfortranarray(student).view(cuda_on_cpu.Array)
    operands = (columns, cuda_on_cpu.array(teacher))
    _, partials = compiled(cupy_backend, form, operands, (True, False), overwrite=True)
    np.testing.assert_array_equal(partials[0], wanted[0])
    np.testing.assert_array_equal(columns, student)


def test_what_cuda_does_not_have(run, cupy_backend):
    student, teacher = (a.view(cuda_on_cpu.Array) for a in logits("longdouble"))
    form = RowForm(LOSSES["KL"].block)
    with pytest.raises(ValueError, match="dtype"):
        compiled(cupy_backend, form, (student, teacher), (True, False))


# ---------------------------------------------------------------------------------------------
# On a GPU


@pytest.fixture
def cupy():
    cupy = pytest.importorskip("cupy")
    if not cupy.cuda.is_available():
        pytest.skip("no GPU")
    return cupy


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_on_a_gpu(cupy, name, dtype):
    loss, (student, teacher) = LOSSES[name], logits(dtype, vocabulary=5003)
    arrays = [cupy.asarray(a) for a in (student, teacher)]
    with cupy.cuda.Device():
        value, grad = loss.value_and_grad(*arrays, reduction="none", backend="compiled")
        called = loss(*arrays, reduction="none")
    expected = truth(loss, student, teacher, reduction="none")
    assert_near((cupy.asnumpy(value), cupy.asnumpy(grad)), expected, dtype)
    np.testing.assert_array_equal(cupy.asnumpy(called), cupy.asnumpy(value))
