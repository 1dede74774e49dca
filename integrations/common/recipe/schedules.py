"""Schedules of a loss's parameters, as ``--schedule`` gives them: ``lam=cosine:0.1:0.9``."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.recipe.schedule_base import Schedule as Schedule
from amidmath.integrations.common.recipe.schedule_base import State, StepSchedule
from amidmath.integrations.common.recipe.schedule_kinds import (
    Constant,
    Cosine,
    Linear,
    Overlap,
    OverlapToken,
    Taid,
)

KINDS: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "taid": Taid,
    "overlap": Overlap,
    "overlap_token": OverlapToken,
}


def usage(kind: str) -> str:
    """How a kind is written: ``overlap:LOW:HIGH[:DECAY]``."""
    arguments = _arguments(KINDS[kind])
    needed = [f":{argument.name.upper()}" for argument in arguments if _is_needed(argument)]
    others = [f"[:{argument.name.upper()}" for argument in arguments if not _is_needed(argument)]
    return kind + "".join(needed + others) + "]" * len(others)


def parse_schedule(text: str) -> tuple[str, Schedule]:
    """Read ``NAME=KIND:NUMBER:...``.

    Args:
        text: As given to ``--schedule``, for instance ``"lam=cosine:0.1:0.9"``.

    Returns:
        The parameter's name and its schedule.

    Raises:
        InputError: it is not written like that, there is no such kind, or its numbers do not fit.
    """
    name, equals, what = (part.strip() for part in text.partition("="))
    kind, *words = (word.strip() for word in what.split(":"))
    kinds = ", ".join(usage(known) for known in KINDS)
    if not (name and equals and what):
        raise InputError(
            f"--schedule {text!r}: write PARAMETER=KIND:NUMBER:..., for instance "
            f"lam=cosine:0.1:0.9; the kinds are {kinds}"
        )
    if kind not in KINDS:
        raise InputError(f"--schedule {text!r}: there is no kind {kind!r}; the kinds are {kinds}")
    arguments = _arguments(KINDS[kind])
    needed = sum(map(_is_needed, arguments))
    if not needed <= len(words) <= len(arguments):
        count = str(needed) if needed == len(arguments) else f"{needed} to {len(arguments)}"
        raise InputError(
            f"--schedule {text!r}: {kind} takes {count} numbers, got {len(words)}; "
            f"write {name}={usage(kind)}"
        )
    try:
        return name, KINDS[kind](*(_number(word) for word in words))
    except InputError as error:
        raise InputError(f"--schedule {text!r}: {error}; write {name}={usage(kind)}") from error


@dataclass
class Schedules:
    """The schedules of a loss's parameters, by the parameter's name."""

    by_name: dict[str, Schedule] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Sequence[str], parameters: Sequence[str]) -> "Schedules":
        """Read every ``--schedule`` of a run.

        Args:
            texts: What ``parse_schedule`` reads, one schedule each.
            parameters: The names that the loss has.

        Raises:
            InputError: a text that cannot be read, a name that the loss lacks, or one given twice.
        """
        found: dict[str, Schedule] = {}
        for text in texts:
            name, schedule = parse_schedule(text)
            if name not in parameters:
                raise InputError(
                    f"--schedule {text!r}: the loss has no parameter {name!r}; "
                    f"it has {', '.join(parameters) or 'none to schedule'}"
                )
            if name in found:
                raise InputError(f"--schedule {text!r}: {name} has a schedule already; give one")
            found[name] = schedule
        return cls(found)

    @property
    def needs_overlap(self) -> bool:
        """Whether ``observe`` must be told the mean overlap of each step."""
        return any(schedule.needs_overlap for schedule in self.by_name.values())

    @property
    def observes(self) -> bool:
        """Whether ``observe`` makes a difference to any of them."""
        return any(type(s).observe is not Schedule.observe for s in self.by_name.values())

    @property
    def per_token(self) -> dict[str, OverlapToken]:
        """The schedules that ``values`` leaves out: the loss calls ``from_overlap``."""
        return {n: s for n, s in self.by_name.items() if isinstance(s, OverlapToken)}

    def values(self, step: int, total: int) -> dict[str, float]:
        """Every parameter that has one value at optimiser step ``step``, counted from 0."""
        return {
            name: schedule.value(step, total)
            for name, schedule in self.by_name.items()
            if isinstance(schedule, StepSchedule)
        }

    def observe(self, statistics: Mapping[str, float]) -> None:
        """Tell every schedule of an optimiser step, once each; see ``Schedule.observe``."""
        for schedule in self.by_name.values():
            schedule.observe(statistics)

    def state(self) -> dict[str, State]:
        """The state of every schedule, by name, for JSON."""
        return {name: schedule.state() for name, schedule in self.by_name.items()}

    def restore(self, state: Mapping[str, Mapping[str, float | int]]) -> None:
        """Go on from a ``state()``.

        Raises:
            InputError: it is the state of other schedules.
        """
        if set(state) != set(self.by_name):
            raise InputError(
                f"--schedule: the checkpoint has schedules of {_listed(state)}, this run of "
                f"{_listed(self.by_name)}; give those of the checkpoint"
            )
        for name, schedule in self.by_name.items():
            try:
                schedule.restore(state[name])
            except InputError as error:
                raise InputError(f"--schedule {name}: {error}") from error

    def describe(self) -> str:
        """All schedules in words."""
        return "; ".join(f"{name}: {s.describe()}" for name, s in self.by_name.items())


def _arguments(kind: type[Schedule]) -> list["Field[Any]"]:
    return [argument for argument in fields(kind) if argument.init]  # type: ignore[arg-type]


def _is_needed(argument: "Field[Any]") -> bool:
    return argument.default is MISSING


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise InputError(f"{word!r} is not a number") from error


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "nothing"
