"""Dtypes of every operand in every library: values and gradients, and of which dtype they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dtype_sweep
import pytest

pytest.importorskip("llvmlite")


def test_the_sweep_takes_all_pairs():
    for levels in (3, 4):
        rows = dtype_sweep.arrangements(levels)
        for one, other in ((i, j) for i in range(5) for j in range(i)):
            pairs = {(row[one], row[other]) for row in rows}
            assert len(pairs) == levels**2 or (levels, one, other) == (3, 3, 2)


def test_every_pair_of_dtypes():
    """In a process of its own: a crash is a failure, not the end of the tests."""
    command = [sys.executable, dtype_sweep.__file__]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (ran.stdout, ran.returncode) == ("swept\n", 0), ran.stderr
