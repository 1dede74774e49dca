"""Peak memory of one loss and gradient, each in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from benchmarks import inputs, memory, peers, subjects
from benchmarks.cases import AB_PR, KL_PR, PLAIN_JS, PLAIN_KL
from benchmarks.trials import label, plain_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.subjects import Subject

# What the most demanding subject holds at once, in arrays of logits; and in reserve.
DENSE_COPIES = 7
CHUNKED_COPIES = 3


# From hidden states each takes its time, and one loss is like another.
LINEAR = {
    (f"{subjects.OURS} linear", KL_PR.title),
    (f"{subjects.OURS} linear", AB_PR.title),
    (peers.MATMULS, peers.NO_LOSS),
    (peers.DENSE, PLAIN_KL.title),
    (peers.TRL_CHUNKED, PLAIN_KL.title),
    (peers.LIGER, PLAIN_JS.title),
    (peers.LIGER_COMPILED, PLAIN_JS.title),
}


def _listed() -> list[tuple[str, Subject]]:
    dense = [("dense", s) for s in (*subjects.dense(), *peers.dense()) if s.main]
    linear = [
        ("linear", s)
        for s in (*subjects.linear(), *peers.linear())
        if (s.name, s.computes) in LINEAR
    ]
    return [pair for pair in (*dense, *linear) if not pair[1].absent]


LISTED = _listed()
NAMES = [plain_name(f"{table}-{subject.key}") for table, subject in LISTED]


@pytest.mark.parametrize(
    ("table", "subject"),
    LISTED,
    ids=[plain_name(f"{table}-{subject.key}") for table, subject in LISTED],
)
def test_memory(
    table: str,
    subject: Subject,
    sizes: inputs.Sizes,
    benchmark: BenchmarkFixture,
    present: Callable[[str, str], None],
) -> None:
    shape = sizes.dense[0] if table == "dense" else sizes.memory
    present(f"{subject.name} ({subject.computes}), memory", _too_large(subject, shape))
    measured = benchmark.pedantic(memory.in_a_process, (table, subject.key, shape), rounds=1)
    benchmark.extra_info.update(
        kind="memory",
        group=f"{table} {label(*shape)}",
        name=subject.name,
        engine=subject.engine,
        computes=subject.computes,
        inputs=_input_bytes(shape),
        **measured,
    )


def _too_large(subject: Subject, shape: tuple[int, ...]) -> str:
    """Why the machine should not be asked for it; "" if it may."""
    if subject.engine.endswith("CUDA"):
        return ""
    copies = DENSE_COPIES if subject.name == peers.DENSE or len(shape) == 2 else CHUNKED_COPIES
    wanted = 4 * copies * shape[0] * shape[-1]
    available = psutil.virtual_memory().available
    if wanted <= available:
        return ""
    return f"{wanted / 1e9:.0f} GB may be needed, {available / 1e9:.0f} GB are free"


def _input_bytes(shape: tuple[int, ...]) -> int:
    if len(shape) == 2:
        return 2 * 4 * shape[0] * shape[1]
    rows, hidden, vocabulary = shape
    return 2 * 4 * hidden * (rows + vocabulary)
