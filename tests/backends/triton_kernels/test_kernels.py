"""The Triton kernels: in Triton's interpreter, how they are launched, and what is kept of them."""

from __future__ import annotations

import gc
import linecache
import os
import subprocess
import sys
from pathlib import Path

import pytest

import amidmath as am
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
triton_kernels = pytest.importorskip("amidmath.backends.triton_kernels.kernels")

CASES = Path(__file__).with_name("interpreted.py")


def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("rows", "vocabulary", "parts"),
    [(1, 151_936, 32), (16, 151_936, 8), (66, 151_936, 2), (67, 151_936, 1), (1, 4096, 1)],
)
def test_how_many_programs_share_a_row(rows, vocabulary, parts):
    assert triton_kernels.splits(rows, vocabulary, processors=132) == parts


def test_positions_are_exact_in_single_precision():
    assert triton_kernels.splits(1, 2**24, processors=132) == 1


def test_sources_of_triton_go_with_their_kernels(monkeypatch):
    monkeypatch.setattr(triton_kernels, "_COMPILED", type(triton_kernels._COMPILED)(most=1))

    def sources():
        gc.collect()
        return [name for name in linecache.cache if name.startswith("<amidmath rows")]

    before = len(sources())
    for order in ("pr", "qr", "rp"):
        known = row_program(RowForm(am.AMiD(order=order).block), (True, False), False)
        triton_kernels.compiled(known, masked=False, double=False, split=False)
    assert len(sources()) == before + 1
