"""Only one argument differentiated: it must get its own derivative, not its neighbour's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am

RNG = np.random.default_rng(7)
LOGITS = [RNG.normal(size=(3, 5)) for _ in range(2)]
LOGS = [a - np.log(np.exp(a).sum(-1, keepdims=True)) for a in LOGITS]
MASK = np.array([True, False, True])

FUNCTIONS = {
    "KL": (am.KL(), LOGS),
    "ReverseKL": (am.ReverseKL(), LOGS),
    "AlphaBeta": (am.AlphaBeta(0.2, 0.7), LOGS),
    "mixture": (lambda p, q: am.alpha_mixture(p, q, alpha=0.5, lam=0.3) ** 2, LOGS),
    "AMiD": (am.AMiD(alpha=0.5, lam=0.3), LOGITS),
    "masked AMiD": (lambda s, t: am.AMiD(order="rq")(s, t, mask=mask_like(s)), LOGITS),
}
by_function = pytest.mark.parametrize(("function", "arrays"), FUNCTIONS.values(), ids=FUNCTIONS)


def mask_like(array):
    return torch.tensor(MASK) if isinstance(array, torch.Tensor) else jnp.asarray(MASK)


def numerical(function, arrays, which, index):
    """A central difference of the sum, in float64."""
    values = []
    for step in (1e-6, -1e-6):
        moved = [torch.tensor(a) for a in arrays]
        moved[which][index] += step
        values.append(float(function(*moved).sum()))
    return (values[0] - values[1]) / 2e-6


@by_function
@pytest.mark.parametrize("which", [0, 1])
def test_torch(function, arrays, which):
    operands = [torch.tensor(a) for a in arrays]
    operands[which].requires_grad_()
    function(*operands).sum().backward()
    assert operands[1 - which].grad is None
    for index in ((0, 1), (2, 4)):
        expected = numerical(function, arrays, which, index)
        assert float(operands[which].grad[index]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@by_function
@pytest.mark.parametrize("which", [0, 1])
def test_jax(function, arrays, which):
    def total(*operands):
        return function(*operands).sum()

    grad = jax.grad(total, argnums=which)(*(jnp.asarray(a, dtype=jnp.float32) for a in arrays))
    for index in ((0, 1), (2, 4)):
        expected = numerical(function, arrays, which, index)
        assert float(grad[index]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
