"""The order of timing: all subjects of a shape in turn, several times over.

pytest-benchmark runs all rounds of one test in a row, so what changes while a machine warms up
would fall on some subjects only. Each subject is therefore a test in each of several *sweeps*,
every other one backwards, and ratios are taken within a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.subjects import Subject

Array = Any
BUDGET = 0.25  # seconds of rounds for a subject's phase in a sweep
MOST_ROUNDS = 10
SLOW = 0.5  # seconds from which a call is not worth warming up for


@dataclass(frozen=True)
class Trial:
    """One subject's phase in one sweep.

    Args:
        group: the table it belongs to, such as "dense 512 × 50,257, language".
        subject: who is measured.
        phase: a phase of :mod:`benchmarks.phases`.
        sweep: counted from 0.
        arrays: makes the inputs.
        info: what else the report is to know.
    """

    group: str
    subject: Subject
    phase: str
    sweep: int
    arrays: Callable[[], tuple[Array, ...]]
    info: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """The part of the key that sweeps have in common."""
        return self.group, self.subject.key, self.phase

    @property
    def id(self) -> str:
        """The name of the test."""
        return plain_name(f"{self.group}-{self.subject.key}-{self.phase}-sweep{self.sweep}")


def in_sweeps(
    group: str,
    subjects: Iterable[tuple[Subject, Iterable[str]]],
    arrays: Callable[[], tuple[Array, ...]],
    sweeps: int,
) -> Iterator[Trial]:
    """The trials of (subject, phases); one of every absent kind stays, to say so."""
    said: set[tuple[str, str]] = set()
    here: list[tuple[Subject, str]] = []
    for subject, phases in subjects:
        if not subject.absent:
            here += [(subject, phase) for phase in phases]
        elif (kind := (subject.name, subject.engine)) not in said:
            said.add(kind)
            yield Trial(group, subject, "both", 0, arrays)
    for sweep in range(sweeps):
        for subject, phase in here if sweep % 2 == 0 else reversed(here):
            yield Trial(group, subject, phase, sweep, arrays)


ASCII = str.maketrans({" ": "_", ",": "", "‖": "|", "α": "alpha", "é": "e", "²": "2", "×": "x"})


def plain_name(text: str) -> str:
    """A name that can be typed after -k."""
    return text.translate(ASCII)


def label(*shape: int) -> str:
    """A shape in words: 512 × 50,257."""
    return " × ".join(f"{n:,}" for n in shape)
