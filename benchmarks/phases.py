"""How a loss runs in each library: what is timed, and how its results are read.

A *phase* is a part of a training step: ``value`` evaluates the loss where nothing is
differentiated, ``forward`` where it will be, ``backward`` is the rest, ``both`` the two in one go.
Where a library makes value and gradient in one compiled call there are ``value`` and ``both``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
Function = Callable[..., Array]
PHASES = ("value", "forward", "backward", "both")
AT_ONCE = ("value", "both")


@dataclass(frozen=True)
class Timed:
    """A call that is timed, and what makes its arguments, untimed, before every round."""

    target: Callable[..., Any]
    setup: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] | None = None

    def once(self) -> Any:
        """One call."""
        args, kwargs = self.setup() if self.setup else ((), {})
        return self.target(*args, **kwargs)


Phases = dict[str, Timed]


def of_torch(f: Function, wrt: int, arrays: tuple[Array, ...], device: str = "cpu") -> Phases:
    """Phases of ``f(*arrays)`` under autograd, by the first ``wrt`` arrays."""
    import torch

    operands = [torch.tensor(a, device=device) for a in arrays]  # in torch's own memory
    leaves = tuple(operand.requires_grad_() for operand in operands[:wrt])
    finish = torch.cuda.synchronize if device == "cuda" else _nothing

    def value() -> Array:
        with torch.no_grad():
            result = f(*operands)
        finish()
        return result

    def forward() -> Array:
        result = f(*operands)
        finish()
        return result

    def backward(result: Array) -> Any:
        grads = torch.autograd.grad(result, leaves)
        finish()
        return grads

    def both() -> tuple[Array, Any]:
        result = f(*operands)
        grads = torch.autograd.grad(result, leaves)
        finish()
        return result.detach(), grads

    return {
        "value": Timed(value),
        "forward": Timed(forward),
        "backward": Timed(backward, lambda: ((forward(),), {})),
        "both": Timed(both),
    }


def of_jax(f: Function, wrt: int, arrays: tuple[Array, ...]) -> Phases:
    """Phases of ``f(*arrays)`` under jit; value and gradient are one compiled function."""
    import jax
    import jax.numpy as jnp

    operands = [jnp.asarray(a) for a in arrays]
    value, both = _jitted(f, wrt)
    return {
        "value": Timed(lambda: jax.block_until_ready(value(*operands))),
        "both": Timed(lambda: jax.block_until_ready(both(*operands))),
    }


@functools.cache  # one compilation for all phases and sweeps
def _jitted(f: Function, wrt: int) -> tuple[Function, Function]:
    import jax

    return jax.jit(f), jax.jit(jax.value_and_grad(f, argnums=tuple(range(wrt))))


def of_calls(value: Function | None, both: Function, arrays: tuple[Array, ...]) -> Phases:
    """Phases of functions that give what they give at once: no automatic differentiation."""
    phases = {"both": Timed(lambda: both(*arrays))}
    if value is not None:
        phases["value"] = Timed(lambda: value(*arrays))
    return phases


def gradients(result: tuple[Array, Any]) -> tuple[Array, ...]:
    """The gradients in what ``both`` returned."""
    grads = result[1]
    return tuple(grads) if isinstance(grads, (tuple, list)) else (grads,)


def as_numpy(array: Array) -> np.ndarray:
    """An array of any library in float64, on the host."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    elif hasattr(array, "get"):
        array = array.get()
    return np.asarray(array).astype(np.float64)


def _nothing() -> None:
    """The wait on a CPU: none."""
