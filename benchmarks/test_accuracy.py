"""Errors of values and gradients, measured from the plain form with digits to spare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks import inputs, oracle, peers, phases, subjects
from benchmarks.subjects import Subject
from benchmarks.trials import plain_name

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

DENSE = [s for s in (*subjects.dense(), *peers.dense()) if s.case and not s.absent]


@pytest.mark.parametrize("subject", DENSE, ids=[plain_name(subject.key) for subject in DENSE])
@pytest.mark.parametrize("kind", list(inputs.LOGITS))
def test_accuracy(
    subject: Subject, kind: str, sizes: inputs.Sizes, benchmark: BenchmarkFixture
) -> None:
    assert subject.case is not None
    arrays = inputs.dense(kind, *sizes.accuracy)
    timed = subject.build(arrays)["both"]
    result = benchmark.pedantic(timed.target, setup=timed.setup, rounds=1)
    value, grad = oracle.value_and_grad(subject.case, kind, sizes.accuracy)
    got = phases.as_numpy(result[0])
    off = np.abs(phases.as_numpy(phases.gradients(result)[0]) - grad).max()
    benchmark.extra_info.update(
        kind="accuracy",
        logits=kind,
        shape=list(sizes.accuracy),
        name=subject.name,
        engine=subject.engine,
        computes=subject.computes,
        main=subject.main,
        loss=float(value),
        value_error=float(abs(got - value) / abs(value)),
        gradient_error=float(off / np.abs(grad).max()),
    )
    assert np.isfinite(got)
