"""Losses of student and teacher logits: time of every phase."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from benchmarks import inputs, peers, subjects
from benchmarks.trials import Trial, in_sweeps, label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest


def _trials(sizes: inputs.Sizes, sweeps: int) -> Iterator[Trial]:
    everyone = (*subjects.dense(), *peers.dense())
    for number, shape in enumerate(sizes.dense):
        for kind in ("language", "normal") if number == 0 else ("language",):
            full = number == 0 and kind == "language"
            phases = [
                (subject, subject.timed if full and subject.main else ("both",))
                for subject in everyone
                if subject.main or full
            ]
            arrays = functools.partial(inputs.dense, kind, *shape)
            yield from in_sweeps(f"dense {label(*shape)}, {kind}", phases, arrays, sweeps)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sizes = inputs.SIZES[metafunc.config.getoption("sizes")]
    listed = list(_trials(sizes, metafunc.config.getoption("sweeps")))
    metafunc.parametrize("trial", listed, ids=[trial.id for trial in listed])


def test_dense(trial: Trial, measure: Callable[[Trial], None]) -> None:
    measure(trial)
