"""An optimiser step of the JAX loop: time."""

from __future__ import annotations

import functools
from dataclasses import astuple
from typing import TYPE_CHECKING

from benchmarks import training, training_jax
from benchmarks.trials import Trial, in_sweeps

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

TURNS = 3  # for each sweep asked for, in which a subject makes one step only


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    shape = training.SHAPES[metafunc.config.getoption("sizes")]
    listed = list(
        in_sweeps(
            training_jax.group(shape),
            [(subject, ("both",)) for subject in training_jax.subjects()],
            functools.partial(astuple, shape),
            TURNS * metafunc.config.getoption("sweeps"),
        )
    )
    metafunc.parametrize("trial", listed, ids=[trial.id for trial in listed])


def test_time(trial: Trial, measure: Callable[[Trial], None]) -> None:
    measure(trial)
