"""The contract of every schedule of a loss's parameter."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, TypeAlias

from amidmath.integrations.common.errors import InputError

State: TypeAlias = dict[str, float | int]


class Schedule(ABC):
    """One parameter over training: a number for each step, or one for each token.

    Attributes:
        per_token: The loss computes the parameter itself, with ``from_overlap``.
        needs_overlap: ``observe`` reads the mean overlap of the step.
    """

    per_token: ClassVar[bool] = False
    needs_overlap: ClassVar[bool] = False

    def observe(self, statistics: Mapping[str, float]) -> None:  # noqa: B027
        """Take note of an optimiser step, once each, after it.

        Args:
            statistics: ``"loss"``, the mean training loss of that step over all processes, and,
                for a schedule that needs it, ``"overlap"``, the mean overlap over all processes.
        """

    def state(self) -> State:
        """The numbers learned from the steps so far, which JSON keeps exactly."""
        return {}

    def restore(self, state: Mapping[str, float | int]) -> None:
        """Go on from a ``state()``.

        Raises:
            InputError: it is not the state of a schedule of this kind.
        """
        check_state(state, needed=())

    @abstractmethod
    def describe(self) -> str:
        """The schedule in words."""


class StepSchedule(Schedule):
    """A schedule that gives a number for each optimiser step."""

    @abstractmethod
    def value(self, step: int, total: int) -> float:
        """The parameter at optimiser step ``step``, counted from 0, of ``total``."""


def check_finite(**values: float) -> None:
    """Raise InputError unless every named argument is finite."""
    for name, value in values.items():
        check_range(name.upper(), value, "a finite number", math.isfinite(value))


def check_range(name: str, value: float, wanted: str, holds: bool) -> None:
    """Raise InputError with what was wanted unless it holds."""
    if not holds:
        raise InputError(f"{name} must be {wanted}, got {value:g}")


def check_state(
    state: Mapping[str, float | int], *, needed: tuple[str, ...], possible: tuple[str, ...] = ()
) -> None:
    """Raise InputError unless the state has these entries, each a finite number."""
    keys = set(state)
    if not set(needed) <= keys <= {*needed, *possible}:
        wanted = ", ".join((*needed, *(f"[{name}]" for name in possible))) or "nothing"
        raise InputError(
            f"the saved state is that of another kind of schedule: it holds "
            f"{', '.join(sorted(keys)) or 'nothing'}, expected {wanted}"
        )
    for name, value in state.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise InputError(f"the saved state's {name} must be a finite number, got {value!r}")
