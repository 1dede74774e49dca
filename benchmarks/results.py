"""The raw numbers of a run, read back from pytest-benchmark's JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Range:
    """A median, and the lowest and highest of what it is the median of."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Range:
        """Of at least one number."""
        listed = list(numbers)
        return cls(statistics.median(listed), min(listed), max(listed))


@dataclass(frozen=True)
class Timing:
    """All rounds of one phase of one subject, by sweep, in seconds."""

    group: str
    name: str
    engine: str
    computes: str
    phase: str
    main: bool
    info: dict[str, Any]
    sweeps: dict[int, list[float]] = field(default_factory=dict)

    @property
    def rounds(self) -> list[float]:
        """The rounds of all sweeps."""
        return [seconds for sweep in self.sweeps.values() for seconds in sweep]

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.rounds)

    @property
    def interquartile_range(self) -> float:
        """Of all rounds; 0 for a single one."""
        if len(self.rounds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return third - first

    def over(self, other: Timing) -> Range:
        """The ratio to another subject's time, sweep by sweep."""
        common = sorted(self.sweeps.keys() & other.sweeps.keys())
        return Range.of(
            statistics.median(self.sweeps[sweep]) / statistics.median(other.sweeps[sweep])
            for sweep in common
        )


class Results:
    """A run: timings by (group, name, engine, computes, phase), and the other measurements."""

    def __init__(self, path: Path) -> None:
        """Read a run's JSON."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        self.machine: str = raw["machine_info"]["words"]
        self.versions: dict[str, str] = raw["machine_info"]["versions"]
        self.absent: dict[str, str] = raw["absent"]
        self.sizes: str = raw["sizes"]
        self.sweeps: int = raw["sweeps"]
        self.timings: dict[tuple[str, str, str, str, str], Timing] = {}
        self.memory: list[dict[str, Any]] = []
        self.accuracy: list[dict[str, Any]] = []
        self.startup: dict[str, dict[str, list[float]]] = {}
        self.frameworks: list[str] | None = None
        for benchmark in raw["benchmarks"]:
            info, data = benchmark["extra_info"], benchmark["stats"]["data"]
            if info["kind"] == "time":
                self._add_timing(info, data)
            elif info["kind"] == "memory":
                self.memory.append(info)
            elif info["kind"] == "accuracy":
                self.accuracy.append(info)
            else:
                parts = self.startup.setdefault(info["name"], {"before": [], "whole": []})
                parts[info["part"]] += data
                self.frameworks = info.get("frameworks", self.frameworks)

    def _add_timing(self, info: dict[str, Any], data: list[float]) -> None:
        group, name, engine = info["group"], info["name"], info["engine"]
        computes, phase, main = info["computes"], info["phase"], info["main"]
        timing = self.timings.setdefault(
            (group, name, engine, computes, phase),
            Timing(group, name, engine, computes, phase, main, info),
        )
        timing.sweeps.setdefault(info["sweep"], []).extend(data)

    @property
    def complete(self) -> bool:
        """Whether every part of the benchmarks ran, at full size."""
        groups = {group.split()[0] for group in self.groups()}
        others = (self.memory, self.accuracy, self.startup)
        parts = {"dense", "linear", "scaling", "training", "JAX"}
        return self.sizes == "full" and groups == parts and all(others)

    def groups(self, start: str = "") -> list[str]:
        """The groups of timings whose name starts so, in order."""
        return list(dict.fromkeys(key[0] for key in self.timings if key[0].startswith(start)))

    def timing(
        self, group: str, name: str, engine: str, computes: str, phase: str = "both"
    ) -> Timing | None:
        """One timing; None if it was not taken."""
        return self.timings.get((group, name, engine, computes, phase))

    def select(self, group: str, phase: str = "both", **words: str) -> list[Timing]:
        """The timings of a group's phase, of those with the given name, engine, computes."""
        return [
            timing
            for timing in self.timings.values()
            if timing.group == group
            and timing.phase == phase
            and all(getattr(timing, word) == value for word, value in words.items())
        ]

    def start(self, name: str) -> Range | None:
        """Seconds that a program's second part adds, pair by pair."""
        parts = self.startup.get(name)
        if not parts or not parts["before"] or not parts["whole"]:
            return None
        return Range.of(w - b for b, w in zip(parts["before"], parts["whole"], strict=False))
