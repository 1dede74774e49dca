"""Whether the cost of an element depends on the number of rows or on the vocabulary."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks import inputs, subjects
from benchmarks.cases import AB_PR, KL_PR
from benchmarks.trials import Trial, in_sweeps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

ENGINES = ("torch CPU", "torch CUDA")


def _trials(sizes: inputs.Sizes, sweeps: int) -> Iterator[Trial]:
    titles = (KL_PR.title, AB_PR.title)
    scaled = [
        (subject, ("both",))
        for subject in subjects.dense()
        if subject.name == subjects.OURS
        and subject.engine in ENGINES
        and subject.computes in titles
    ]
    scaled += [(subjects.in_place(case), ("both",)) for case in (KL_PR, AB_PR)]
    shapes = [("rows", rows, sizes.rows_vocabulary) for rows in sizes.rows]
    shapes += [
        ("vocabulary", max(1, sizes.vocabulary_elements // v), v) for v in sizes.vocabularies
    ]
    for sweep in range(sweeps):
        for axis, rows, vocabulary in shapes if sweep % 2 == 0 else reversed(shapes):
            arrays = functools.partial(inputs.dense, "language", rows, vocabulary)
            info = (("axis", axis), ("rows", rows), ("vocabulary", vocabulary))
            for trial in in_sweeps(f"scaling {axis} {rows} × {vocabulary}", scaled, arrays, 1):
                if sweep == 0 or not trial.subject.absent:
                    yield replace(trial, sweep=sweep, info=info)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sizes = inputs.SIZES[metafunc.config.getoption("sizes")]
    listed = list(_trials(sizes, metafunc.config.getoption("sweeps")))
    metafunc.parametrize("trial", listed, ids=[trial.id for trial in listed])


def test_scaling(trial: Trial, measure: Callable[[Trial], None]) -> None:
    measure(trial)
