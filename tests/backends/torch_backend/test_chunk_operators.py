"""The operators of losses in chunks, as torch's own checks see them."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import amidmath as am
from amidmath.backends.torch_backend import chunk_operators

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Looking(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_checks_the_operators(reduction, monkeypatch):
    """With what a call tells them."""
    told = []
    operator = chunk_operators.linear

    def listening(*arguments):
        told.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(chunk_operators, "linear", listening)
    generator = torch.Generator().manual_seed(0)
    x, t = (torch.randn((4, 8), generator=generator) for _ in range(2))
    head = am.Head(t.clone().requires_grad_(), bias=t[:, 0].clone().requires_grad_())
    with Looking():
        am.AMiD()(am.Hidden(x.requires_grad_(), head), am.Hidden(2 * t, t), reduction=reduction)
    torch.library.opcheck(torch.ops.amidmath.linear.default, told[0])
    given, _, numbers, constants, form = told[0]
    arguments = ([a.detach() for a in given], torch.ones(4), numbers, constants, form)
    torch.library.opcheck(torch.ops.amidmath.linear_gradients.default, arguments)
