"""Memory that a process keeps of what it has computed: numbers and programs without end."""

from __future__ import annotations

import gc
import linecache
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import amidmath as am
from amidmath.compiler import program
from amidmath.rows.forms import RowForm

HELPER = Path(__file__).parents[1] / "helpers" / "kept_memory.py"


@pytest.mark.skipif(sys.platform == "win32", reason="measures as Unix does")
@pytest.mark.parametrize("what", ["numbers", "structures"])
def test_memory_stays_as_it_is(what):
    """In MB, after 1,500 numbers or 225 programs more."""
    pytest.importorskip("llvmlite")
    command = [sys.executable, str(HELPER), what]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 12.0


def test_a_kernel_that_is_let_go_while_it_is_used_is_right(monkeypatch):
    cpu = pytest.importorskip("amidmath.backends.llvm_kernels.kernels", exc_type=ImportError)
    monkeypatch.setattr(cpu, "_KERNELS", type(cpu._KERNELS)(most=1))
    student, teacher = np.random.default_rng(0).normal(size=(2, 3, 40)).astype(np.float32)
    losses = [am.AMiD(order=order) for order in ("pr", "qr")]
    original = cpu.Kernel.__call__

    def call(kernel, *args):
        monkeypatch.setattr(cpu.Kernel, "__call__", original)
        losses[1](student, teacher, backend="compiled")  # compiled in between, frees what is let go
        losses[0](student, teacher, backend="compiled")
        return original(kernel, *args)

    monkeypatch.setattr(cpu.Kernel, "__call__", call)
    value = losses[0](student, teacher, backend="compiled")
    assert value == losses[0](student, teacher, backend="compiled")


def test_graphs_are_not_kept():
    """A program that is known is a digest, numbers, and the loss itself.

    α stays below .54: from there on the anchor is asked whether the assistant has it.
    """
    program.row_program.cache_clear()
    forms = [RowForm(am.AMiD(alpha=0.31 + 0.0051 * j).block) for j in range(40)]
    known = [program.row_program(form, (True, False), double=False) for form in forms]
    gc.collect()
    builders = [o for o in gc.get_objects() if type(o).__name__ == "Builder"]
    assert len(builders) < 20
    assert len({p.structure for p in known}) == 1
    for one in known[::20]:  # the graph is that of the digest
        numbers = {n.value for n in one.traced.builder._known.values() if n.op == "param"}
        assert numbers == set(range(len(one.numbers)))


def test_sources_of_triton_go_with_their_kernels(monkeypatch):
    triton_rows = pytest.importorskip(
        "amidmath.backends.triton_kernels.kernels", exc_type=ImportError
    )
    monkeypatch.setattr(triton_rows, "_COMPILED", type(triton_rows._COMPILED)(most=1))

    def sources():
        gc.collect()
        return [name for name in linecache.cache if name.startswith("<amidmath rows")]

    before = len(sources())
    for order in ("pr", "qr", "rp"):
        known = program.row_program(RowForm(am.AMiD(order=order).block), (True, False), False)
        triton_rows.compiled(known, masked=False, double=False, split=False)
    assert len(sources()) == before + 1
