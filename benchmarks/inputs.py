"""Inputs of every subject: the sizes of a run, logits, hidden states and heads."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
SEED = 20260
ZIPF = 1.1  # exponent of the teacher's rank-frequency law


@dataclass(frozen=True)
class Sizes:
    """The shapes of a run.

    Args:
        dense: (rows, vocabulary) of logits; the first is measured in full, the others less.
        linear: (rows, hidden, vocabulary) for the losses from hidden states.
        memory: the same, for memory alone.
        accuracy: (rows, vocabulary) whose errors are measured.
        rows: row counts over which the cost of an element should be flat, at ``rows_vocabulary``.
        rows_vocabulary: the vocabulary of those.
        vocabularies: vocabularies over which it should be flat, at ``vocabulary_elements`` logits.
        vocabulary_elements: how many those are, so that only the shape changes.
    """

    dense: tuple[tuple[int, int], ...]
    linear: tuple[int, int, int]
    memory: tuple[int, int, int]
    accuracy: tuple[int, int]
    rows: tuple[int, ...]
    rows_vocabulary: int
    vocabularies: tuple[int, ...]
    vocabulary_elements: int


SIZES = {
    "full": Sizes(
        dense=((512, 50_257), (256, 151_936)),
        linear=(1_024, 576, 49_152),
        memory=(4_096, 576, 151_936),
        accuracy=(8, 50_257),
        rows=(64, 128, 256, 512, 1_024),
        rows_vocabulary=50_257,
        vocabularies=(8_192, 16_384, 32_768, 65_536, 131_072, 262_144),
        vocabulary_elements=2**24,
    ),
    "smoke": Sizes(
        dense=((4, 96), (2, 160)),
        linear=(8, 6, 64),
        memory=(8, 6, 96),
        accuracy=(4, 96),
        rows=(2, 4),
        rows_vocabulary=64,
        vocabularies=(32, 64),
        vocabulary_elements=2**8,
    ),
}

LOGITS = {
    "language": "a Zipf-like teacher, every row with its own ranking, and a student near it",
    "normal": "student and teacher independent, N(0, 3²)",
    "close": "the language teacher, and a student that differs from it by N(0, 0.001²)",
}


@functools.lru_cache(maxsize=1)
def dense(kind: str, rows: int, vocabulary: int) -> tuple[Array, Array]:
    """Student and teacher logits, float32 (rows, vocabulary)."""
    rng = np.random.default_rng((SEED, rows, vocabulary))

    def normal(scale: float) -> Array:
        return scale * rng.standard_normal((rows, vocabulary), dtype=np.float32)

    if kind == "normal":
        return normal(3.0), normal(3.0)
    ranks = np.arange(1, vocabulary + 1, dtype=np.float32)
    teacher = np.tile(-ZIPF * np.log(ranks), (rows, 1))
    rng.permuted(teacher, axis=1, out=teacher)
    teacher += normal(1.0)
    return teacher + normal(0.5 if kind == "language" else 1e-3), teacher


@functools.lru_cache(maxsize=1)
def linear(rows: int, hidden: int, vocabulary: int) -> tuple[Array, Array, Array, Array]:
    """Student hidden states and head, teacher hidden states and head, float32.

    The logits are about N(0, 2²) and those of the student lie near the teacher's.
    """
    rng = np.random.default_rng((SEED, rows, hidden, vocabulary))

    def near(array: Array, noise: float) -> Array:
        return array + noise * rng.standard_normal(array.shape, dtype=np.float32)

    states = rng.standard_normal((rows, hidden), dtype=np.float32)
    head = (2.0 / hidden**0.5) * rng.standard_normal((vocabulary, hidden), dtype=np.float32)
    return near(states, 0.1), near(head, 0.1 * hidden**-0.5), states, head
