"""Weight decay and learning rates, whichever the optimiser."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amidmath.integrations.jax_loop.settings.config import OPTIMIZERS, JaxConfig
from amidmath.integrations.jax_loop.training.optimizers import optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_decoupled_and_times_the_learning_rate(name: str) -> None:
    rate, decay, steps = 2e-3, 0.1, 3
    config = JaxConfig(
        output_dir="unused",
        optim=name,
        learning_rate=rate,
        weight_decay=decay,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    rule = optimizer(config, steps, lambda tree: {"matrix": True, "bias": False})
    start = {"matrix": jnp.full((4, 3), 2.0), "bias": jnp.ones(3)}
    parameters: Any = start
    state = rule.init(parameters)
    for _ in range(steps):
        nothing = jax.tree.map(jnp.zeros_like, parameters)
        updates, state = rule.update(nothing, state, parameters)
        parameters = jax.tree.map(jnp.add, parameters, updates)
    expected = 2.0 * (1.0 - rate * decay) ** steps
    np.testing.assert_allclose(parameters["matrix"], expected, rtol=1e-6)
    np.testing.assert_array_equal(parameters["bias"], start["bias"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_go_against_the_gradient(name: str) -> None:
    config = JaxConfig(output_dir="unused", optim=name, learning_rate=1e-2)
    rule = optimizer(config, 2, lambda tree: {"matrix": True})
    parameters = {"matrix": jnp.ones((4, 3))}
    gradient = {"matrix": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}
    updates, _ = rule.update(gradient, rule.init(parameters), parameters)
    assert np.all(np.sign(updates["matrix"]) == -np.sign(gradient["matrix"]))
