"""Figures of a run while it trains: the lines of metrics.jsonl, and those beside the bar."""

import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amidmath.integrations.common.storage.full_disk import append_line
from amidmath.integrations.common.storage.whole_files import staged_file
from amidmath.integrations.common.tasks.metrics import NAMES

TIME_FIELDS = frozenset(
    {
        *("seconds", "tokens_per_second", "memory_mb"),
        *("train_runtime", "train_samples_per_second", "train_steps_per_second"),
        *("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),
    }
)
"""The fields of metrics.jsonl that depend on the machine; all others are the same in every run."""

# What the bar shows beside the loss, when it is logged.
_LIVE = {"kl": "KL", "overlap": "overlap", "alpha": "α", "lam": "λ", "temperature": "T"}


class Clock:
    """The seconds that a run has trained; time between a break and going on does not count."""

    def __init__(self) -> None:
        """Start it; training starts it again."""
        self.start()

    def start(self) -> None:
        """From now on."""
        self.started = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": time.perf_counter() - self.started}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on counting from there."""
        self.started = time.perf_counter() - state["seconds"]

    def fields(self, logs: Mapping[str, Any], memory: int) -> dict[str, float]:
        """Seconds, tokens a second and memory, for a line of the log that has the other fields."""
        seconds = max(round(time.perf_counter() - self.started, 3), 0.001)
        found = {"seconds": seconds}
        if "num_tokens" in logs:
            found["tokens_per_second"] = round(logs["num_tokens"] / seconds, 1)
        return {**found, "memory_mb": round(memory / 1e6, 1)}


def resident_bytes() -> int:
    """The resident set of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the largest so far is what there is
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return pages * resource.getpagesize()


class MetricsFile:
    """A file of log lines, one JSON object each.

    The lines are a state: going on from a checkpoint, the file is put back to what it was then,
    whatever was written after.

    Args:
        path: the file.
        model: which model is being trained, "student" or "baseline".
    """

    def __init__(self, path: Path, model: str) -> None:
        """Remember where to write; only where ``is_writer`` is set, anything is."""
        self.path, self.model = path, model
        self.is_writer = False

    def state(self) -> dict[str, Any]:
        """All lines so far."""
        text = self.path.read_text("utf-8") if self.is_writer and self.path.exists() else ""
        return {"lines": text.splitlines()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put the file back."""
        if self.is_writer:
            with staged_file(self.path) as partial:
                partial.write_text("".join(f"{line}\n" for line in state["lines"]), "utf-8")

    def append(self, step: int, logs: Mapping[str, Any]) -> None:
        """Write one line; raises DiskFullError where there is no room."""
        if self.is_writer and logs:
            line = {"model": self.model, "step": step, **_plain(logs)}
            append_line(self.path, json.dumps(line))


def _plain(logs: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON, which has no infinity and no NaN: these become words."""
    odd = {k: str(v) for k, v in logs.items() if isinstance(v, float) and not math.isfinite(v)}
    return {**logs, **odd}


class LiveWords:
    """The words beside a bar: the newest figures, and scores of answers until there are others.

    Attributes:
        scores: of the newest answers, in words.
    """

    def __init__(self) -> None:
        """Without scores."""
        self.scores = ""

    def of(self, logs: Mapping[str, Any]) -> str | None:
        """The words for a line of the log; None where it changes nothing."""
        named = {f"eval_{name}": label for name, label in NAMES.items()}
        scores = [f", {label} {logs[k]:.1f}" for k, label in named.items() if k in logs]
        self.scores = "".join(scores) or self.scores
        return in_words(logs) + self.scores if "loss" in logs else None


def in_words(logs: Mapping[str, Any]) -> str:
    """The live figures of a log line."""
    words = [f"loss {float(logs['loss']):.4f}"]
    words += [f"{label} {float(logs[k]):.3g}" for k, label in _LIVE.items() if k in logs]
    if "tokens_per_second" in logs:
        words.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if "memory_mb" in logs:
        words.append(f"{logs['memory_mb'] / 1e3:.1f} GB")
    return ", ".join(words)
