"""Losses of hidden states under torch: autograd, autocast, checkpoints, compile, ranks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hidden_oracle import case, expected
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import amidmath as am

K = 4
LOSS = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)
MASK = np.array([1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0], bool)
CASES = {
    k: case(bias=True, low_rank=True, student={"scale": 0.7, "softcap": 2.0}, k=k)
    for k in (None, K)
}
by_teacher = pytest.mark.parametrize("k", CASES, ids=["states", "lists"])


def leaves(given):
    """Hidden states, weight, bias, A and B."""
    return [torch.tensor(a).requires_grad_() for a in given.student_arrays().values()]


def of(given, *tensors, **options):
    student = given.student_of(
        dict(zip(given.student_arrays(), tensors, strict=True)), chunk_rows=4
    )
    return LOSS(student, given.sides(torch.tensor)[1], **options)


def dense_logits(given, hidden, weight, bias, a, b):
    out = hidden @ weight.T + bias + given.factor * (hidden @ a.T) @ b.T
    return 2.0 * torch.tanh(0.7 * out / 2.0)


def wanted(given, **options):
    value, grads = expected(LOSS, given, **options)
    return value, list(grads.values())


def check(tensors, grads, factor=1.0):
    for tensor, grad in zip(tensors, grads, strict=True):
        np.testing.assert_allclose(tensor.grad, factor * grad, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------------------------------
# Autograd


@by_teacher
@pytest.mark.parametrize(
    ("factor", "options"),
    [(1.0, {}), (-3.0, {"reduction": "sum"}), (-3.0, {"mask": MASK}), (2.0, {"denominator": 7})],
    ids=str,
)
def test_gradients(factor, options, k):
    given = CASES[k]
    value, grads = wanted(given, **options)
    tensors = leaves(given)
    on_torch = {"mask": torch.from_numpy, "denominator": torch.tensor}
    got = of(given, *tensors, **{n: on_torch.get(n, str)(v) for n, v in options.items()})
    (factor * got).backward()
    assert abs(float(got.detach()) - value) < 1e-14 * abs(value)
    check(tensors, grads, factor)


@by_teacher
def test_every_value_has_a_cotangent_of_its_own(k):
    given, mask = CASES[k], torch.from_numpy(MASK)
    weights = torch.linspace(-1.0, 2.0, 13, dtype=torch.float64)
    ours, theirs = leaves(given), leaves(given)
    (of(given, *ours, mask=mask, reduction="none") * weights).sum().backward()
    teacher = given.sides(torch.tensor)[1]
    if k is None:
        teacher = teacher.states @ teacher.head.weight.T
    values = LOSS(dense_logits(given, *theirs), teacher, mask, reduction="none")
    (values * weights).sum().backward()
    check(ours, [t.grad.numpy() for t in theirs])


def test_gradcheck():
    given = case((5,), k=K, bias=True, low_rank=True, student={"softcap": 2.0})
    mask = torch.arange(5) != 2
    assert torch.autograd.gradcheck(
        lambda *a: of(given, *a, mask=mask), leaves(given), fast_mode=True
    )


def test_a_graph_that_is_retained():
    given = CASES[None]
    tensors, (_, grads) = leaves(given), wanted(given)
    value = of(given, *tensors)
    for times in (1, 2, 3):
        value.backward(retain_graph=times < 3)
        check(tensors, grads, times)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_accumulation_over_batches_is_the_whole_batch():
    given = CASES[None]
    tensors, teacher = leaves(given), given.sides(torch.tensor)[1]
    whole = given.student_of(dict(zip(given.student_arrays(), tensors, strict=True)))
    for part in (slice(0, 5), slice(5, 13)):
        student = am.Hidden(whole.states[part], whole.head)
        LOSS(student, am.Hidden(teacher.states[part], teacher.head), denominator=13).backward()
    check(tensors, wanted(given)[1])


@by_teacher
def test_parameters_get_their_gradients(k):
    student, teacher = case(k=k).sides(torch.tensor, chunk_rows=4)
    other = teacher if k else teacher.states @ teacher.head.weight.T
    lam = torch.full((13,), 0.3, dtype=torch.float64, requires_grad=True)
    loss = am.AMiD(am.KL(), order="qr", alpha=torch.tensor(-1.0, dtype=torch.float64), lam=lam)
    mine, theirs = (
        torch.autograd.grad(value, lam)[0]
        for value in (
            loss(student, teacher),
            loss(student.states @ student.head.weight.T, other),
        )
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_what_needs_no_gradient_has_no_buffer():
    made = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and func is not torch.Tensor.T.__get__:
                made.append((tuple(result.shape), result.data_ptr()))
            return result

    given = CASES[None]
    tensors = leaves(given)
    teacher = given.sides(torch.tensor)[1]
    frozen = tensors[1].requires_grad_(False)
    student = given.student_of(
        dict(zip(given.student_arrays(), tensors, strict=True)), chunk_rows=4
    )
    with Watch():
        LOSS(student, teacher).backward()
    shapes = [shape for shape, address in made if address != frozen.data_ptr()]
    assert (11, 3) not in shapes
    (_, grads) = wanted(given)
    check([t for t in tensors if t is not frozen], grads[:1] + grads[2:])


class _Largest(TorchDispatchMode):
    """Notes the most numbers that any result has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("listed", [False, True])
def test_logits_are_never_whole(listed):
    vocabulary, rows, chunk = 1000, 96, 8
    student = am.Hidden(
        torch.randn(rows, 2, requires_grad=True),
        torch.randn(vocabulary, 2, requires_grad=True),
        chunk_rows=chunk,
    )
    teacher = am.Hidden(torch.randn(rows, 4), torch.randn(vocabulary, 4))
    if listed:
        teacher = am.top_k(torch.randn(rows, vocabulary), 3)
    with _Largest() as seen:
        am.AMiD()(student, teacher).backward()
    assert seen.numel <= chunk * vocabulary


def test_no_gradient_at_all():
    given = CASES[None]
    tensors = leaves(given)
    with torch.no_grad():
        assert not of(given, *tensors).requires_grad
    assert not of(given, *(t.detach() for t in tensors)).requires_grad


def test_second_derivatives_are_refused():
    given = CASES[None]
    tensors = leaves(given)
    (grad,) = torch.autograd.grad(of(given, *tensors), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


@pytest.mark.parametrize("name", ["states", "head.weight", "head.bias", "log_probs"])
def test_the_teacher_is_constant(name):
    given = {
        "states": torch.zeros(2, 5),
        "head.weight": torch.zeros(4, 5),
        "head.bias": torch.zeros(4),
        "log_probs": torch.full((2, 1), -1.0),
    }
    given[name].requires_grad_()
    student = am.Hidden(torch.zeros(2, 3), torch.zeros(4, 3))
    teacher = am.Hidden(given["states"], am.Head(given["head.weight"], given["head.bias"]))
    if name == "log_probs":
        teacher = am.TopK(given[name], torch.zeros((2, 1), dtype=torch.int64))
    with pytest.raises(ValueError, match=f"teacher.{name} must not require a gradient.*detach"):
        LOSS(student, teacher)
    with torch.no_grad():
        LOSS(student, teacher)


# ---------------------------------------------------------------------------------------------
# Transformations and ranks


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_checkpoint(reentrant, reduction):
    given = CASES[None]
    tensors = leaves(given)
    value = checkpoint(
        lambda hidden, *rest: of(given, 1.0 * hidden, *rest, reduction=reduction),
        *tensors,
        use_reentrant=reentrant,
    )
    value.mean().backward()
    check(tensors, wanted(given)[1])


@by_teacher
def test_functional_gradient(k):
    """By a Hidden, which comes out as one."""
    given = CASES[k]
    student, teacher = given.sides(torch.tensor, chunk_rows=4)
    by = torch.func.grad(LOSS)(student, teacher)
    assert isinstance(by, am.Hidden)
    assert (by.chunk_rows, by.head.projection) == (4, student.head.projection)
    for got, grad in zip(by.arrays().values(), wanted(given)[1], strict=True):
        np.testing.assert_allclose(got, grad, rtol=1e-12, atol=1e-14)


@by_teacher
def test_compiled_models_have_it_in_their_graphs(k):
    given = CASES[k]
    teacher = given.sides(torch.tensor)[1]
    names = list(given.student_arrays())

    def model(hidden, *rest):
        arrays = dict(zip(names, (torch.sin(torch.asin(hidden / 4)) * 4, *rest), strict=True))
        return 2.0 * LOSS(given.student_of(arrays, chunk_rows=4), teacher)

    tensors = leaves(given)
    torch.compiler.reset()
    torch.compile(model, backend="aot_eager", fullgraph=True)(*tensors).backward()
    check(tensors, wanted(given)[1], 2.0)


class Student(torch.nn.Module):
    def __init__(self, teacher):
        super().__init__()
        self.body = torch.nn.Linear(3, 3, dtype=torch.float64)
        self.lm_head = torch.nn.Linear(3, 11, bias=False, dtype=torch.float64)
        self.teacher = teacher

    def forward(self, hidden):
        student = am.Hidden(self.body(hidden), self.lm_head.weight, chunk_rows=4)
        return LOSS(student, self.teacher)


@pytest.fixture
def mesh(tmp_path):
    """This process alone; on two, tests/backends/torch_backend."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_data_parallel_engines(mesh):
    student, teacher = case().sides(torch.tensor)
    alone = Student(teacher)
    ddp = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(alone))
    fsdp = fully_shard(copy.deepcopy(alone), mesh=mesh)
    for model in (alone, ddp, fsdp):
        model(student.states).backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(ddp.module.get_parameter(name).grad, parameter.grad)
        torch.testing.assert_close(fsdp.get_parameter(name).grad.full_tensor(), parameter.grad)


@by_teacher
def test_a_sharded_head(mesh, k):
    plain = case(k=k)
    _, grads = expected(LOSS, plain)
    student, teacher = plain.sides(torch.tensor, chunk_rows=4)
    weight = distribute_tensor(student.head.weight, mesh, [Shard(0)]).requires_grad_()
    if k is None:
        teacher = am.Hidden(
            teacher.states, distribute_tensor(teacher.head.weight, mesh, [Shard(0)])
        )
    LOSS(am.Hidden(student.states, weight, chunk_rows=4), teacher).backward()
    assert weight.grad.placements == (Shard(0),)
    np.testing.assert_allclose(weight.grad.full_tensor(), grads["head.weight"], rtol=1e-12)
    spread = distribute_tensor(student.states, mesh, [Shard(0)])
    with pytest.raises(TypeError, match=r"student.states must be a plain tensor.*to_local\(\)"):
        LOSS(am.Hidden(spread, weight), teacher)
    if k is not None:
        top = am.TopK(*(distribute_tensor(a, mesh, [Shard(0)]) for a in teacher))
        with pytest.raises(TypeError, match=r"teacher.log_probs must be a plain tensor"):
            LOSS(am.Hidden(student.states, weight), top)
