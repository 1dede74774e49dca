"""Maxima and their positions, from lane to lane, vector to vector and tile to tile."""

from __future__ import annotations

import numpy as np
import pytest
from row_programs import AtTheLargest, ties

pytest.importorskip("llvmlite")
from llvm_rows import rows_of


@pytest.mark.parametrize("size", [3, 37, 1003])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_equal_maxima_the_first_counts(dtype, size):
    x, y, wanted = (a.astype(dtype) for a in ties(size))
    value, _ = rows_of(AtTheLargest(), x, y, (False, False))
    np.testing.assert_array_equal(value, wanted)
