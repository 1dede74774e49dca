"""The figures of a run in JAX: their sums, where they go on, and who is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from amidmath.integrations.common.run.progress import MetricsFile
from amidmath.integrations.jax_loop.logs.log import Figures, RunLog


def test_the_mean_loss_begins_anew_and_the_tokens_do_not() -> None:
    figures = Figures()
    figures.add(2.0, 10, {"kl": 1.0})
    figures.add(4.0, 20, {"kl": 0.5, "overlap": 0.3})
    assert figures.mean_loss() == 3.0
    assert (figures.tokens, figures.last) == (30, {"kl": 0.5, "overlap": 0.3})
    figures.add(1.0, 5, {})
    assert figures.mean_loss() == 1.0
    assert (figures.tokens, figures.last) == (35, {})


def test_they_go_on_from_a_state() -> None:
    before, after = Figures(), Figures()
    before.add(2.0, 10, {"kl": 1.0})
    after.restore(json.loads(json.dumps(before.state())))
    for each in (before, after):
        each.add(4.0, 20, {"kl": 0.5})
    assert after == before
    assert after.mean_loss() == 3.0


class Told:
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def log(self, step: int, logs: dict[str, Any]) -> None:
        self.lines.append((step, logs))


def test_file_trackers_and_bar_are_told_of_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, told = RunLog(), Told()
    log.metrics, log.report = MetricsFile(tmp_path / "metrics.jsonl", "student"), told  # type: ignore[assignment]
    log.metrics.is_writer = True
    with log.bar(5, "distilling"):
        log.advance(3)
        log.line(3, {"loss": 0.25, "num_tokens": 100})
        shown = capsys.readouterr().err
    assert "3/5" in shown
    assert "loss 0.2500" in shown
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (line["model"], line["step"], line["loss"]) == ("student", 3, 0.25)
    assert {"seconds", "tokens_per_second", "memory_mb"} <= set(line)
    ((step, logs),) = told.lines
    assert step == 3
    assert logs["loss"] == 0.25
    log.line(4, {"loss": 0.5})  # after the bar is closed


def test_the_file_is_in_a_checkpoint_where_there_is_one(tmp_path: Path) -> None:
    log = RunLog()
    assert set(log.extra_states()) == {"figures", "clock"}
    log.metrics = MetricsFile(tmp_path / "metrics.jsonl", "student")
    assert set(log.extra_states()) == {"figures", "clock", "metrics"}
