"""The compiled rows of the CPU behind torch: autograd, its transformations, and its tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amidmath as am

pytest.importorskip("llvmlite")

ROWS, VOCABULARY = 5, 1003
KL = am.AMiD()
AB = am.AMiD(am.AlphaBeta(0.2, 0.7), order="qr", alpha=3.0, lam=0.3)
LARGE = (66, 1003)  # enough to compile unasked


def logits(rows=ROWS, vocabulary=VOCABULARY, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher = 3.0 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    student = teacher + torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype)


def assert_near(got, wanted, eps, bound=32.0):
    got, wanted = got.detach().double(), wanted.detach().double()
    scale = wanted.abs().amax(dim=-1, keepdim=True) if wanted.ndim > 1 else wanted.abs()
    assert ((got - wanted).abs() <= bound * eps * scale + eps * wanted.abs()).all()


# ---------------------------------------------------------------------------------------------
# Autograd


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_autograd_gives_the_gradient_of_value_and_grad(calls, reduction):
    student, teacher = logits()
    leaves = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    value = KL(*leaves, reduction=reduction, backend="compiled")
    grads = torch.autograd.grad(value.sum(), leaves)
    assert len(calls) == 1
    wanted, wanted_grads = KL.value_and_grad(
        *(a.double() for a in (student, teacher)),
        reduction=reduction,
        wrt=("student", "teacher"),
        backend="reference",
    )
    eps = torch.finfo(torch.float32).eps
    assert_near(value, wanted, eps)
    for grad, truth in zip(grads, wanted_grads, strict=True):
        assert_near(grad, truth, eps)


def test_gradcheck():
    pair = logits(2, 19, torch.float64)
    alpha = torch.tensor([0.5, -2.0], dtype=torch.float64)
    operands = [a.clone().requires_grad_() for a in (*pair, alpha)]

    def loss(student, teacher, alpha):
        return am.AMiD(order="rq", alpha=alpha, lam=0.3)(student, teacher, backend="compiled")

    assert torch.autograd.gradcheck(loss, operands)


def test_gradients_add_up_and_scale():
    """A graph that is used twice, and a loss that is part of another."""
    student, teacher = logits()
    _, grad = KL.value_and_grad(student, teacher, backend="compiled")
    leaf = student.clone().requires_grad_()
    value = KL(leaf, teacher, backend="compiled")
    value.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, grad, rtol=0, atol=0)
    value.backward()
    torch.testing.assert_close(leaf.grad, 2.0 * grad, rtol=1e-6, atol=0)
    leaf.grad = None
    (-3.0 * KL(leaf, teacher, backend="compiled") + 0.5 * (leaf**2).sum()).backward()
    torch.testing.assert_close(leaf.grad, -3.0 * grad + student, rtol=1e-6, atol=1e-8)
    leaf.grad = None
    weights = torch.linspace(-1.0, 2.0, ROWS)
    KL(leaf, teacher, reduction="none", backend="compiled").backward(weights)
    torch.testing.assert_close(leaf.grad, ROWS * weights[:, None] * grad, rtol=1e-5, atol=1e-9)


def test_no_second_derivative():
    leaf, teacher = logits(2, 9)[0].requires_grad_(), logits(2, 9)[1]
    value = KL(leaf, teacher, backend="compiled")
    (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"first derivatives only"):
        torch.autograd.grad(grad.sum(), leaf)


def without_autograd(student, teacher):
    with torch.no_grad():
        return KL(student.requires_grad_(), teacher, backend="compiled")


def in_inference_mode(student, teacher):
    with torch.inference_mode():
        return KL(student.clone(), teacher.clone(), backend="compiled")


@pytest.mark.parametrize("call", [without_autograd, in_inference_mode])
def test_values_alone(call):
    student, teacher = logits()
    value = call(student.clone(), teacher)
    assert not value.requires_grad
    wanted = KL(student.double(), teacher.double(), backend="reference")
    assert_near(value, wanted, torch.finfo(torch.float32).eps)


def largest_allocation(function):
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    return max((e.self_cpu_memory_usage for e in profile.events()), default=0)


def test_values_alone_allocate_no_gradient():
    student, teacher = logits(40, 1024)
    leaf = student.clone().requires_grad_()
    KL(leaf, teacher, backend="compiled")
    KL(student, teacher, backend="compiled")  # compiled, both
    with_gradient = largest_allocation(lambda: KL(leaf, teacher, backend="compiled"))
    without = largest_allocation(lambda: KL(student, teacher, backend="compiled"))
    assert with_gradient == student.nbytes
    assert without <= 4096


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


# ---------------------------------------------------------------------------------------------
# Second derivatives through the core


@pytest.mark.parametrize(
    "loss", [KL, AB, am.AMiD(am.Renyi(2.0), order="rp", alpha=0.5)], ids=["KL", "AB", "Rényi"]
)
def test_second_derivatives_by_the_core(loss):
    operands = [a.clone().requires_grad_() for a in logits(2, 5, torch.float64)]

    def value(student, teacher):
        return loss(student, teacher, backend="reference")

    assert torch.autograd.gradcheck(value, operands)
    assert torch.autograd.gradgradcheck(value, operands)


def test_second_derivatives_of_a_divergence_by_the_core():
    operands = [a.clone().requires_grad_() for a in logits(2, 5, torch.float64)]

    def value(x, y):
        return am.AlphaBeta(0.2, 0.7)(x.log_softmax(-1), y.log_softmax(-1), backend="reference")

    assert torch.autograd.gradgradcheck(value, operands)


def test_hessian_by_jax():
    jax = pytest.importorskip("jax")
    student, teacher = (a.numpy() for a in logits(1, 4, torch.float64))
    with jax.enable_x64(True):
        target = jax.numpy.asarray(teacher)
        of = jax.hessian(lambda s: AB(s, target, backend="reference"))
        got = of(jax.numpy.asarray(student))
    step = 1e-5
    wanted = np.zeros((4, 4))
    for i in range(4):
        shift = step * np.eye(4)[i]
        up, down = (AB.value_and_grad(student + d, teacher)[1][0] for d in (shift, -shift))
        wanted[i] = (up - down) / (2 * step)
    np.testing.assert_allclose(np.reshape(got, (4, 4)), wanted, rtol=1e-6, atol=1e-9)
