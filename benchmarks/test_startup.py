"""Waits of a new process: the import, and calls that load or compile something."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.subjects import missing
from benchmarks.trials import plain_name

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from pytest_benchmark.fixture import BenchmarkFixture

FRAMEWORKS = ("torch", "jax", "cupy", "triton", "llvmlite")
IMPORT_SWEEPS = 5  # times --sweeps, since it takes so little
NUMPY = """
import numpy as np, amidmath as am
a = np.zeros((256, 8192), "float32")
first, another = am.AMiD(), am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=3.0)
call = lambda loss: loss.value_and_grad(a, a)
"""
JAX = f"""{NUMPY}
import jax
a = jax.numpy.asarray(a)
call = lambda loss: jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(a, a))
"""
FIRST, ANOTHER = "call(first)", "call(another)"


@dataclass(frozen=True)
class Program:
    """A program in two parts, of which the first alone is the baseline.

    Args:
        name: what the difference is the cost of.
        needs: modules without which it does not run.
        before: the baseline.
        after: what comes on top.
    """

    name: str
    needs: tuple[str, ...]
    before: str
    after: str


IMPORT = Program("import amidmath", ("numpy",), "import numpy", "import amidmath")
PROGRAMS = (
    IMPORT,
    *(
        Program(f"{what}, {engine}", needs, before, after)
        # torch's CPU tensors have NumPy's kernels, and a slow import that hides what it costs.
        for engine, needs, inputs in (("NumPy", ("numpy",), NUMPY), ("JAX CPU", ("jax",), JAX))
        for what, before, after in (
            ("first call", inputs, FIRST),
            ("another loss", f"{inputs}{FIRST}", ANOTHER),
        )
    ),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sweeps = metafunc.config.getoption("sweeps")
    listed = []
    for program in PROGRAMS:
        times = sweeps * IMPORT_SWEEPS if program is IMPORT else sweeps
        for sweep in range(times):
            parts = ("before", "whole") if sweep % 2 == 0 else ("whole", "before")
            listed += [(program, part, sweep) for part in parts]
    names = [plain_name(f"{p.name}-{part}-sweep{sweep}") for p, part, sweep in listed]
    metafunc.parametrize(("program", "part", "sweep"), listed, ids=names)


def test_startup(
    program: Program,
    part: str,
    sweep: int,
    benchmark: BenchmarkFixture,
    present: Callable[[str, str], None],
) -> None:
    present(program.name, missing(*program.needs))
    code = program.before if part == "before" else f"{program.before}\n{program.after}"

    # Where bytecode may not be written, every import would compile its sources anew.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run(code: str) -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    if sweep == 0:
        run(code)  # files into the page cache, modules into theirs
    benchmark.extra_info.update(kind="startup", name=program.name, part=part, sweep=sweep)
    if program is IMPORT and part == "whole":
        listing = f"{code}\nimport sys; print(*set({FRAMEWORKS!r}) & set(sys.modules))"
        benchmark.extra_info["frameworks"] = run(listing).split()
    benchmark.pedantic(run, args=(code,), rounds=1)
