"""The picture of a run is made of whatever was logged."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from amidmath.integrations.common.run.plots import _running_mean, plot

RESULTS = {
    "teacher": {"kl": 0.0, "agreement": 1.0, "perplexity": 8.1, "tokens": 900},
    "student before": {"kl": 2.4, "agreement": 0.31, "perplexity": math.inf, "tokens": 900},
    "student after": {"kl": 0.31, "agreement": 0.74, "perplexity": 12.6, "tokens": 900},
}


def log(steps: int, **more: Any) -> list[dict[str, Any]]:
    """Log lines as the trainer writes them."""
    rng = np.random.default_rng(0)
    return [
        {
            "model": "student",
            "step": i,
            "loss": 2 * math.exp(-3 * i / steps) + 0.1 * rng.random(),
            "learning_rate": 1e-3 * (1 - i / steps),
            **{name: function(i / steps) for name, function in more.items()},
        }
        for i in range(1, steps + 1)
    ]


@pytest.mark.parametrize("steps", [1, 3, 3000])
def test_any_number_of_points(tmp_path: Path, steps: int) -> None:
    lines = log(
        steps,
        kl=lambda t: 1 - t / 2,
        overlap=lambda t: t,
        lam=lambda t: t,
        alpha=lambda t: -1 + 2 * t,
    )
    lines.append({"model": "student", "step": steps, "eval_loss": 0.3})
    plot(tmp_path / "curves.png", lines, RESULTS, "amid(alpha=-1, lam=0.1)")
    small, large = _sizes(tmp_path, log(steps)), image.imread(tmp_path / "curves.png").shape
    assert large[0] > small[0]
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".partial")] == []


def _sizes(folder: Path, lines: list[dict[str, Any]]) -> tuple[int, ...]:
    plot(folder / "small.png", lines, {}, "loss alone")
    return tuple(image.imread(folder / "small.png").shape)


def test_values_that_are_no_number_leave_a_gap(tmp_path: Path) -> None:
    lines = log(5)
    lines[2]["loss"] = "nan"
    lines[3]["loss"] = "inf"
    plot(tmp_path / "curves.png", lines, RESULTS, "gaps")
    assert image.imread(tmp_path / "curves.png").std() > 0


def test_nothing_logged_and_no_results(tmp_path: Path) -> None:
    plot(tmp_path / "curves.png", [], {}, "nothing")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_running_mean() -> None:
    assert _running_mean([1.0, 3.0, 5.0, 7.0], 1) == [2.0, 3.0, 5.0, 6.0]
    assert _running_mean([1.0, math.inf, 5.0], 1) == [1.0, 3.0, 5.0]
