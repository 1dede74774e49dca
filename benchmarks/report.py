"""Write a run as a page and a figure: ``python -m benchmarks.report results.json``.

They go next to the JSON, and to ``docs/`` too when ``--docs`` names it and the run was complete.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks import figures, inputs, peers, plot, training
from benchmarks.phases import PHASES
from benchmarks.results import Range, Results, Timing

PAGE, PICTURE = "benchmarks.md", "benchmarks.png"

INTRODUCTION = """\
# Benchmarks

Made by `make bench`; do not edit. {machine}. {versions}.

![Times and memory, side by side](figures/benchmarks.png)

**How it is measured.** Same inputs, float32, all cores, `OMP_WAIT_POLICY=passive`. pytest-benchmark
is the timer. After a warm-up each subject is timed in sweeps over all subjects, of which there were
{sweeps}, every other one backwards. Times are medians over all rounds with their interquartile
range; ratios are taken within a sweep and given as their median with the lowest and the highest.
"both" is the loss and its gradient; "value" evaluates the loss where nothing is differentiated;
"forward" and "backward" are the parts of "both" under torch's autograd. amidmath makes the gradient
in the forward pass and only scales it in the backward pass; JAX, NumPy and the reference, which is
the array core, give value and gradient in one call. Memory is the peak of the process above what it
held with its inputs made, in a process of its own for each subject. Errors are measured from the
plain form, its gradient in float64 and its value in extended precision.

**Inputs.** {inputs}. r is the assistant at λ = 0.1.
"""


def main() -> None:
    """Read the arguments, write the page and the figure, print the figures to reach."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="pytest-benchmark's JSON")
    parser.add_argument("--docs", type=Path, help="folder that a complete run is written to")
    arguments = parser.parse_args()
    results = Results(arguments.results)
    folder: Path = arguments.results.parent
    page, picture = folder / PAGE, folder / "figures" / PICTURE
    picture.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(results), encoding="utf-8")
    plot.draw(results, picture)
    print("\n".join(_figures(results)))
    if arguments.docs is None or not results.complete:
        why = "" if results.complete else " (not a complete run at full size: docs are left alone)"
        print(f"\n{page}, {picture}{why}")
        return
    (arguments.docs / "figures").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(page, arguments.docs / PAGE)
    shutil.copyfile(picture, arguments.docs / "figures" / PICTURE)
    print(f"\n{arguments.docs / PAGE}, {arguments.docs / 'figures' / PICTURE}")


def render(results: Results) -> str:
    """The page."""
    introduction = INTRODUCTION.format(
        machine=results.machine,
        versions=", ".join(f"{name} {version}" for name, version in results.versions.items()),
        sweeps=results.sweeps,
        inputs="; ".join(f"*{name}*: {words}" for name, words in inputs.LOGITS.items()),
    )
    parts = [
        introduction.splitlines(),
        ["## Figures to reach", "", *_figures(results)],
        *(_dense(results, group) for group in results.groups("dense")),
        *(_linear(results, group) for group in results.groups("linear")),
        *(_training(results, group) for group in results.groups("training")),
        *(_jax_steps(results, group) for group in results.groups("JAX step")),
        _memory(results),
        _accuracy(results),
        _scaling(results),
        _startup(results),
        _absent(results),
    ]
    return "\n\n".join("\n".join(part).strip() for part in parts if part) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table; words to the left, the rest to the right."""
    head, rows = list(head), [list(row) for row in rows]
    lines = [head, ["---" if i < 1 else "---:" for i in range(len(head))], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def number(value: float) -> str:
    """Three significant digits."""
    digits = 0 if value == 0 or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def interval(measured: Range, unit: str = "") -> str:
    """A median and what it lies in."""
    if measured.low == measured.high:
        return f"{number(measured.middle)}{unit}"
    low, high = number(measured.low), number(measured.high)
    return f"{number(measured.middle)}{unit} [{low}, {high}]"


def _figures(results: Results) -> list[str]:
    rows = []
    for figure in figures.of(results):
        worst = figure.worst
        shown = ("–", "–") if worst is None else (interval(worst[1], figure.unit), worst[0] or "–")
        target = f"<= {figure.limit:g}{figure.unit}"
        rows.append([figure.what, target, *shown, str(len(figure.measured)), figure.reached])
    return table(("figure", "target", "worst measured", "where", "of", "reached"), rows)


def _milliseconds(timing: Timing | None, spread: bool = False) -> str:
    if timing is None:
        return "–"
    median = number(1e3 * timing.median)
    return f"{median} ± {number(1e3 * timing.interquartile_range)}" if spread else median


def _dense(results: Results, group: str) -> list[str]:
    def row(timing: Timing, phases: Iterable[str]) -> list[str]:
        who = (timing.name, timing.engine, timing.computes)
        base = figures.reference(results, group, timing.engine)
        ratio = "–" if base is None else interval(timing.over(base))
        others = [_milliseconds(results.timing(group, *who, phase)) for phase in phases]
        return [", ".join(who), *others, _milliseconds(timing, spread=True), ratio]

    timings = sorted(results.select(group), key=lambda timing: timing.median)
    phases = [p for p in PHASES[:-1] if results.select(group, p)]
    units = [f"{phase}, ms" for phase in phases]
    head = ("", *units, "both, ms (median ± IQR)", "both over `F.kl_div`")
    main, more = ([t for t in timings if t.main is which] for which in (True, False))
    lines = [f"## Dense: {group.removeprefix('dense ')} logits", ""]
    lines += table(head, (row(timing, phases) for timing in main))
    if more:
        lines += ["", "More losses:", ""]
        lines += table((head[0], *head[-2:]), (row(timing, ()) for timing in more))
    return lines


def _linear(results: Results, group: str) -> list[str]:
    rows = []
    for timing in sorted(results.select(group), key=lambda timing: timing.median):
        base = results.timing(group, peers.MATMULS, timing.engine, peers.NO_LOSS)
        ratio = "–" if base is None else interval(timing.over(base))
        who = ", ".join((timing.name, timing.engine, timing.computes))
        rows.append([who, _milliseconds(timing, spread=True), ratio])
    return [
        f"## From hidden states: {group.removeprefix('linear ')} (tokens × hidden × vocabulary)",
        "",
        "Gradients of the student's hidden states and of its head. The bare matmuls are the four "
        "products that any such loss needs, in chunks of rows.",
        "",
        *table(("", "both, ms (median ± IQR)", "over the bare matmuls"), rows),
    ]


def _training(results: Results, group: str) -> list[str]:
    base = figures.cross_entropy(results, group)
    memory = {
        (entry["name"], entry["computes"]): entry["above_inputs"]
        for entry in results.memory
        if entry["group"] == group
    }
    rows = []
    for timing in sorted(results.select(group), key=lambda timing: timing.median):
        ratio = "–" if base is None else interval(timing.over(base))
        held = memory.get((timing.name, timing.computes))
        peak = "–" if held is None else f"{held / figures.MB:,.1f}"
        who = ", ".join((timing.name, timing.computes))
        best = number(1e3 * min(timing.rounds))
        rows.append([who, _milliseconds(timing, spread=True), best, ratio, peak])
    return [
        f"## Training step: {group.removeprefix('training ')}",
        "",
        f"{training.SHAPES[results.sizes].words()}. Random weights, and the embeddings, which are "
        "the head too, do not train. A step is the loss, its gradients and the teacher's forward "
        "pass, without the optimiser; one that is logged also estimates KL and overlap. Ratios "
        "are over the faster step of cross-entropy. Peaks are above the models' weights, "
        "gradients included.",
        "",
        *table(("", "ms (median ± IQR)", "least, ms", "over cross-entropy", "peak, MB"), rows),
    ]


def _jax_steps(results: Results, group: str) -> list[str]:
    base = figures.cross_entropy(results, group)
    rows = [
        [
            ", ".join((timing.name, timing.computes)),
            _milliseconds(timing, spread=True),
            number(1e3 * min(timing.rounds)),
            "–" if base is None else interval(timing.over(base)),
        ]
        for timing in sorted(results.select(group), key=lambda timing: timing.median)
    ]
    return [
        f"## Optimiser step in JAX: {group.removeprefix('JAX step ')}",
        "",
        "The same shapes as above, in Flax NNX, jitted, AdamW included. Beside cross-entropy the "
        "teacher's logits are made by a compiled function of their own.",
        "",
        *table(("", "ms (median ± IQR)", "least, ms", "over cross-entropy"), rows),
    ]


def _memory(results: Results) -> list[str]:
    if not results.memory:
        return []
    lines = ["## Memory"]
    for group in dict.fromkeys(entry["group"] for entry in results.memory):
        entries = [entry for entry in results.memory if entry["group"] == group]
        held = entries[0]
        lines += ["", f"{group}; the inputs are {held['inputs'] / figures.MB:,.1f} MB.", ""]
        rows = (
            [
                ", ".join((entry["name"], entry["engine"], entry["computes"])),
                f"{entry['outputs'] / figures.MB:,.1f}",
                f"{figures.above(entry) / figures.MB:,.1f}",
            ]
            for entry in sorted(entries, key=figures.above)
        )
        lines += table(("", "outputs, MB", "above inputs and outputs, MB"), rows)
    return lines


def _accuracy(results: Results) -> list[str]:
    if not results.accuracy:
        return []
    kinds = list(dict.fromkeys(entry["logits"] for entry in results.accuracy))
    errors: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {}
    for entry in results.accuracy:
        computes = entry["computes"] if entry["main"] else "worst of the other losses"
        key = (entry["name"], entry["engine"], computes)
        old = errors.setdefault(key, {}).get(entry["logits"], (0.0, 0.0))
        new = (entry["value_error"], entry["gradient_error"])
        errors[key][entry["logits"]] = (max(old[0], new[0]), max(old[1], new[1]))
    head = ["", *(f"{kind}: {what}" for kind in kinds for what in ("value", "gradient"))]
    rows = (
        [", ".join(key), *(f"{e:.0e}" for kind in kinds for e in of.get(kind, ()))]
        for key, of in errors.items()
    )
    rows_, vocabulary = results.accuracy[0]["shape"]
    return [
        "## Error",
        "",
        f"{rows_} × {vocabulary:,} logits, float32. Of the value: relative. Of the gradient: the "
        "largest, over the gradient's largest entry.",
        "",
        *table(head, rows),
    ]


def _scaling(results: Results) -> list[str]:
    lines: list[str] = []
    for axis in ("rows", "vocabulary"):
        costs = figures.per_element(results, axis)
        if not costs:
            continue
        points = [point for point, _, _ in next(iter(costs.values()))]
        rows = (
            [computes, *(number(1e9 * cost) for _, _, cost in line)]
            for computes, line in costs.items()
        )
        lines += ["", *table((f"ns an element, {axis}", *(f"{p:,}" for p in points)), rows)]
    note = (
        "Of the fastest round each. In place, the gradient is written over the student's logits; "
        "otherwise it is a new array, whose pages the system has to find and clear first."
    )
    return ["## Cost of an element", "", note, *lines] if lines else []


def _startup(results: Results) -> list[str]:
    rows = []
    for name in results.startup:
        added = results.start(name)
        if added is not None:
            rows.append([name, interval(Range(*(1e3 * s for s in _ordered(added))))])
    if not rows:
        return []
    note = (
        "What it adds to a process that has made the other imports, has its inputs ready, or has "
        "made the first call; medians of pairs. A first call loads the compiler and compiles the "
        "loss, for another loss it is compiled again. torch on the CPU has NumPy's kernels."
    )
    return ["## Startup", "", note, "", *table(("", "ms"), rows)]


def _ordered(measured: Range) -> tuple[float, float, float]:
    return measured.middle, measured.low, measured.high


def _absent(results: Results) -> list[str]:
    if not results.absent:
        return []
    reasons: dict[str, list[str]] = {}
    for who, reason in results.absent.items():
        reasons.setdefault(reason, []).append(who)
    lines = [f"- {reason}: {', '.join(who)}." for reason, who in reasons.items()]
    return ["## Not measured in this run", "", *lines]


if __name__ == "__main__":
    main()
