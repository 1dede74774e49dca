"""A training step of the distillation loop: time, and peak memory in a process of its own."""

from __future__ import annotations

import functools
from dataclasses import astuple
from typing import TYPE_CHECKING

from benchmarks import memory, training
from benchmarks.trials import Trial, in_sweeps, plain_name

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.subjects import Subject

TURNS = 3  # for each sweep asked for, in which a subject makes one step only


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    shape = training.SHAPES[metafunc.config.getoption("sizes")]
    if "trial" not in metafunc.fixturenames:
        subjects = [subject for subject in training.subjects() if not subject.absent]
        names = [plain_name(subject.key) for subject in subjects]
        metafunc.parametrize("subject", subjects, ids=names)
        return
    listed = list(
        in_sweeps(
            shape.group,
            [(subject, ("both",)) for subject in training.subjects()],
            functools.partial(astuple, shape),
            TURNS * metafunc.config.getoption("sweeps"),
        )
    )
    metafunc.parametrize("trial", listed, ids=[trial.id for trial in listed])


def test_time(trial: Trial, measure: Callable[[Trial], None]) -> None:
    measure(trial)


def test_peak(
    subject: Subject, benchmark: BenchmarkFixture, request: pytest.FixtureRequest
) -> None:
    shape = training.SHAPES[request.config.getoption("sizes")]
    measured = benchmark.pedantic(
        memory.in_a_process, ("training", subject.key, astuple(shape)), rounds=1
    )
    benchmark.extra_info.update(
        kind="memory",
        group=shape.group,
        name=subject.name,
        engine=subject.engine,
        computes=subject.computes,
        inputs=training.weight_bytes(shape),
        **measured,
    )
