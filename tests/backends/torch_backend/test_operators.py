"""What records operators records what is computed, below and above the size of the kernels."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import amidmath as am
from amidmath.rows import texts
from amidmath.rows.forms import RowForm

SMALL, COMPILED = (4, 8), (64, 1024)
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",  # of checks of shapes
)


def arrays(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for _ in range(2))


def mean(x, t):
    return am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=0.3)(x, t)


def each(x, t):
    return am.AMiD()(x, t, mask=t[:, 0] > 0, reduction="none").square().sum()


def knobs(x, t):
    return am.AMiD(alpha=x[:, 0], lam=torch.sigmoid(x[:, 1]))(t, t.flip(0))


def listed(x, t):
    return am.AMiD()(x, am.top_k(t.detach(), 3))


def hidden(x, t):
    return am.AMiD()(am.Hidden(x, t.detach()), am.Hidden(2 * t.detach(), t.detach()))


def divergence(x, t):
    return am.JensenShannon(0.3)(x.log_softmax(-1), t.log_softmax(-1)).sum()


def mixture(x, t):
    return am.alpha_mixture(x, t, alpha=0.3, lam=0.2).square().sum()


def gradient(x, t):
    return am.AMiD().value_and_grad(x, t)[1].square().sum()


def summed(x, t):
    return (0.5 * am.AMiD() + 0.25 * am.AMiD(am.FDivergence(lambda v, xp: (v - 1) ** 2)))(x, t)


LOSSES = (mean, each, knobs, listed, hidden, divergence, mixture, gradient, summed)
by_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
by_shape = pytest.mark.parametrize("shape", [SMALL, COMPILED], ids=["small", "compiled"])


def with_gradient(loss):
    def both(x, t):
        x = x.detach().requires_grad_()
        value = loss(x, t)
        return (value, *(torch.autograd.grad(value, x) if value.requires_grad else ()))

    return both


class Module(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, x, t):
        return self.loss(x, t)


def agree(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@by_shape
@by_loss
def test_torch_jit_trace(loss, shape):
    others = arrays(shape, seed=1)
    traced = torch.jit.trace(Module(loss), arrays(shape), check_trace=False)
    agree(traced(*others), loss(*others))
    if loss is gradient:
        return
    x, t = arrays(shape)
    traced = torch.jit.trace(Module(loss), (x.requires_grad_(), t), check_trace=False)
    leaf = others[0].clone().requires_grad_()
    value = traced(leaf, others[1])
    agree((value, *torch.autograd.grad(value, leaf)), with_gradient(loss)(*others))
    assert "PythonOp" not in str(traced.graph)


@by_shape
@by_loss
@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx(loss, shape, mode):
    others = arrays(shape, seed=1)
    traced = make_fx(with_gradient(loss), tracing_mode=mode)(*arrays(shape))
    agree(traced(*others), with_gradient(loss)(*others))


@by_shape
@by_loss
def test_export(loss, shape):
    others = arrays(shape, seed=1)
    agree(
        torch.export.export(Module(loss), arrays(shape)).module()(*others),
        loss(*others),
    )


@by_shape
@by_loss
def test_fake_tensors(loss, shape):
    wanted = with_gradient(loss)(*arrays(shape))
    with FakeTensorMode() as mode:
        found = with_gradient(loss)(*(mode.from_tensor(a) for a in arrays(shape)))
    for got, real in zip(found, wanted, strict=True):
        assert (got.shape, got.dtype, got.device) == (real.shape, real.dtype, real.device)


def test_make_fx_of_transformed_functions():
    others = arrays(SMALL, seed=1)
    for loss in (mean, each, divergence, mixture):
        slope = torch.func.grad(loss)
        agree(make_fx(slope)(*arrays(SMALL))(*others), slope(*others))
    mapped = torch.func.vmap(mean)
    stacked = [a[None].expand(3, *SMALL) for a in others]
    agree(make_fx(mapped)(*stacked)(*stacked), mapped(*stacked))


def test_a_recorded_gradient_refuses_its_derivative():
    x, t = arrays(SMALL)
    traced = torch.jit.trace(Module(mean), (x.requires_grad_(), t), check_trace=False)
    (slope,) = torch.autograd.grad(traced(x, t), x, create_graph=True)
    with pytest.raises(NotImplementedError, match='backend="reference"'):
        slope.sum().backward()


def test_torch_checks_the_operator():
    """Its schema, its fake, its autograd, under every mode that torch knows to try."""
    form = RowForm(am.AMiD(am.Renyi(2.0), alpha=0.3).block, masked=True)
    text, numbers = texts.described(form)
    x, t = (a.requires_grad_() for a in arrays(SMALL))
    operands = [x, t, torch.tensor([True, False, True, True])]
    operator = torch.ops.amidmath.value_and_partials.default
    arguments = (operands, None, [*numbers, 0.0], text, -1, "ynn", "")
    torch.library.opcheck(operator, arguments)
