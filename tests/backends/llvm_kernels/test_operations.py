"""The instructions of the operations: what they compute, and what they depend on."""

from __future__ import annotations

import numpy as np
import pytest
from row_programs import EveryOperation, every_operation, near_one_half

from amidmath.compiler.builder import Builder
from amidmath.rows.forms import RowForm

pytest.importorskip("llvmlite")
from llvmlite import ir

from amidmath.backends.llvm_kernels.elementary import Lanes
from amidmath.backends.llvm_kernels.kernels import View, run
from amidmath.backends.llvm_kernels.operations import nonpositive, operation


def test_which_exponents_are_seen_not_to_be_positive():
    b = Builder()
    x, zero = b.leaf("input", 0), b.const(0.0)
    lead = b.apply("sub", x, b.leaf("scale"))
    largest = b.reduce("max", x)
    for number in (x, lead):
        positive, opposite = b.apply("lt", zero, number), b.apply("neg", number)
        assert nonpositive(b.apply("neg", b.apply("abs", number)))
        assert nonpositive(b.apply("select", positive, opposite, number))
        assert not nonpositive(b.apply("select", positive, number, opposite))
        assert not nonpositive(b.apply("select", b.apply("lt", number, zero), opposite, number))
        assert not nonpositive(number)
        assert not nonpositive(opposite)
    assert nonpositive(b.apply("sub", x, largest))
    assert not nonpositive(b.apply("sub", largest, x))


@pytest.fixture
def spell():
    """LLVM's names of the instructions that a sum or a difference of numbers takes."""
    double = ir.DoubleType()
    function = ir.Function(ir.Module(), ir.FunctionType(double, [double] * 3), name="f")
    block = function.append_basic_block()
    lanes = Lanes(ir.IRBuilder(block), 64, 1)

    def spell(node, values):
        if node not in values:
            values[node] = operation(lanes, node, [spell(a, values) for a in node.args])
        return values[node]

    def spelled(node, *leaves):
        before = len(block.instructions)
        spell(node, dict(zip(leaves, function.args, strict=True)))
        return [i.opname for i in block.instructions[before:]]

    return spelled


def test_a_sum_with_a_product_is_rounded_once(spell):
    b = Builder()
    x, y, z = (b.leaf("input", 0), b.leaf("input", 1), b.leaf("scale"))
    product = b.apply("mul", x, y)
    assert spell(b.apply("add", product, z), x, y, z) == ["fmul", "call"]
    assert spell(b.apply("sub", z, product), x, y, z) == ["fmul", "fneg", "call"]
    assert spell(b.apply("sub", product, z), x, y, z) == ["fmul", "fneg", "call"]


def test_a_logit_over_the_temperature_is_rounded_before_it_is_added_to(spell):
    b = Builder()
    x, y, temperature = b.leaf("input", 0), b.leaf("input", 1), b.leaf("param", 0)
    product = b.apply("mul", x, temperature)
    assert spell(b.apply("sub", y, product), x, y, temperature) == ["fmul", "fsub"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_operation_computes_what_it_says(dtype):
    x, y = (a.astype(dtype) for a in near_one_half(2, 37))

    def view(a):
        return View(a.ctypes.data, a.strides[0], dtype)

    def empty(which):
        made = np.empty(2 if which is None else x.shape, dtype)
        return made, view(made)

    form, views = RowForm(EveryOperation()), [view(x), view(y)]
    _, (total, _) = run(form, (True, False), views, 2, 37, empty, threads=1)
    wanted = [every_operation(*rows) for rows in zip(x.astype(float), y.astype(float), strict=True)]
    np.testing.assert_allclose(total, wanted, rtol=4 * np.finfo(dtype).eps)
