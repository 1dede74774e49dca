"""The table of operations: what they give for numbers, and that every target spells all of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from row_programs import NUMPY

from amidmath.backends.cuda_kernels import source as cuda
from amidmath.compiler.builder import Builder
from amidmath.compiler.operations import CONST, ELEMENTWISE, OPERATIONS

NUMBERS = (0.0, -0.0, 1.0, -2.0, 1e308, math.inf, -math.inf)
VALUES = {"real": NUMBERS, "bool": (False, True), "any": NUMBERS}


@pytest.mark.parametrize("op", sorted(ELEMENTWISE))
def test_constants_fold_as_hardware_computes(op):
    """To infinities and NaN where Python raises."""
    b = Builder()
    operands = OPERATIONS[op].operands
    for values in itertools.product(*(VALUES[type_] for type_ in operands)):
        folded = b.apply(op, *map(b.const, values))
        assert (folded.op, folded.kind) == ("const", CONST)
        with np.errstate(all="ignore"):
            wanted = NUMPY[op](*(np.asarray(v) for v in values))
        np.testing.assert_allclose(folded.value, wanted, rtol=1e-15, err_msg=f"{op}{values}")


@pytest.mark.parametrize("op", sorted(ELEMENTWISE))
def test_types_are_those_of_the_table(op):
    b = Builder()
    leaves = {"real": b.leaf("knob", 0), "any": b.leaf("knob", 1)}
    leaves["bool"] = b.apply("lt", leaves["real"], leaves["any"])
    operation = OPERATIONS[op]
    node = b.apply(op, *(leaves[type_] for type_ in operation.operands))
    assert node.type == (operation.result if operation.result != "any" else "real")
    if operation.commutes:
        one, other = b.leaf("knob", 2), b.leaf("knob", 3)
        if operation.operands[0] == "bool":
            one, other = (b.apply("lt", x, leaves["real"]) for x in (one, other))
        assert b.apply(op, one, other) is b.apply(op, other, one)


def _llvm():
    return pytest.importorskip("amidmath.backends.llvm_kernels.operations").OPERATIONS


def _triton():
    from amidmath.backends.triton_kernels.source import OPERATIONS

    return OPERATIONS


@pytest.mark.parametrize(
    "spelled",
    [_llvm, _triton, lambda: cuda.OPERATIONS],
    ids=["LLVM", "Triton", "CUDA C++"],
)
def test_every_target_spells_every_operation_and_nothing_else(spelled):
    assert set(spelled()) == set(ELEMENTWISE)


@pytest.mark.parametrize("op", sorted(ELEMENTWISE))
def test_targets_of_text_name_every_operand_once(op):
    operands = [f"operand{j}" for j in range(len(OPERATIONS[op].operands))]
    for operations in (_triton(), cuda.OPERATIONS):
        text = operations[op].format(*operands)
        assert [text.count(name) for name in operands] == [1] * len(operands)
