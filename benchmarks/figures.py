"""The figures to reach, each with what this run measured of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import peers, training, training_jax
from benchmarks.cases import DIVERGENCES, PLAIN_KL
from benchmarks.results import Range, Results, Timing
from benchmarks.subjects import IN_PLACE, OURS

LINEAR = f"{OURS} linear"
CPU = ("torch CPU", "NumPy")
MB = 1e6


@dataclass(frozen=True)
class Figure:
    """A target, and the measurements that it is judged by: the worst of them.

    Args:
        what: what is to be reached.
        limit: what the worst measurement may be.
        unit: behind the limit and the measurements.
        measured: (subject, measurement), as many as the run has; none if it has none.
    """

    what: str
    limit: float
    unit: str
    measured: tuple[tuple[str, Range], ...]

    @property
    def worst(self) -> tuple[str, Range] | None:
        """The measurement farthest from the target."""
        return max(self.measured, key=lambda pair: pair[1].middle, default=None)

    @property
    def reached(self) -> str:
        """Yes, no, or not measured."""
        if self.worst is None:
            return "not measured"
        return "yes" if self.worst[1].middle <= self.limit else "**no**"


def reference(results: Results, group: str, engine: str) -> Timing | None:
    """F.kl_div's forward and backward pass on the same device."""
    device = "torch CUDA" if engine.endswith("CUDA") else "torch CPU"
    return results.timing(group, peers.KL_DIV, device, PLAIN_KL.title)


def of(results: Results) -> list[Figure]:
    """Every figure."""
    dense = [group for group in results.groups("dense") if group.endswith("language")]

    def against_kl_div(divergence: str, limit: float) -> Figure:
        return Figure(
            f"{divergence}, loss and gradient, over `F.kl_div` forward and backward, CPU",
            limit,
            " ×",
            tuple(_over_kl_div(results, dense, divergence)),
        )

    return [
        against_kl_div("KL", 0.17),
        Figure("KL over cross-entropy, CPU", 0.5, " ×", tuple(_over_cross_entropy(results, dense))),
        against_kl_div("AB(.2,.7)", 0.25),
        *(against_kl_div(name, 0.3) for name in DIVERGENCES if name not in ("KL", "AB(.2,.7)")),
        Figure(
            "from hidden states, over the bare matmuls, CPU",
            1.15,
            " ×",
            tuple(_over_matmuls(results)),
        ),
        Figure(
            "from hidden states, memory above inputs and outputs, CPU",
            192.0,
            " MB",
            tuple(
                (f"{entry['computes']}, {entry['group']}", _exactly(above(entry) / MB))
                for entry in results.memory
                if entry["name"] == LINEAR and entry["engine"] == "torch CPU"
            ),
        ),
        Figure(
            "training step, over one of cross-entropy with the teacher's logits, CPU",
            1.05,
            " ×",
            tuple(_steps(results, "training", training.OURS)),
        ),
        Figure(
            "JAX step, over one of cross-entropy with the teacher's logits, jitted, CPU",
            1.05,
            " ×",
            tuple(_steps(results, "JAX step", training_jax.OURS)),
        ),
        Figure(
            "training step, memory above that of such a step, CPU",
            192.0,
            " MB",
            tuple(_step_memory(results)),
        ),
        Figure(
            "JAX jitted, over jax.grad of the plain form", 0.5, " ×", tuple(_jax(results, dense))
        ),
        *(
            Figure(
                f"cost of an element over {axis}, {memory}, ± from the middle",
                5.0,
                " %",
                tuple(_flatness(results, axis, place)),
            )
            for axis in ("rows", "vocabulary")
            for memory, place in (("in place", True), ("gradient in new memory", False))
        ),
        Figure("`import amidmath` after `import numpy`", 50.0, " ms", tuple(_import(results))),
        Figure(
            "frameworks that `import amidmath` imports",
            0.0,
            "",
            ()
            if results.frameworks is None
            else ((", ".join(results.frameworks), _exactly(len(results.frameworks))),),
        ),
    ]


def above(entry: dict[str, float]) -> float:
    """Bytes of a measurement of memory above inputs and outputs."""
    return max(0.0, entry["above_inputs"] - entry["outputs"])


def per_element(results: Results, axis: str) -> dict[str, list[tuple[int, Timing, float]]]:
    """By loss: (rows or vocabulary, timing, seconds an element), ascending; the fastest rounds."""
    lines: dict[str, list[tuple[int, Timing, float]]] = {}
    for group in results.groups(f"scaling {axis}"):
        for timing in results.select(group):
            if timing.engine not in ("torch CPU", "NumPy"):
                continue
            elements = timing.info["rows"] * timing.info["vocabulary"]
            point = (timing.info[axis], timing, min(timing.rounds) / elements)
            where = ", in place" if timing.name == IN_PLACE else ""
            lines.setdefault(timing.computes + where, []).append(point)
    return {computes: sorted(line, key=lambda p: p[0]) for computes, line in lines.items()}


def _exactly(value: float) -> Range:
    return Range(value, value, value)


def _where(timing: Timing) -> str:
    return f"{timing.computes}, {timing.engine}, {timing.group.removeprefix('dense ')}"


def _ours(results: Results, groups: Iterable[str], divergence: str) -> Iterable[Timing]:
    for group in groups:
        for timing in results.select(group, name=OURS):
            if timing.engine in CPU and timing.computes.startswith(f"{divergence}("):
                yield timing


def _over_kl_div(
    results: Results, groups: list[str], divergence: str
) -> Iterable[tuple[str, Range]]:
    for timing in _ours(results, groups, divergence):
        base = reference(results, timing.group, timing.engine)
        if base is not None:
            yield _where(timing), timing.over(base)


def _over_cross_entropy(results: Results, groups: list[str]) -> Iterable[tuple[str, Range]]:
    for timing in _ours(results, groups, "KL"):
        for base in results.select(timing.group, name=peers.CROSS_ENTROPY, engine="torch CPU"):
            yield _where(timing), timing.over(base)


def _over_matmuls(results: Results) -> Iterable[tuple[str, Range]]:
    for group in results.groups("linear"):
        base = results.timing(group, peers.MATMULS, "torch CPU", peers.NO_LOSS)
        for timing in results.select(group, name=LINEAR, engine="torch CPU"):
            if base is not None:
                yield timing.computes, timing.over(base)


def cross_entropy(results: Results, group: str) -> Timing | None:
    """The faster of the training steps on labels."""
    of_labels = results.select(group, computes=training.LABELS)
    return min(of_labels, key=lambda timing: timing.median, default=None)


def _steps(results: Results, start: str, name: str) -> Iterable[tuple[str, Range]]:
    for group in results.groups(start):
        base = cross_entropy(results, group)
        for timing in results.select(group, name=name):
            if base is not None:
                yield timing.computes, timing.over(base)


def _step_memory(results: Results) -> Iterable[tuple[str, Range]]:
    """Gradients included; above the step on labels that takes less."""
    entries = [entry for entry in results.memory if entry["group"].startswith("training")]
    of_labels = [e["above_inputs"] for e in entries if e["computes"] == training.LABELS]
    for entry in entries:
        if entry["name"] == training.OURS and of_labels:
            added = entry["above_inputs"] - min(of_labels)
            yield entry["computes"], _exactly(added / MB)


def _jax(results: Results, groups: list[str]) -> Iterable[tuple[str, Range]]:
    for group in groups:
        for timing in results.select(group, name=OURS, engine="JAX CPU"):
            plain = results.timing(group, peers.PLAIN, "JAX CPU", timing.computes)
            if plain is not None:
                yield _where(timing), timing.over(plain)


def _flatness(results: Results, axis: str, in_place: bool) -> Iterable[tuple[str, Range]]:
    for computes, line in per_element(results, axis).items():
        if (line[0][1].name == IN_PLACE) != in_place:
            continue
        costs = [cost for _, _, cost in line]
        yield computes, _exactly(100.0 * (max(costs) - min(costs)) / (max(costs) + min(costs)))


def _import(results: Results) -> Iterable[tuple[str, Range]]:
    added = results.start("import amidmath")
    if added is not None:
        yield "", Range(1e3 * added.middle, 1e3 * added.low, 1e3 * added.high)
