"""Rows to try, by name: two rows of logits drawn from a seeded generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Rows = tuple[np.ndarray, np.ndarray]
Generator = np.random.Generator

SPREADS = (1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4)
NOISES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
LIFTS = (5.0, 10.0, 20.0, 40.0, 80.0, 200.0)
MASKS = (1e4, 1e9, 1e30)


def unrelated(spread: float) -> Callable[[Generator, int], Rows]:
    """Independent rows, their logits spread widely or not."""

    def rows(rng: Generator, size: int) -> Rows:
        return spread * rng.normal(size=size), spread * rng.normal(size=size)

    return rows


def close(noise: float, spread: float = 1.5) -> Callable[[Generator, int], Rows]:
    """The same row twice but for noise in the logits."""

    def rows(rng: Generator, size: int) -> Rows:
        first = spread * rng.normal(size=size)
        return first, first + noise * rng.normal(size=size)

    return rows


def equal(rng: Generator, size: int) -> Rows:
    """The same row twice."""
    first = 2.0 * rng.normal(size=size)
    return first, first.copy()


def confident(lift: float) -> Callable[[Generator, int], Rows]:
    """Both rows sure of the same token, not equally."""

    def rows(rng: Generator, size: int) -> Rows:
        first, second = rng.normal(size=(2, size))
        token = rng.integers(size)
        first[token] += lift
        second[token] += lift * rng.uniform(0.7, 1.3)
        return first, second

    return rows


def apart(lift: float) -> Callable[[Generator, int], Rows]:
    """Rows sure of different tokens."""

    def rows(rng: Generator, size: int) -> Rows:
        first, second = rng.normal(size=(2, size))
        here, there = rng.choice(size, size=2, replace=False)
        first[here] += lift
        second[there] += lift * rng.uniform(0.7, 1.3)
        return first, second

    return rows


def offset(rng: Generator, size: int) -> Rows:
    """Logits far from zero, as a head without a bias gives them."""
    first, second = 2.0 * rng.normal(size=(2, size))
    return first + 300.0, second - 50.0


def zeros(first: bool, second: bool) -> Callable[[Generator, int], Rows]:
    """Some tokens at -inf, on one side or independently on both."""

    def rows(rng: Generator, size: int) -> Rows:
        pair = 2.0 * rng.normal(size=(2, size))
        for row, wanted in zip(pair, (first, second), strict=True):
            if wanted:
                row[
                    rng.choice(size, size=rng.integers(1, max(2, size // 2)), replace=False)
                ] = -np.inf
        return pair[0], pair[1]

    return rows


def padded(rng: Generator, size: int) -> Rows:
    """The same tokens at -inf on both sides, as padding of the vocabulary leaves them."""
    pair = 2.0 * rng.normal(size=(2, size))
    pair[:, size - max(1, size // 4) :] = -np.inf
    return pair[0], pair[1]


def masked(value: float) -> Callable[[Generator, int], Rows]:
    """Tokens masked by a large negative number, on either side, where the other may be sure."""

    def rows(rng: Generator, size: int) -> Rows:
        pair = 2.0 * rng.normal(size=(2, size))
        masks = rng.random((2, size)) < 0.3
        masks[0, 0] = masks[1, 1] = False
        return tuple(  # type: ignore[return-value]
            np.where(mine, -value, row + 5.0 * (theirs & ~mine))
            for row, mine, theirs in zip(pair, masks, masks[::-1], strict=True)
        )

    return rows


def disjoint(rng: Generator, size: int) -> Rows:
    """No token in common."""
    pair = 2.0 * rng.normal(size=(2, size))
    pair[0, : size // 2] = -np.inf
    pair[1, size // 2 :] = -np.inf
    return pair[0], pair[1]


CASES: dict[str, Callable[[Generator, int], Rows]] = {
    **{f"spread {s:g}": unrelated(s) for s in SPREADS},
    **{f"noise {n:g}": close(n) for n in NOISES},
    **{f"noise {n:g} at spread 20": close(n, 20.0) for n in NOISES[1::2]},
    **{f"confident {x:g}": confident(x) for x in LIFTS},
    **{f"apart {x:g}": apart(x) for x in LIFTS},
    "equal": equal,
    "offset": offset,
    "zeros in the first": zeros(True, False),
    "zeros in the second": zeros(False, True),
    "zeros in both": zeros(True, True),
    "padded": padded,
    "disjoint": disjoint,
    **{f"masked by -{v:g}": masked(v) for v in MASKS},
}

ONE_SIDED = ("zeros in the first", "zeros in the second", "zeros in both", "disjoint")
