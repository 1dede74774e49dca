"""The source of the CUDA kernels, compiled for the CPU: every operation, and reductions."""

from __future__ import annotations

import cuda_on_cpu
import numpy as np
import pytest
from row_programs import AtTheLargest, EveryOperation, every_operation, near_one_half, ties

from amidmath.backends.cuda_kernels.source import source
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm

pytestmark = pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="no C++ compiler")


def rows_of(block, x, y):
    """Values, and the derivative by the student if the block has one."""
    dtype = x.dtype.name
    program = row_program(RowForm(block), (True, False), dtype == "float64")
    written = source(program, dtypes=(dtype, dtype), masked=False, double=dtype == "float64")
    arrays = {"input0": x, "input1": y, "value": np.empty(len(x), dtype)}
    arrays |= {f"partial{j}": np.empty_like(x) for j in program.given}
    assert written.arrays == tuple(arrays)
    passed = [v for a in arrays.values() for v in (a, np.int64(a.strides[0] // a.itemsize))]
    numbers = [x.dtype.type(program.numbers[j]) for j in written.params]
    kernel = cuda_on_cpu.RawKernel(written.text, "rows")
    kernel((len(x),), (32,), (*passed, *numbers, np.int64(x.shape[1])))
    return arrays["value"], arrays.get("partial0")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_operation_computes_what_it_says(dtype):
    x, y = (a.astype(dtype) for a in near_one_half(2, 37))
    values, total = rows_of(EveryOperation(), x, y)
    wanted = [every_operation(*rows) for rows in zip(x.astype(float), y.astype(float), strict=True)]
    np.testing.assert_allclose(total, wanted, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(values, np.sum(wanted, axis=-1), rtol=4 * np.finfo(dtype).eps)


def test_of_equal_maxima_the_first_counts():
    x, y, wanted = (a.astype("float32") for a in ties(70))
    values, _ = rows_of(AtTheLargest(), x, y)
    np.testing.assert_array_equal(values, wanted)
