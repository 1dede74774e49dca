"""The loss that a run minimises: a named method, its parameters, how they change over training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import amidmath as am
from amidmath.arrays.annotations import Array
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.schedules import Schedules


@dataclass(frozen=True)
class Recipe:
    """A method with its parameters and schedules.

    Args:
        method: one of ``am.methods.METHODS``.
        params: its parameters that were given; the others have their defaults.
        schedules: of parameters that change, which override ``params``.

    Raises:
        InputError: a parameter that the method does not have, or that is out of its range at the
            start, in the middle or at the end of training.
    """

    method: am.methods.Method
    params: Mapping[str, Any]
    schedules: Schedules

    def __post_init__(self) -> None:
        """Check parameters and schedules by making losses of them."""
        for step in (0, 1, 2):
            self.losses(step, 3)

    def values(self, step: int, total: int) -> dict[str, float]:
        """The parameters that have a schedule, at optimiser step ``step`` of ``total``."""
        return self.schedules.values(step, total)

    def losses(self, step: int, total: int, overlap: Array | None = None) -> dict[str, am.Loss]:
        """The loss of each source of rows, ``{"any": …}`` where it is one.

        Args:
            step: optimiser step, from 0.
            total: of so many.
            overlap: of every token; for schedules that depend on it. Without it they are at no
                overlap.
        """
        return self.losses_at(self.values(step, total), overlap)

    def losses_at(
        self, values: Mapping[str, Any], overlap: Array | None = None
    ) -> dict[str, am.Loss]:
        """The same at these ``values`` of the parameters that have a schedule."""
        params = {**self.params, **values}
        for name, schedule in self.schedules.per_token.items():
            params[name] = schedule.from_overlap(0.0 if overlap is None else overlap)
        try:
            return self.method.losses(**params)
        except (TypeError, ValueError) as error:
            raise InputError(self._by_flag(str(error))) from error

    def _by_flag(self, problem: str) -> str:
        """A method's "gkd's beta must …" with the flag that gave beta."""
        owned = f"{self.method.name}'s "
        if not problem.startswith(owned):
            return f"--method {self.method.name}: {problem}"
        rest = problem.removeprefix(owned)
        name = rest.split(" ", 1)[0]
        if name in self.schedules.by_name:
            return f"--schedule {name}: over training, {rest}"
        if self.method.name == "amid" or name == "temperature":
            return f"--{rest}"
        return f"--method_kwargs: {problem}"

    def conventions(self) -> str:
        """The meaning of the parameters in a sentence: of those at the first step."""
        return self.method.convention(**{**self.params, **self.values(0, 2)})

    def describe(self) -> str:
        """The method and its parameters in a line."""
        shown = {**self.method.parameters, **self.params}
        for name, schedule in self.schedules.by_name.items():
            shown[name] = schedule.describe()
        listed = ", ".join(f"{name} = {_shown(value)}" for name, value in shown.items())
        return f"{self.method.name}({listed})"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
