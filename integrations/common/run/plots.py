"""The curves of a run, and its results, in one picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from amidmath.integrations.common.storage.whole_files import staged_file
from amidmath.integrations.common.tasks.metrics import NAMES

# Panels over the steps, each with the fields of the log lines that it draws.
_PANELS = {
    "loss (nats a token)": {"loss": "training", "eval_loss": "held-out"},
    "KL to the teacher (nats a token)": {"kl": "training", "eval_kl": "held-out"},
    "overlap": {"overlap": "Σ min(p, q)"},
    "answers' scores (%)": {f"eval_{name}": label for name, label in NAMES.items()},
    "mass outside of common tokens": {
        "outside_teacher": "teacher",
        "outside_student": "student",
    },
    "learning rate": {"learning_rate": "learning rate"},
}
_SCHEDULED = {"alpha": "α", "lam": "λ", "temperature": "T"}
_BARS = {"kl": "KL to teacher (nats)", "agreement": "top-1 agreement", "perplexity": "perplexity"}
_BARS |= {name: f"{label} (%)" for name, label in NAMES.items()}

# From so many points on, single ones are not marked, and a running mean over 1/50 of
# them is drawn too.
_MANY = 100
_COLUMNS = 4


def plot(
    path: Path,
    lines: Sequence[Mapping[str, Any]],
    results: Mapping[str, Mapping[str, float]],
    title: str,
) -> None:
    """Draw the student's log lines and the results.

    A panel for which nothing was logged is left out.

    Args:
        path: of the PNG, which is replaced whole.
        lines: of metrics.jsonl.
        results: figures by model, as in results.json.
        title: above all.
    """
    steps = [line for line in lines if line.get("model") == "student"]
    panels = {name: _present(fields, steps) for name, fields in _PANELS.items()}
    # Each scheduled parameter has its own range.
    panels |= {label: _present({name: label}, steps) for name, label in _SCHEDULED.items()}
    panels = {name: curves for name, curves in panels.items() if curves}
    bars = {k: v for k, v in _BARS.items() if any(k in values for values in results.values())}
    count = len(panels) + len(bars)
    rows = max(1, math.ceil(count / _COLUMNS))
    columns = max(1, math.ceil(count / rows))
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(3.6 * columns, 2.9 * rows + 0.4),
        layout="constrained",
        squeeze=False,
    )
    figure.suptitle(title, fontsize=11, wrap=True)
    places = iter(grid.flat)
    for name, curves in panels.items():
        _draw_curves(next(places), name, curves)
    for field, label in bars.items():
        _draw_bars(next(places), field, label, results)
    for axes in places:
        axes.set_visible(False)
    with staged_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    plt.close(figure)


Curves = dict[str, tuple[list[int], list[float]]]


def _present(fields: Mapping[str, str], lines: Sequence[Mapping[str, Any]]) -> Curves:
    """Steps and values of the fields that were logged; values that are no number leave a gap."""
    found: Curves = {}
    for name, label in fields.items():
        points = [(int(line["step"]), float(line[name])) for line in lines if name in line]
        if points:
            found[label] = ([step for step, _ in points], [value for _, value in points])
    return found


def _draw_curves(axes: Any, name: str, curves: Curves) -> None:
    for number, (label, (steps, values)) in enumerate(curves.items()):
        many = len(steps) > _MANY
        style = {"lw": 0.5, "alpha": 0.45} if many else {"marker": ".", "lw": 1.2}
        axes.plot(steps, values, color=f"C{number}", label=None if many else label, **style)
        if many:
            mean = _running_mean(values, len(values) // 100)
            axes.plot(steps, mean, color=f"C{number}", lw=1.6, label=label)
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("optimiser step", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=8)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Means over ``width`` values to either side, fewer at the ends; finite ones only."""
    means = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - width) : i + width + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _draw_bars(
    axes: Any, field: str, label: str, results: Mapping[str, Mapping[str, float]]
) -> None:
    values = {name: float(v[field]) for name, v in results.items() if field in v}
    # A perplexity without bound is drawn above all others.
    top = 10.0 * max([1.0, *(value for value in values.values() if math.isfinite(value))])
    heights = [min(value, top) for value in values.values()]
    drawn = axes.bar(list(values), heights, color=[f"C{i}" for i in range(len(values))])
    axes.bar_label(drawn, [f"{value:.3g}" for value in values.values()], fontsize=8)
    axes.set_title(label, fontsize=10)
    axes.tick_params(axis="x", labelrotation=30, labelsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.15)
    if field == "perplexity":
        axes.set_yscale("log")
