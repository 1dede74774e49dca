"""Named methods, and the registry of them."""

import inspect
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from amidmath.arrays import checks
from amidmath.losses.loss import Loss

ANY = "any"
"""The source of rows that are all the same to a method."""

METHODS: dict[str, "Method"] = {}
"""The methods by name."""

Function = TypeVar("Function", bound=Callable[..., "Loss | dict[str, Loss]"])


@dataclass(frozen=True)
class Method:
    """A named distillation method: its losses, its parameters, and what they mean as λ and α.

    For whoever chooses a method by name, and changes its parameters over training: losses are
    cheap to make, and those that differ in numbers only share their row kernels. Under ``jax.jit``
    numbers are part of what is compiled; there, parameters that may be arrays can change.

    Source: docs: methods, N1 to N6.

    Args:
        name: its key in ``METHODS``.
        function: makes the loss, or a loss for each source of rows, from the parameters.
        says: what parameters mean, from all of them by name.

    Example:
        >>> import amidmath as am
        >>> gkd = am.methods.METHODS["gkd"]
        >>> gkd.parameters
        {'beta': 0.5, 'temperature': 1.0}
        >>> gkd.loss(beta=0.25) == am.methods.gkd(0.25)
        True
        >>> print(am.methods.METHODS["distillm"].convention(kind="srkl", skew=0.1))
        skew = 0.1 weighs the student in r = 0.9·p + 0.1·q, so λ = 0.9 (λ weighs the teacher)
    """

    name: str
    function: Callable[..., Loss | dict[str, Loss]]
    says: Callable[..., str]

    @property
    def parameters(self) -> dict[str, Any]:
        """The names of the parameters and their defaults, in order.

        Those whose default is a float may change over training.
        """
        return dict(_parameters(self.function))

    @property
    def sources(self) -> tuple[str, ...]:
        """Who wrote the rows: ("any",), or ("teacher", "student") where that makes a difference."""
        return tuple(self.losses())

    def loss(self, **params: Any) -> Loss:
        """The loss with these parameters, and the defaults of the others.

        Raises:
            TypeError: a parameter that the method does not have, or one of the wrong type.
            ValueError: a parameter out of its range, or a method with a loss for each source.
        """
        losses = self.losses(**params)
        if ANY not in losses:
            raise ValueError(
                f"{self.name} has a loss for each source of rows, {', '.join(map(repr, losses))}; "
                f"take them from METHODS[{self.name!r}].losses(…)"
            )
        return losses[ANY]

    def losses(self, **params: Any) -> dict[str, Loss]:
        """The loss of each source of rows: {"any": …}, or {"teacher": …, "student": …}.

        "teacher" are responses that the teacher wrote, "student" those that the student did. What
        is minimised is the sum over the sources.

        Raises:
            TypeError: as for :meth:`loss`.
            ValueError: a parameter out of its range.
        """
        self._check_names(params)
        made = self.function(**params)
        return {ANY: made} if isinstance(made, Loss) else made

    def convention(self, **params: Any) -> str:
        """The meaning of these parameters in terms of λ, which weighs the teacher, in one sentence.

        Raises:
            TypeError: as for :meth:`loss`.
            ValueError: a parameter out of its range.
        """
        self.losses(**params)
        return self.says(**{**self.parameters, **params})

    def _check_names(self, params: dict[str, Any]) -> None:
        known = _parameters(self.function)
        unknown = [name for name in params if name not in known]
        if unknown:
            raise TypeError(
                f"{self.name} has no parameter {unknown[0]!r} (got {params[unknown[0]]!r}); "
                f"it takes: {', '.join(known)}"
            )


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    return {p.name: p.default for p in inspect.signature(function).parameters.values()}


def method(says: Callable[..., str]) -> Callable[[Function], Function]:
    """Put a function into ``METHODS`` under its own name.

    Args:
        says: what the parameters mean; see :class:`Method`.
    """

    def register(function: Function) -> Function:
        known = METHODS.setdefault(
            function.__name__, Method(function.__name__, function, says)
        ).function
        if known.__module__ != function.__module__:
            raise ValueError(f"method {function.__name__!r} is defined in {known.__module__}")
        return function

    return register


def between(name: str, value: Any, low: float, high: float) -> float:
    """The value as a float in [low, high]; raises ValueError otherwise."""
    result = checks.number(name, value)
    if not low <= result <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value!r}")
    return result


def positive_temperature(name: str, value: Any) -> float:
    """The temperature of a method, checked."""
    return checks.temperature(f"{name}'s temperature", value)


def shown(name: str, value: Any) -> str:
    """A number as it is, an array by its name."""
    return f"{float(value):g}" if isinstance(value, numbers.Real) else name


def rest(name: str, value: Any) -> str:
    """One minus a number, likewise."""
    return f"{1.0 - float(value):g}" if isinstance(value, numbers.Real) else f"(1 - {name})"
