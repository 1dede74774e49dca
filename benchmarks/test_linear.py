"""Losses of hidden states and heads: time forward and backward."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from benchmarks import inputs, peers, subjects
from benchmarks.trials import Trial, in_sweeps, label

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    shape = inputs.SIZES[metafunc.config.getoption("sizes")].linear
    listed = list(
        in_sweeps(
            f"linear {label(*shape)}",
            [(subject, ("both",)) for subject in (*subjects.linear(), *peers.linear())],
            functools.partial(inputs.linear, *shape),
            metafunc.config.getoption("sweeps"),
        )
    )
    metafunc.parametrize("trial", listed, ids=[trial.id for trial in listed])


def test_linear(trial: Trial, measure: Callable[[Trial], None]) -> None:
    measure(trial)
