"""The kinds of schedule: how one parameter of a loss changes over training.

Whether the values suit the parameter (λ in [0, 1], a positive temperature) is for the loss to say;
here a schedule's own arguments are checked.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from amidmath.arrays.annotations import Array
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.schedule_base import (
    Schedule,
    State,
    StepSchedule,
    check_finite,
    check_range,
    check_state,
)


@dataclass
class Constant(StepSchedule):
    """The value V throughout; an α may be infinite."""

    v: float

    def __post_init__(self) -> None:
        """Check the value."""
        if math.isnan(self.v):
            raise InputError("V must be a number, got nan")

    def value(self, step: int, total: int) -> float:
        """The value."""
        return self.v

    def describe(self) -> str:
        """The schedule in words."""
        return f"{self.v:g}"


@dataclass
class Linear(StepSchedule):
    """A straight line: START at the first step, END at the last."""

    start: float
    end: float

    def __post_init__(self) -> None:
        """Check the ends."""
        check_finite(start=self.start, end=self.end)

    def value(self, step: int, total: int) -> float:
        """START at step 0 (also when it is the only one), END from step ``total - 1`` on."""
        return float(_between(self.start, self.end, _share(step, total)))

    def describe(self) -> str:
        """The schedule in words."""
        return f"linear from {self.start:g} to {self.end:g}"


@dataclass
class Cosine(StepSchedule):
    """Half a cosine wave from START to END: slow, fast, slow."""

    start: float
    end: float

    def __post_init__(self) -> None:
        """Check the ends."""
        check_finite(start=self.start, end=self.end)

    def value(self, step: int, total: int) -> float:
        """START at step 0 (also when it is the only one), END from step ``total - 1`` on."""
        done = (1.0 - math.cos(math.pi * _share(step, total))) / 2.0
        return float(_between(self.start, self.end, done))

    def describe(self) -> str:
        """The schedule in words."""
        return f"cosine from {self.start:g} to {self.end:g}"


@dataclass
class Taid(StepSchedule):
    """TAID's adaptive t (Shing et al., 2025): a linear floor, passed while the loss falls.

    After optimiser step n of N, with mean loss L_n,

        δ = (L_{n-1} - L_n) / (L_{n-1} + 1e-15),   m ← βm + (1-β)δ,
        t ← min(END, max(START + (END-START) n/N, t + A sigmoid(m) (1-t))).

    Steps are counted from 0, and the first one only sets L. The authors' code updates t in every
    forward pass, so once for each micro-batch and held-out batch, and from the loss of one process;
    here it is once an optimiser step, from the loss of all. A loss that is negative or not finite
    tells nothing of a relative change: it leaves m and L alone, and t keeps to the floor.
    """

    start: float = 0.4
    end: float = 1.0
    a: float = 5e-4
    beta: float = 0.99
    _t: float = field(init=False, repr=False)
    _momentum: float = field(default=0.0, init=False, repr=False)
    _previous: float | None = field(default=None, init=False, repr=False)
    _observed: int = field(default=0, init=False, repr=False)
    _total: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arguments; t begins at START."""
        check_range("START", self.start, "in [0, 1)", 0.0 <= self.start < 1.0)
        check_range("END", self.end, "in (0, 1]", 0.0 < self.end <= 1.0)
        check_range("END", self.end, f"at least START, {self.start:g}", self.start <= self.end)
        check_range("A", self.a, "in [0, 1]", 0.0 <= self.a <= 1.0)
        check_range("BETA", self.beta, "in [0, 1)", 0.0 <= self.beta < 1.0)
        self._t = self.start

    def value(self, step: int, total: int) -> float:
        """The t in use, which depends on the steps observed and not on ``step``."""
        self._total = total
        return self._t

    def observe(self, statistics: Mapping[str, float]) -> None:
        """Update t from the step's mean loss; ``value`` has been asked for before.

        Raises:
            RuntimeError: it has not, so the number of steps is not known.
        """
        if self._total is None:
            raise RuntimeError("TAID's t: ask for value(step, total) before observe(statistics)")
        loss, step = float(statistics["loss"]), self._observed
        self._observed += 1
        usable = 0.0 <= loss < math.inf
        grown = self._t
        if usable and self._previous is not None:
            change = (self._previous - loss) / (self._previous + 1e-15)
            self._momentum = self.beta * self._momentum + (1.0 - self.beta) * change
            grown += self.a * _sigmoid(self._momentum) * (1.0 - self._t)
        if usable:
            self._previous = loss
        floor = self.start + (self.end - self.start) * step / self._total
        self._t = min(self.end, max(floor, grown))

    def state(self) -> State:
        """t, the momentum, the previous loss and the counts."""
        state: State = {"t": self._t, "momentum": self._momentum, "observed": self._observed}
        if self._previous is not None:
            state["previous"] = self._previous
        if self._total is not None:
            state["total"] = self._total
        return state

    def restore(self, state: Mapping[str, float | int]) -> None:
        """Go on from a ``state()``."""
        check_state(state, needed=("t", "momentum", "observed"), possible=("previous", "total"))
        self._t, self._momentum = float(state["t"]), float(state["momentum"])
        self._observed = int(state["observed"])
        self._previous = float(state["previous"]) if "previous" in state else None
        self._total = int(state["total"]) if "total" in state else None

    def describe(self) -> str:
        """The schedule in words."""
        return (
            f"TAID's adaptive t from {self.start:g} to {self.end:g} "
            f"(a = {self.a:g}, beta = {self.beta:g})"
        )


@dataclass
class Overlap(StepSchedule):
    """Adaptive by overlap, one value a step: LOW + (HIGH - LOW) o.

    o in [0, 1] is the mean of Σ min(p, q) over the tokens of the last step; with a DECAY d it is
    the moving average o ← d o + (1-d) o_n, which begins at the first o_n. Before the first step
    nothing is known of the overlap and LOW is used, as if there were none: for α that is the side
    on which a mixture keeps the union of both supports, where α >= 1 sees their intersection only.
    LOW may exceed HIGH. An overlap that is not finite (a step without tokens) is left out.
    """

    needs_overlap: ClassVar[bool] = True

    low: float
    high: float
    decay: float = 0.0
    _average: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_finite(low=self.low, high=self.high)
        check_range("DECAY", self.decay, "in [0, 1)", 0.0 <= self.decay < 1.0)

    def value(self, step: int, total: int) -> float:
        """The value for the overlap seen so far."""
        return float(_between(self.low, self.high, self._average or 0.0))

    def observe(self, statistics: Mapping[str, float]) -> None:
        """Update the average with the step's mean overlap."""
        overlap = float(statistics["overlap"])
        if not math.isfinite(overlap):
            return
        overlap = min(max(overlap, 0.0), 1.0)  # a sum of probabilities, rounded
        before = overlap if self._average is None else self._average
        self._average = self.decay * before + (1.0 - self.decay) * overlap

    def state(self) -> State:
        """The average, once there is one."""
        return {} if self._average is None else {"average": self._average}

    def restore(self, state: Mapping[str, float | int]) -> None:
        """Go on from a ``state()``."""
        check_state(state, needed=(), possible=("average",))
        self._average = float(state["average"]) if "average" in state else None

    def describe(self) -> str:
        """The schedule in words."""
        smooth = f", moving average with decay {self.decay:g}" if self.decay else ""
        return f"{self.low:g} at no overlap to {self.high:g} at full overlap, per batch{smooth}"


@dataclass
class OverlapToken(Schedule):
    """Adaptive by overlap, one value a token: LOW + (HIGH - LOW) o with the token's own o."""

    per_token: ClassVar[bool] = True

    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the ends."""
        check_finite(low=self.low, high=self.high)

    def from_overlap(self, overlap: Array) -> Array:
        """The parameter for each overlap in [0, 1], in an array of any library.

        Exact at 0 and 1, and never outside [0, 1] if LOW and HIGH are not.
        """
        return _between(self.low, self.high, overlap)

    def describe(self) -> str:
        """The schedule in words."""
        return f"{self.low:g} at no overlap to {self.high:g} at full overlap, per token"


def _share(step: int, total: int) -> float:
    """How much of the way from the first step to the last is done, in [0, 1]."""
    return min(step / (total - 1), 1.0) if total > 1 else 0.0


def _between(low: float, high: float, share: Any) -> Any:
    """Exact at both ends, which low + (high - low) * share is not."""
    return low * (1.0 - share) + high * share


def _sigmoid(x: float) -> float:
    power = math.exp(-abs(x))
    return 1.0 / (1.0 + power) if x >= 0.0 else power / (1.0 + power)
