"""What is certified: points (a function, a dtype, parameters and rows), planned from a seed."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from amidmath.divergences import REGISTRY
from certify.cases import CASES, ONE_SIDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DTYPES = ("float64", "float32", "bfloat16")
ORDERS = ("pr", "rp", "qr", "rq")
ALPHAS = (
    *(-math.inf, -1e4, -50.0, -5.0, -1.0, -0.5, 0.0, 0.5),
    *(1 - 1e-12, 1.0, 1 + 1e-12, 3.0, 10.0, 1e4, math.inf),
)
LAMS = (0.0, 1e-12, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-6, 1 - 1e-12, 1.0)
TEMPERATURES = (1.0, 1.0, 1.0, 2.0, 0.7)
SIZES, SIZE_SHARES = (2, 3, 4, 8, 50, 1000), (0.3, 0.3, 0.25, 0.12, 0.027, 0.003)
VOCABULARY = 50257
MEANS = ("alpha_mixture", "log_falpha_mean", "falpha_mean")
EXECUTORS = ("reference", "compiled")
"""What computes, by the argument ``backend`` of losses and divergences."""
COMPILING = 0.25  # seconds a program, about


@dataclass(frozen=True)
class Point:
    """One call of the library.

    Attributes:
        kind: "divergence", "loss" (AMiD) or "mean".
        name: the divergence's or the function's name.
        params: the divergence's parameters.
        dtype: of the rows.
        case: the name of the rows' generator.
        size: outcomes, V; sources for a mean.
        seed: of the rows.
        order, alpha, lam, temperature: of the loss; α and λ of a mean.
        as_arrays: whether α and λ are given as arrays, which are differentiated too.
        normalize: of ``alpha_mixture``.
        gradients: whether gradients are compared.
        executor: one of ``EXECUTORS``.
    """

    kind: str
    name: str
    dtype: str
    case: str
    size: int
    seed: tuple[int, ...]
    params: tuple[Any, ...] = ()
    order: str = ""
    alpha: float = -1.0
    lam: float = 0.5
    temperature: float = 1.0
    as_arrays: bool = False
    normalize: bool = False
    gradients: bool = True
    executor: str = "reference"

    @property
    def function(self) -> str:
        """What it is called in the report."""
        if self.kind == "mean":
            return self.name + (" (normalised)" if self.normalize else "")
        shown = ", ".join(p if isinstance(p, str) else f"{p:.12g}" for p in self.params)
        return self.name + (f"({shown})" if shown else "")

    def __str__(self) -> str:
        """Show what it takes to find the point again."""
        said = [f"{self.case}, V={self.size}"]
        if self.kind != "divergence":
            said += [f"α={self.alpha!r}, λ={self.lam!r}"]
        if self.kind == "loss":
            said += [self.order]
            said += [f"T={self.temperature:g}"] if self.temperature != 1.0 else []
        said += ["α, λ arrays"] if self.as_arrays else []
        said += [self.executor] if self.executor != "reference" else []
        return ", ".join([*said, "seed " + "/".join(map(str, self.seed))])

    @property
    def label(self) -> str:
        """Everything that tells the point from others, in one line."""
        return f"{self.kind} {self.function} {self.dtype} | {self}"

    @property
    def program(self) -> tuple[Any, ...]:
        """What is compiled for it, as far as its parameters tell."""
        of_loss = (self.order, self.alpha, self.lam, self.temperature, self.as_arrays)
        return (self.kind, self.name, self.params, self.dtype, *of_loss)

    def divergence(self) -> Any:
        """The instance that is called."""
        return REGISTRY[self.name](*self.params)


def examples() -> list[tuple[str, tuple[Any, ...]]]:
    """Every divergence that has a name, with the parameters that it wants to be tried at."""
    return [(name, params) for name, cls in sorted(REGISTRY.items()) for params in cls.examples]


def frozen(name: str, params: tuple[Any, ...]) -> bool:
    """Whether the library holds something constant in its gradients that the definition does not.

    The weights of concrete score matching are, unless they are uniform.
    """
    return name == "concrete_score" and set(params) != {"uniform"}


def plan(
    seed: int, budget: float, largest: int = VOCABULARY, executor: str = "reference"
) -> Iterator[Point]:
    """Points worth about ``budget`` seconds of computing.

    They come in rounds of one point for every function and dtype. How long a point takes is
    estimated, not measured, so that a seed and a budget always give the same points.

    Args:
        seed: of everything random.
        budget: seconds.
        largest: the largest V.
        executor: what computes; the means are always the array core's, and planned for it alone.
    """
    spent, turn = 0.0, 0
    compiled: set[tuple[Any, ...]] = set()

    def planned(points: Iterable[Point]) -> Iterator[Point]:
        nonlocal spent
        for point in points:
            if executor != "reference":
                if point.kind == "mean":
                    continue
                spent += COMPILING if point.program not in compiled else 0.0
                compiled.add(point.program)
            spent += cost(point)
            yield replace(point, executor=executor)

    if largest >= VOCABULARY and budget >= 1200:
        yield from planned(_vocabularies(seed))
    while spent < budget:
        yield from planned(_round(seed, turn, largest))
        turn += 1


def cost(point: Point) -> float:
    """Estimated seconds; what counts is the number of evaluations by mpmath."""
    if point.kind == "mean":
        return 3e-3
    n = 2 * point.size
    evaluations = 2 + 2 * n + n * n / 2 if point.size <= 8 else 60
    if not point.gradients:
        evaluations = 5
    return 0.01 + evaluations * point.size * (1e-4 if point.kind == "divergence" else 2e-4)


def _round(seed: int, turn: int, largest: int) -> Iterator[Point]:
    for name, params in examples():
        for kind in ("divergence", "loss"):
            for dtype in DTYPES:
                at = (seed, turn, _code(kind, name, *params, dtype))
                yield _draw(kind, name, params, dtype, at, largest)
    for name in MEANS:
        for dtype in DTYPES:
            for again in range(4):
                at = (seed, turn, _code("mean", name, dtype, again))
                yield _draw("mean", name, (), dtype, at, largest)


def _code(*what: Any) -> int:
    """A number that a function keeps when others are added."""
    return zlib.crc32(repr(what).encode())


def _draw(
    kind: str,
    name: str,
    params: tuple[Any, ...],
    dtype: str,
    at: tuple[int, ...],
    largest: int,
) -> Point:
    rng = np.random.default_rng(at)
    size = min(largest, SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)])
    cases = [c for c in CASES if name != "concrete_score" or c not in ONE_SIDED]
    case = cases[rng.integers(len(cases))]
    alpha, lam = ALPHAS[rng.integers(len(ALPHAS))], LAMS[rng.integers(len(LAMS))]
    if kind == "divergence":
        gradients = not frozen(name, params)
        return Point(kind, name, dtype, case, size, at, params, gradients=gradients)
    arrays = bool(rng.integers(2)) and 0.0 < lam < 1.0
    if kind == "mean":
        normalize = name == "alpha_mixture" and bool(rng.integers(2))
        given: dict[str, Any] = {
            "alpha": alpha,
            "lam": lam,
            "as_arrays": arrays,
            "normalize": normalize,
        }
        return Point(kind, name, dtype, case, size, at, **given)
    order = ORDERS[rng.integers(len(ORDERS))]
    temperature = TEMPERATURES[rng.integers(len(TEMPERATURES))]
    loss = (order, alpha, lam, temperature, arrays)
    return Point(
        kind, name, dtype, case, size, at, params, *loss, gradients=not frozen(name, params)
    )


def _vocabularies(seed: int) -> Iterator[Point]:
    """A few rows as wide as a real vocabulary."""
    for number, (dtype, case, alpha) in enumerate(
        (
            ("float32", "spread 3", -1.0),
            ("bfloat16", "spread 3", 1.0),
            ("float32", "noise 0.001", 0.0),
            ("float64", "confident 20", 3.0),
        )
    ):
        yield Point(
            *("loss", "kl", dtype, case, VOCABULARY, (seed, number), (), "pr", alpha, 0.1),
            gradients=number == 0,
        )
