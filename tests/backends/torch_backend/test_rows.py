"""The compiled rows of the CPU behind torch: its tensors, and the modes that the core has."""

from __future__ import annotations

import pytest
import torch
from torch_logits import LARGE, ROWS, assert_near, logits

import amidmath as am

pytest.importorskip("llvmlite")

KL = am.AMiD()
AB = am.AMiD(am.AlphaBeta(0.2, 0.7), order="qr", alpha=3.0, lam=0.3)


# ---------------------------------------------------------------------------------------------
# Tensors


@pytest.mark.parametrize(
    ("student_dtype", "teacher_dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float64),
    ],
    ids=str,
)
def test_dtypes(student_dtype, teacher_dtype):
    student, teacher = logits()[0].to(student_dtype), logits()[1].to(teacher_dtype)
    value, grads = KL.value_and_grad(
        student, teacher, wrt=("student", "teacher"), backend="compiled"
    )
    wanted, wanted_grads = KL.value_and_grad(
        student.double(),
        teacher.double(),
        wrt=("student", "teacher"),
        backend="reference",
    )
    double = torch.float64 in (student_dtype, teacher_dtype)
    computing = torch.float64 if double else torch.float32
    assert value.dtype == computing
    eps = torch.finfo(computing).eps
    assert_near(value, wanted, eps)
    for grad, truth, dtype in zip(grads, wanted_grads, (student_dtype, teacher_dtype), strict=True):
        assert grad.dtype == dtype
        info = torch.finfo(dtype)
        scale = truth.abs().amax(dim=-1, keepdim=True)
        allowed = 32.0 * eps * scale + info.eps / 2 * truth.abs() + info.smallest_normal * info.eps
        assert ((grad.double() - truth).abs() <= allowed).all()


def test_bfloat16_gradients_are_rounded_to_even_and_keep_nan():
    student, teacher = logits(dtype=torch.bfloat16)
    single = KL.value_and_grad(student.float(), teacher.float(), backend="compiled")[1]
    half = KL.value_and_grad(student, teacher, backend="compiled")[1]
    assert torch.equal(half, single.bfloat16())
    student[1, 3] = torch.nan
    broken = KL.value_and_grad(student, teacher, backend="compiled")[1]
    assert broken[1].isnan().all()
    assert torch.equal(broken[2:], half[2:])


ARRANGED = {
    "transposed": lambda a: a.T.contiguous().T,
    "columns of a wider one": lambda a: torch.nn.functional.pad(a, (3, 6), value=torch.nan)[
        :, 3:-6
    ],
    "every other row": lambda a: a.repeat_interleave(2, dim=0)[::2],
    "every other number": lambda a: a.repeat_interleave(2, dim=1)[:, ::2],
}


@pytest.mark.parametrize("arranged", ARRANGED.values(), ids=ARRANGED)
def test_any_arrangement_in_memory(arranged):
    student, teacher = logits()
    value, grad = KL.value_and_grad(student, teacher, backend="compiled")
    got, got_grad = KL.value_and_grad(arranged(student), arranged(teacher), backend="compiled")
    assert got == value
    assert torch.equal(got_grad, grad)
    leaf = student.clone().requires_grad_()
    KL(arranged(leaf), arranged(teacher), backend="compiled").backward()
    torch.testing.assert_close(leaf.grad, grad, rtol=0, atol=0)


def test_one_teacher_row_for_all():
    student, teacher = logits()
    same = teacher[:1].expand(ROWS, -1)
    wanted = KL.value_and_grad(student, same.contiguous(), backend="compiled")
    value, grad = KL.value_and_grad(student, same, backend="compiled")
    assert value == wanted[0]
    assert torch.equal(grad, wanted[1])


def test_the_number_of_threads_changes_nothing():
    student, teacher = logits(37)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(KL.value_and_grad(student, teacher, backend="compiled"))
    finally:
        torch.set_num_threads(before)
    for value, grad in results[1:]:
        assert value == results[0][0]
        assert torch.equal(grad, results[0][1])


# ---------------------------------------------------------------------------------------------
# Modes that the kernel leaves to the core


def test_large_tensors_are_compiled_unasked_and_small_ones_not(calls):
    student, teacher = logits(*LARGE)
    KL(student.requires_grad_(), teacher).backward()
    assert len(calls) == 1
    KL(*logits(2, 9))
    KL(student, teacher, backend="reference")
    assert len(calls) == 1


def test_func_grad(calls):
    """Its tensors are plain inside of the closed form's own function."""
    student, teacher = logits(*LARGE)
    wanted, wanted_grad = AB.value_and_grad(student, teacher, backend="reference")
    grad, value = torch.func.grad_and_value(lambda s: AB(s, teacher))(student)
    assert len(calls) == 1
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(grad, wanted_grad)


def test_vmap_falls_back(calls):
    student, teacher = logits(2 * LARGE[0], LARGE[1])
    pairs = student.reshape(2, *LARGE), teacher.reshape(2, *LARGE)
    values = torch.func.vmap(AB)(*pairs)
    wanted = [AB(*pair, backend="reference") for pair in zip(*pairs, strict=True)]
    torch.testing.assert_close(values, torch.stack(wanted))
    assert not calls
    with pytest.raises(
        ValueError, match=r"outside of compile and torch\.func; got a Tensor on cpu"
    ):
        torch.func.vmap(lambda s, t: AB(s, t, backend="compiled"))(*pairs)


def test_graphs_of_torch_compile_call_the_kernel(calls):
    student, teacher = logits(*LARGE)
    leaf = student.clone().requires_grad_()
    compiled = torch.compile(lambda s, t: AB(s, t), fullgraph=True, backend="aot_eager")
    value = compiled(leaf, teacher)
    value.backward()
    wanted, wanted_grad = AB.value_and_grad(student, teacher, backend="reference")
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(leaf.grad, wanted_grad)
    assert calls


class Subclass(torch.Tensor):
    """Its operations may mean anything."""


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (lambda a: a.to("meta"), "Tensor on meta"),
        (lambda a: a.as_subclass(Subclass), "Subclass on cpu"),
    ],
    ids=["meta", "subclass"],
)
def test_tensors_that_the_kernel_cannot_read(made, shown):
    student, teacher = (made(a) for a in logits(2, 9))
    with pytest.raises(ValueError, match=f"'compiled' computes plain tensors .* got a {shown}"):
        KL(student, teacher, backend="compiled")
    assert KL(student, teacher, reduction="none").shape == (2,)
