"""Which parameters of a loss can change without compiling the step anew."""

import pytest

import amidmath as am
from amidmath.integrations.jax_loop.loss.objective import traceable
from amidmath.integrations.jax_loop.settings.config import JaxConfig


@pytest.mark.parametrize("name", sorted(am.methods.METHODS))
def test_all_but_exponents_change_without_compiling(name: str) -> None:
    numbers = {k: v for k, v in am.methods.METHODS[name].parameters.items() if type(v) is float}
    schedule = [f"{name}=linear:{value}:{value - 0.05}" for name, value in numbers.items()]
    recipe = JaxConfig(output_dir="unused", method=name, schedule=schedule).recipe()
    exponents = {"alpha", "beta"} if name == "abkd" else set()
    assert traceable(recipe) == set(numbers) - exponents
