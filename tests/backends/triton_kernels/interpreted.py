"""The Triton kernels in Triton's interpreter, against the array core in double precision.

test_kernels.py runs this in a process of its own: Triton reads TRITON_INTERPRET as it is imported,
which in a process of other tests somebody may have done.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from certify import library, measure, report
from certify.subjects import REGISTRY, plan
from row_programs import EveryOperation, every_operation, near_one_half
from triton.runtime import interpreter

import amidmath as am
from amidmath.backends import choice
from amidmath.backends.torch_backend import rows as torch_rows
from amidmath.backends.triton_kernels import kernels as triton_kernels
from amidmath.rows.forms import RowForm

ROWS, VOCABULARY = 2, 701
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DIVERGENCES = {name: cls(*cls.examples[0]) for name, cls in sorted(REGISTRY.items())}
ORDERS = ("pr", "rp", "qr", "rq")
ALPHAS = (-math.inf, -5.0, -1.0, 0.3, 1.0, 3.0, math.inf)
# Each α with some order, each order with some α.
PAIRS = sorted(
    {(ORDERS[j % 4], alpha) for j, alpha in enumerate(ALPHAS)} | {(o, 0.3) for o in ORDERS}
)
# The interpreter computes with NumPy, which tells of the infinities that the blocks deal with.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

assert os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def instead_of_cpu(monkeypatch):
    """Tensors on the CPU go where those on a GPU do."""
    monkeypatch.setitem(torch_rows._KERNELS, "cpu", torch_rows._KERNELS["cuda"])


def logits(dtype=torch.float32, rows=ROWS, vocabulary=VOCABULARY):
    random = torch.Generator().manual_seed(0)
    teacher = 3.0 * torch.randn(rows, vocabulary, generator=random, dtype=torch.float64)
    student = teacher + torch.randn(rows, vocabulary, generator=random, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype)


def truth(loss, *arrays, **kwargs):
    wide = (a.double() if a.dtype.is_floating_point else a for a in arrays)
    return loss.value_and_grad(*wide, backend="reference", **kwargs)


def assert_near(found, expected, dtype, bound=16.0):
    """Values and gradients, to a few units of what they are computed or stored in."""
    computed = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    value, grads = found
    wanted, wanted_grads = expected
    torch.testing.assert_close(value.double(), wanted.double(), rtol=bound * computed, atol=0.0)
    pairs = (
        zip(grads, wanted_grads, strict=True)
        if isinstance(grads, tuple)
        else [(grads, wanted_grads)]
    )
    for grad, wanted_grad in pairs:
        scale = wanted_grad.abs().amax(-1, keepdim=True)
        eps = bound * computed + (
            torch.finfo(grad.dtype).eps if grad.dtype != wanted_grad.dtype else 0
        )
        # The smallest gradients in half precision are subnormal there.
        tiny = 2.0**-24 if grad.dtype == torch.float16 else 0.0
        assert ((grad.double() - wanted_grad).abs() <= eps * scale + tiny).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_operation_computes_what_it_says(dtype):
    x, y = (a.astype(dtype) for a in near_one_half(1, 37))
    operands = torch.from_numpy(x), torch.from_numpy(y)
    _, (total, _) = triton_kernels.run(RowForm(EveryOperation()), operands, (True, False))
    wanted = [every_operation(x[0].astype(float), y[0].astype(float))]
    np.testing.assert_allclose(total.numpy(), wanted, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["fisher_rao", "gamma", "skew_jensen_shannon", "triangular"])
def test_divergences(name):
    """A few of them: every one is lowered by the same walk, of the operations above."""
    loss = am.AMiD(DIVERGENCES[name], alpha=0.3)
    both = {"reduction": "none", "wrt": ("student", "teacher")}
    arrays = logits(rows=1)
    found = loss.value_and_grad(*arrays, backend="compiled", **both)
    assert_near(found, truth(loss, *arrays, **both), torch.float32)


@pytest.mark.parametrize(("order", "alpha"), PAIRS)
def test_orders_and_alphas(order, alpha):
    loss = am.AMiD(order=order, alpha=alpha, temperature=2.0)
    arrays = logits()
    found = loss.value_and_grad(*arrays, reduction="none", backend="compiled")
    assert_near(found, truth(loss, *arrays, reduction="none"), torch.float32)


@pytest.mark.parametrize("loss", [am.AlphaJensenShannon(), am.AMiD() + 0.5 * am.AMiD(order="qr")])
def test_other_losses(loss):
    arrays = logits()
    found = loss.value_and_grad(*arrays, reduction="none", backend="compiled")
    assert_near(found, truth(loss, *arrays, reduction="none"), torch.float32)


@pytest.mark.parametrize(
    ("student", "teacher", "knob", "parts"),
    [
        (torch.float32, torch.float32, torch.float64, 2),
        (torch.float64, torch.float16, torch.float16, 1),
        (torch.float16, torch.float64, torch.float32, 1),
        # From float64 to bfloat16 the interpreter has no conversion, which GPUs have.
        (torch.float16, torch.bfloat16, torch.bfloat16, 1),
    ],
)
def test_operands_of_several_dtypes(student, teacher, knob, parts):
    """Each gradient is that of the computing dtype, in the operand's own."""
    dtypes = (student, teacher, knob)
    operands = [*logits(vocabulary=300), torch.tensor([[0.5], [0.25]])]
    operands = [a.bfloat16().half().to(d) for a, d in zip(operands, dtypes, strict=True)]
    keep = torch.tensor([True, False])
    form = RowForm(am.AMiD(lam=operands[2][:, 0]).block, knobs=1, masked=True)
    needs = (True, True, True, False)
    value, partials = triton_kernels.run(form, (*operands, keep), needs, parts=parts)
    computing = torch.float64 if torch.float64 in dtypes[:2] else torch.float32
    wide = (*(a.to(computing) for a in operands), keep)
    wanted, exact = triton_kernels.run(form, wide, needs, parts=parts)
    assert torch.equal(value, wanted)
    for found, partial, dtype in zip(partials[:3], exact[:3], dtypes, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, partial.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    """α = 0.3 and λ = 0.1 are no numbers of single precision, which they must not become."""
    loss = am.AMiD(am.Renyi(2.3), alpha=0.3, lam=0.1)
    arrays = logits(dtype)
    found = loss.value_and_grad(*arrays, reduction="none", backend="compiled")
    assert found[1].dtype == dtype
    assert_near(found, truth(loss, *arrays, reduction="none"), dtype)


@pytest.mark.parametrize(
    ("vocabulary", "parts"), [(1, 1), (2, 1), (255, 1), (256, 1), (257, 1), (2, 2), (257, 2)]
)
def test_vocabularies(vocabulary, parts):
    student, teacher = logits(vocabulary=vocabulary)
    teacher[0, 0] = -math.inf if vocabulary > 1 else 0.0
    loss = am.AMiD(order="qr", alpha=-1.0)
    found = triton_kernels.run(RowForm(loss.block), (student, teacher), (True, False), parts=parts)
    expected = truth(loss, student, teacher, reduction="none")
    assert_near((found[0], found[1][0]), expected, torch.float32)


def test_mask_scale_and_knobs():
    student, teacher = logits(rows=4)
    mask = torch.tensor([True, False, True, True])
    student[1] = math.nan
    alpha, lam = torch.tensor([-3.0, 0.0, 0.3, 1.0]), torch.tensor(0.25)
    loss = am.AMiD(am.AlphaBeta(0.2, 0.7), alpha=alpha, lam=lam)
    wide = am.AMiD(am.AlphaBeta(0.2, 0.7), alpha=alpha.double(), lam=lam.double())
    wrt = {"wrt": ("student", "alpha", "lam")}
    value, (grad, by_alpha, by_lam) = loss.value_and_grad(
        student, teacher, mask, backend="compiled", **wrt
    )
    expected, (wanted, *by_knobs) = truth(wide, student, teacher, mask, **wrt)
    assert_near((value, grad), (expected, wanted), torch.float32)
    assert (grad[1] == 0.0).all()
    torch.testing.assert_close([by_alpha.double(), by_lam.double()], by_knobs, rtol=1e-5, atol=0.0)


def test_autograd():
    student, teacher = logits()
    loss = am.AMiD(order="rq", alpha=3.0)
    student.requires_grad_()
    loss(student, teacher, backend="compiled").backward()
    _, wanted = truth(loss, student.detach(), teacher)
    assert_near((torch.ones(()), student.grad), (torch.ones(()), wanted), torch.float32)


def test_a_shared_row(monkeypatch):
    """Several programs a row, one of them without tokens: masks, all kinds of results."""
    monkeypatch.setitem(triton_kernels.BLOCKS, torch.float32, (128, 128))
    student, teacher = logits(vocabulary=300)
    keep = torch.tensor([True, False])
    lam = torch.full((2, 1), 0.1)
    scale = torch.full((2,), 0.5)
    loss = am.AMiD(order="qr", alpha=0.3, lam=lam[:, 0])
    form = RowForm(loss.block, knobs=1, masked=True, scaled=True)
    needs = (True, True, True, False, False)
    operands = (student, teacher, lam, keep, scale)
    whole = triton_kernels.run(form, operands, needs, parts=1)
    shared = triton_kernels.run(form, operands, needs, parts=4)
    torch.testing.assert_close(shared[0], whole[0], rtol=1e-6, atol=0.0)
    for one, other in zip(shared[1][:3], whole[1][:3], strict=True):
        size = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0.0, atol=2e-6 * size)
        assert (one[1] == 0.0).all()


def test_in_place():
    student, teacher = logits()
    loss = am.AMiD()
    _, wanted = loss.value_and_grad(student, teacher, backend="compiled")
    before = student._version
    place = student.data_ptr()
    _, grad = loss.value_and_grad(student, teacher, backend="compiled", overwrite_student=True)
    assert grad.data_ptr() == place
    assert student._version > before
    assert torch.equal(grad, wanted)


def test_not_in_place_where_rows_share_memory():
    _, teacher = logits()
    student = teacher[:1].flip(-1).expand(ROWS, VOCABULARY)
    kept = student.clone()
    triton_kernels.run(RowForm(am.AMiD().block), (student, teacher), (True, False), overwrite=True)
    assert torch.equal(student, kept)


def test_other_layouts():
    student, teacher = logits()
    loss = am.AMiD()
    expected = loss.value_and_grad(student, teacher, backend="compiled")
    transposed = student.T.contiguous().T
    found = loss.value_and_grad(transposed, teacher, backend="compiled")
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("name", ["kl", "squared_hellinger", "jensen_shannon"])
def test_exp_of_a_gpu(monkeypatch, name):
    """A GPU's exp in single precision is 2^x of a rounded x log₂e; the bounds hold with it too."""

    def approximate(x):
        return np.exp2(x * np.float32(math.log2(math.e))) if x.dtype == np.float32 else np.exp(x)

    def create(self, argument):
        return self.unary_op(argument, approximate)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_exp", create)
    student, teacher = logits()
    loss = am.AMiD(DIVERGENCES[name], alpha=0.3)
    arrays = (4.0 * student, 4.0 * teacher)
    found = loss.value_and_grad(*arrays, reduction="none", backend="compiled")
    assert_near(found, truth(loss, *arrays, reduction="none"), torch.float32)


def test_what_triton_does_not_have():
    student, teacher = (a.to(torch.float8_e4m3fn) for a in logits())
    with pytest.raises(triton_kernels.UnsupportedError, match="float8"):
        triton_kernels.run(RowForm(am.AMiD().block), (student, teacher), (True, False))


def test_without_triton(monkeypatch):
    monkeypatch.setattr(choice.Compiler, "installed", lambda self: False)
    loss = am.AMiD()
    arrays = logits()
    with pytest.raises(ModuleNotFoundError, match="needs triton"):
        loss(*arrays, backend="compiled")
    assert torch.isfinite(loss(*arrays))


def test_bounds_of_the_certification(monkeypatch):
    """The bounds that every backend is held to, at a few of its points."""

    def tensor(values, dtype):
        return torch.from_numpy(np.array(values, dtype=np.float64)).to(getattr(torch, dtype))

    monkeypatch.setattr(library, "_array", tensor)
    points = [
        p
        for p in plan(seed=3, budget=40.0, largest=3, executor="compiled")
        if not p.as_arrays and abs(p.alpha) <= 50.0 and p.params == REGISTRY[p.name].examples[0]
    ][::36]
    records = [record for point in points for record in measure.measure(point)]
    wrong = [report.describe(r) for r in records if r.size >= 1e-6 and not r.reached]
    assert len(records) > 2
    assert not wrong, "\n".join(wrong)
