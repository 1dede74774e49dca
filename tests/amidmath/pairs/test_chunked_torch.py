"""The loss from hidden states under torch: autograd, autocast, checkpoints, compile, ranks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from linear_oracle import case, expected
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

import amidmath as am

LOSS = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)
CASE = case(bias=True, low_rank=True, student={"softcap": 2.0})
MASK = np.array([1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0], bool)
OTHER, OTHER_HEAD = torch.tensor(CASE.teacher_hidden), torch.tensor(CASE.teacher_head)


def leaves():
    """Hidden states, weight, bias, A and B."""
    arrays = (CASE.student_hidden, CASE.student_head, CASE.student_bias, *CASE.student_low_rank)
    return [torch.tensor(a).requires_grad_() for a in arrays]


def of(hidden, weight, bias, a, b, **options):
    head = am.Head(weight, bias, softcap=2.0, low_rank=(a, b, CASE.factor))
    return LOSS.linear(hidden, head, OTHER, OTHER_HEAD, chunk_rows=4, **options)


def wanted(**options):
    value, grads = expected(LOSS, CASE, **options)
    return value, [grads[n] for n in CASE.names[:3]] + list(grads["student_low_rank"])


def check(tensors, grads, factor=1.0):
    for tensor, grad in zip(tensors, grads, strict=True):
        np.testing.assert_allclose(tensor.grad, factor * grad, rtol=1e-12, atol=1e-14)


VALUE, GRADS = wanted()


# ---------------------------------------------------------------------------------------------
# Autograd


@pytest.mark.parametrize("factor", [1.0, -3.0])
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"mask": MASK}], ids=str)
def test_gradients(factor, options):
    value, grads = wanted(**options)
    tensors = leaves()
    if "mask" in options:
        options = {"mask": torch.from_numpy(MASK)}
    got = of(*tensors, **options)
    (factor * got).backward()
    assert abs(float(got.detach()) - value) < 1e-14 * abs(value)
    check(tensors, grads, factor)


def test_every_value_has_a_cotangent_of_its_own():
    weights = torch.linspace(-1.0, 2.0, 13, dtype=torch.float64)
    ours, theirs = leaves(), leaves()
    (of(*ours, reduction="none") * weights).sum().backward()
    hidden, weight, bias, a, b = theirs
    out = hidden @ weight.T + bias + CASE.factor * (hidden @ a.T) @ b.T
    values = LOSS(2.0 * torch.tanh(out / 2.0), OTHER @ OTHER_HEAD.T, reduction="none")
    (values * weights).sum().backward()
    check(ours, [t.grad.numpy() for t in theirs])


def test_a_graph_that_is_retained():
    tensors = leaves()
    value = of(*tensors)
    for times in (1, 2, 3):
        value.backward(retain_graph=times < 3)
        check(tensors, GRADS, times)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_accumulation_over_batches_is_the_whole_batch():
    tensors = leaves()
    hidden, *head = tensors
    for part in (slice(0, 5), slice(5, 13)):
        layer = am.Head(head[0], head[1], softcap=2.0, low_rank=(*head[2:], CASE.factor))
        LOSS.linear(hidden[part], layer, OTHER[part], OTHER_HEAD, denominator=13).backward()
    check(tensors, GRADS)


def test_parameters_get_their_gradients():
    lam = torch.full((13,), 0.3, dtype=torch.float64, requires_grad=True)
    loss = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=lam)
    plain = case()
    hidden, head, other, other_head = plain.arguments(am, torch.tensor)
    loss.linear(hidden, head, other, other_head, chunk_rows=4).backward()
    mine, lam.grad = lam.grad, None
    loss(hidden @ head.weight.T, other @ other_head.weight.T).backward()
    torch.testing.assert_close(mine, lam.grad, rtol=1e-12, atol=1e-14)


def test_what_needs_no_gradient_has_no_buffer():
    made = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and func is not torch.Tensor.T.__get__:
                made.append((tuple(result.shape), result.data_ptr()))
            return result

    tensors = leaves()
    frozen = tensors[1].requires_grad_(False)
    with Watch():
        of(*tensors).backward()
    shapes = [shape for shape, address in made if address != frozen.data_ptr()]
    assert (11, 3) not in shapes
    check([t for t in tensors if t is not frozen], GRADS[:1] + GRADS[2:])


def test_no_gradient_at_all():
    tensors = leaves()
    with torch.no_grad():
        assert not of(*tensors).requires_grad
    assert not of(*(t.detach() for t in tensors)).requires_grad


def test_second_derivatives_are_refused():
    tensors = leaves()
    (grad,) = torch.autograd.grad(of(*tensors), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


@pytest.mark.parametrize("name", ["hidden", "head", "bias"])
def test_the_teacher_is_constant(name):
    hidden, head = torch.zeros(2, 3), torch.zeros(4, 3)
    given = {"hidden": torch.zeros(2, 5), "head": torch.zeros(4, 5), "bias": torch.zeros(4)}
    given[name].requires_grad_()
    teacher = am.Head(given["head"], given["bias"])
    with pytest.raises(ValueError, match=f"teacher_{name} must not require a gradient.*detach"):
        LOSS.linear(hidden, head, given["hidden"], teacher)
    with torch.no_grad():
        LOSS.linear(hidden, head, given["hidden"], teacher)


# ---------------------------------------------------------------------------------------------
# Precision


def random_model(dtype):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal(64, 32), normal(500, 32) / 6, normal(64, 32), normal(500, 32) / 6


def in_double(hidden, head, other, other_head):
    hidden, head = (a.detach().double().requires_grad_() for a in (hidden, head))
    value = LOSS(hidden @ head.T, other.double() @ other_head.double().T)
    value.backward()
    return float(value.detach()), hidden.grad, head.grad


def off(got, wanted):
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    hidden, head, other, other_head = random_model(dtype)
    value, by_hidden, by_head = in_double(hidden, head, other, other_head)
    hidden.requires_grad_()
    head.requires_grad_()
    got = LOSS.linear(hidden, head, other, other_head, chunk_rows=16)
    (0.75 * got).backward()
    assert got.dtype == torch.float32
    assert (hidden.grad.dtype, head.grad.dtype) == (dtype, dtype)
    eps = torch.finfo(dtype).eps
    assert abs(float(got.detach()) / value - 1) < eps / 4
    assert off(hidden.grad, 0.75 * by_hidden) < 2 * eps
    assert off(head.grad, 0.75 * by_head) < 2 * eps


def test_float16_does_not_underflow_before_it_is_scaled_up():
    hidden, head, other, other_head = random_model(torch.float16)
    _, by_hidden, by_head = in_double(hidden, head, other, other_head)
    hidden.requires_grad_()
    head.requires_grad_()
    loss_scale = 2.0**16
    value = LOSS.linear(hidden, head, other, other_head, denominator=64 * loss_scale)
    (loss_scale * value).backward()
    assert off(hidden.grad, by_hidden) < 2**-9
    assert off(head.grad, by_head) < 2**-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_multiplies_as_a_linear_layer_does(dtype):
    hidden, head, other, other_head = random_model(torch.float32)
    _, by_hidden, by_head = in_double(hidden, head, other, other_head)
    hidden.requires_grad_()
    head.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        got = LOSS.linear(hidden, head, other, other_head, chunk_rows=16)
        linear = torch.nn.functional.linear
        dense = LOSS(linear(hidden, head), linear(other, other_head))
    got.backward()
    torch.testing.assert_close(got, dense, rtol=1e-6, atol=0.0)
    assert hidden.grad.dtype == head.grad.dtype == torch.float32
    eps = torch.finfo(dtype).eps
    assert off(hidden.grad, by_hidden) < 2 * eps
    assert off(head.grad, by_head) < 2 * eps


def test_hidden_states_and_head_of_different_dtypes():
    hidden, head, other, other_head = random_model(torch.float32)
    half = hidden.bfloat16().requires_grad_()
    head.requires_grad_()
    LOSS.linear(half, head, other.bfloat16(), other_head).backward()
    assert (half.grad.dtype, head.grad.dtype) == (torch.bfloat16, torch.float32)
    _, by_hidden, by_head = in_double(hidden, head, other, other_head)
    assert off(half.grad, by_hidden) < 2**-6
    assert off(head.grad, by_head) < 2**-6


# ---------------------------------------------------------------------------------------------
# Transformations and ranks


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_checkpoint(reentrant, reduction):
    tensors = leaves()
    value = checkpoint(
        lambda hidden, *rest: of(1.0 * hidden, *rest, reduction=reduction),
        *tensors,
        use_reentrant=reentrant,
    )
    value.mean().backward()
    check(tensors, GRADS)


def test_functional_gradient():
    grads = torch.func.grad(of, argnums=(0, 1, 2, 3, 4))(*(t.detach() for t in leaves()))
    for got, grad in zip(grads, GRADS, strict=True):
        np.testing.assert_allclose(got, grad, rtol=1e-12, atol=1e-14)


def test_compiled_models_have_it_in_their_graphs():
    def model(hidden, *rest):
        return 2.0 * of(torch.sin(torch.asin(hidden / 4)) * 4, *rest)

    tensors = leaves()
    torch.compiler.reset()
    torch.compile(model, backend="aot_eager", fullgraph=True)(*tensors).backward()
    check(tensors, GRADS, 2.0)


class Student(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(3, 3, dtype=torch.float64)
        self.lm_head = torch.nn.Linear(3, 11, bias=False, dtype=torch.float64)

    def forward(self, hidden):
        return LOSS.linear(self.body(hidden), self.lm_head.weight, OTHER, OTHER_HEAD, chunk_rows=4)


@pytest.fixture
def mesh(tmp_path):
    """This process alone; on two, tests/parallel."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_data_parallel_engines(mesh):
    alone = Student()
    ddp = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(alone))
    fsdp = fully_shard(copy.deepcopy(alone), mesh=mesh)
    hidden = torch.tensor(CASE.student_hidden)
    for model in (alone, ddp, fsdp):
        model(hidden).backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(ddp.module.get_parameter(name).grad, parameter.grad)
        torch.testing.assert_close(fsdp.get_parameter(name).grad.full_tensor(), parameter.grad)


def test_a_sharded_head(mesh):
    plain = case()
    _, grads = expected(LOSS, plain)
    hidden, head, other, other_head = plain.arguments(am, torch.tensor)
    weight = distribute_tensor(head.weight, mesh, [Shard(0)]).requires_grad_()
    teacher = distribute_tensor(other_head.weight, mesh, [Shard(0)])
    LOSS.linear(hidden, weight, other, teacher, chunk_rows=4).backward()
    assert weight.grad.placements == (Shard(0),)
    np.testing.assert_allclose(weight.grad.full_tensor(), grads["student_head"], rtol=1e-12)
    with pytest.raises(TypeError, match=r"student_hidden must be a plain tensor.*to_local\(\)"):
        LOSS.linear(distribute_tensor(hidden, mesh, [Shard(0)]), weight, other, teacher)
