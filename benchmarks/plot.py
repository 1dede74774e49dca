"""The figure: times over F.kl_div and over the bare matmuls, memory, cost of an element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from benchmarks import figures, peers
from benchmarks.results import Results
from benchmarks.subjects import OURS

BLUE, GREY, RED = "#2563a8", "#9aa3ad", "#b3432b"
Bars = list[tuple[str, str, float]]


def draw(results: Results, path: Path) -> None:
    """Draw what the run has of it."""
    groups = [group for group in results.groups("dense") if group.endswith("language")]
    panels: list[tuple[str, Bars, str, float | None]]
    panels = [(_dense_title(g), _dense(results, g), "over F.kl_div", 0.17) for g in groups[:1]]
    for group in results.groups("linear"):
        panels.append((group, _linear(results, group), "over the bare matmuls", 1.15))
    for group, limit in _memory_groups(results):
        bars = _memory(results, group)
        panels.append((f"memory, {group}", bars, "MB above inputs and outputs", limit))
    panels = [panel for panel in panels if panel[1]]
    lines = {axis: figures.per_element(results, axis) for axis in ("rows", "vocabulary")}
    lines = {axis: line for axis, line in lines.items() if line}
    count = len(panels) + bool(lines)
    if count == 0:
        return
    most = max((len(panel[1]) for panel in panels), default=8)
    columns = 2 if count > 1 else 1
    size = (8.5 * columns, (0.3 * most + 1.4) * ((count + 1) // columns))
    figure, axes = pyplot.subplots(
        -(-count // columns), columns, figsize=size, squeeze=False, layout="constrained"
    )
    flat = list(axes.flat)
    for axis, panel in zip(flat, panels, strict=False):
        _bars(axis, *panel)
    if lines:
        _flatness(flat[len(panels)], lines)
    for axis in flat[count:]:
        axis.set_visible(False)
    figure.suptitle(f"Loss and gradient, side by side: {results.machine}", fontsize=11)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _dense_title(group: str) -> str:
    return f"{group.removeprefix('dense ')} logits"


def _dense(results: Results, group: str) -> Bars:
    bars: Bars = []
    for timing in results.select(group):
        base = figures.reference(results, group, timing.engine)
        if timing.main and base is not None:
            who = f"{timing.name}, {timing.engine}: {timing.computes}"
            bars.append((who, timing.name, timing.over(base).middle))
    return bars


def _linear(results: Results, group: str) -> Bars:
    bars: Bars = []
    for timing in results.select(group):
        base = results.timing(group, peers.MATMULS, timing.engine, peers.NO_LOSS)
        if base is not None:
            who = f"{timing.name}, {timing.engine}: {timing.computes}"
            bars.append((who, timing.name, timing.over(base).middle))
    return bars


def _memory_groups(results: Results) -> list[tuple[str, float | None]]:
    groups = dict.fromkeys(entry["group"] for entry in results.memory)
    return [(group, 192.0 if group.startswith("linear") else None) for group in groups]


def _memory(results: Results, group: str) -> Bars:
    return [
        (
            f"{entry['name']}, {entry['engine']}: {entry['computes']}",
            entry["name"],
            figures.above(entry) / figures.MB,
        )
        for entry in results.memory
        if entry["group"] == group
    ]


def _bars(axis: Any, title: str, bars: Bars, unit: str, limit: float | None) -> None:
    ordered = sorted(bars, key=lambda bar: -bar[2])
    values = [value for _, _, value in ordered]
    colours = [BLUE if name.startswith(OURS) else GREY for _, name, _ in ordered]
    least = max(values) / 2000  # what is next to nothing still has a place on a logarithmic axis
    widths = [max(value, least) for value in values]
    drawn = axis.barh([who for who, _, _ in ordered], widths, color=colours, height=0.7)
    axis.bar_label(drawn, [_short(value) for value in values], padding=3, fontsize=8)
    axis.set_xscale("log")
    axis.set_xlim(min([*widths, limit or widths[0]]) / 2, max(widths) * 2)
    if limit is not None:
        axis.axvline(limit, color=RED, linewidth=1, linestyle="--", label=f"target {limit:g}")
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(unit, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.margins(y=0.02)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.05 else "0"


def _flatness(axis: Any, lines: dict[str, dict[str, list[tuple[int, Any, float]]]]) -> None:
    for by, losses in lines.items():
        for colour, (computes, line) in zip((BLUE, RED), losses.items(), strict=False):
            axis.plot(
                [point for point, _, _ in line],
                [1e9 * cost for _, _, cost in line],
                marker="o" if by == "rows" else "s",
                linestyle="-" if by == "rows" else "--",
                color=colour,
                label=f"{computes}, by {by}",
            )
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_title("amidmath, torch CPU: cost of an element", fontsize=10)
    axis.set_xlabel("rows, or vocabulary", fontsize=9)
    axis.set_ylabel("ns", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
