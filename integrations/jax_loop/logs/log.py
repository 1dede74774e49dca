"""The figures of a run while it trains: their sums, metrics.jsonl, trackers and the bar."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
from tqdm.auto import tqdm

from amidmath.integrations.common.run.checkpoints import ExtraState
from amidmath.integrations.common.run.progress import Clock, LiveWords, MetricsFile, resident_bytes
from amidmath.integrations.jax_loop.logs.trackers import Report


@dataclass
class Figures:
    """The sums behind the lines of the log."""

    loss_sum: float = 0.0
    steps: int = 0
    tokens: int = 0
    last: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, tokens: int, last: Mapping[str, float]) -> None:
        """Take in an optimiser step.

        Args:
            loss: its mean.
            tokens: how many its rows have, padding left out.
            last: figures of which the newest is logged.
        """
        self.loss_sum += loss
        self.steps += 1
        self.tokens += tokens
        self.last = dict(last)

    def mean_loss(self) -> float:
        """The mean loss of the steps since this was last called."""
        mean = self.loss_sum / self.steps
        self.loss_sum, self.steps = 0.0, 0
        return mean

    def state(self) -> dict[str, Any]:
        """All of them."""
        return {
            "loss_sum": self.loss_sum,
            "steps": self.steps,
            "tokens": self.tokens,
            "last": dict(self.last),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on adding to them."""
        self.loss_sum, self.steps = state["loss_sum"], state["steps"]
        self.tokens, self.last = state["tokens"], dict(state["last"])


class RunLog:
    """Everyone who is told of a run's figures.

    Attributes:
        clock: of the training.
        figures: the sums behind the lines.
        metrics: the file of lines, if there is one.
        report: the trackers, if there are some.
    """

    def __init__(self) -> None:
        self.clock, self.figures = Clock(), Figures()
        self.metrics: MetricsFile | None = None
        self.report: Report | None = None
        self._words = LiveWords()
        self._bar: Any = None

    def line(self, step: int, logs: dict[str, Any]) -> None:
        """Write a line, with time and memory added to it, and show it beside the bar."""
        logs |= self.clock.fields(logs, memory_in_use())
        if self.metrics is not None:
            self.metrics.append(step, logs)
        if self.report is not None:
            self.report.log(step, logs)
        words = self._words.of(logs)
        if self._bar is not None and words is not None:
            self._bar.set_postfix_str(words)

    def advance(self, step: int) -> None:
        """Move the bar to a step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    @contextmanager
    def bar(self, total: int, title: str, hidden: bool = False) -> Iterator[None]:
        """A bar of ``total`` steps, with the figures that are logged, while the block runs."""
        self._bar = tqdm(total=total, desc=title, unit="step", dynamic_ncols=True, disable=hidden)
        try:
            yield
        finally:
            self._bar.close()
            self._bar = None

    def extra_states(self) -> dict[str, ExtraState]:
        """The states that belong in a checkpoint."""
        states: dict[str, ExtraState] = {"figures": self.figures, "clock": self.clock}
        if self.metrics is not None:
            states["metrics"] = self.metrics
        return states


def memory_in_use() -> int:
    """Bytes: allocated on the first device where it says so, or the resident set."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_in_use" in statistics:
        return int(statistics["bytes_in_use"])
    return resident_bytes()
