"""The source of the CUDA kernels: every operation, compiled for the CPU."""

from __future__ import annotations

import cuda_on_cpu
import numpy as np
import pytest
from row_programs import EveryOperation, every_operation, near_one_half

from amidmath.backends.cuda_kernels.source import source
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm


@pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_operation_computes_what_it_says(dtype):
    x, y = (a.astype(dtype) for a in near_one_half(2, 37))
    program = row_program(RowForm(EveryOperation()), (True, False), dtype == "float64")
    written = source(program, dtypes=(dtype, dtype), masked=False, double=dtype == "float64")
    total, values = np.empty_like(x), np.empty(2, dtype)
    arrays = {"input0": x, "input1": y, "value": values, "partial0": total}
    assert written.arrays == tuple(arrays)
    passed = [v for a in arrays.values() for v in (a, np.int64(a.strides[0] // a.itemsize))]
    numbers = [x.dtype.type(program.numbers[j]) for j in written.params]
    kernel = cuda_on_cpu.RawKernel(written.text, "rows")
    kernel((2,), (32,), (*passed, *numbers, np.int64(37)))
    wanted = [every_operation(*rows) for rows in zip(x.astype(float), y.astype(float), strict=True)]
    np.testing.assert_allclose(total, wanted, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(values, np.sum(wanted, axis=-1), rtol=4 * np.finfo(dtype).eps)
