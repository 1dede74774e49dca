"""What the CPU is given: vectors, and no calls in the loops over the tokens."""

from __future__ import annotations

import platform
import re

import pytest

import amidmath as am
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm

pytest.importorskip("llvmlite")
from amidmath.backends.llvm_kernels import jit
from amidmath.backends.llvm_kernels import kernels as llvm_kernels

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="reads the assembly of x86-64"
)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float64"])
def assembly(request):
    form = RowForm(am.AMiD(am.JensenShannon(0.5), order="qr", alpha=0.5).block)
    program = row_program(form, (True, True), request.param == "float64")
    text, *_ = llvm_kernels.llvm_text(
        program, (request.param,) * 2, request.param == "float64", False
    )
    return jit.assembly(text), "pd" if request.param == "float64" else "ps"


def test_arithmetic_is_packed(assembly):
    code, suffix = assembly
    registers = "zmm" if jit.vector_bytes() == 64 else "ymm"
    packed = re.findall(rf"vf(?:n?m)(?:add|sub)\d+{suffix}\s.*%{registers}", code)
    assert len(packed) > 50


def test_nothing_is_called_but_the_ends_of_rows(assembly):
    code, _ = assembly
    # By name, or by a register that an address was put into.
    called = set(re.findall(r"\bcall[a-z]*\s+([^*\s]\S*)", code))
    called |= set(re.findall(r"\bmovabsq\s+\$([A-Za-z_]\w*)", code))
    assert called
    assert all(re.fullmatch(r"(load|store)_\w+", name) for name in called), called
    assert not re.search(r"\b(expf?|logf?|expm1f?|log1pf?|fmaf?|memcpy)\b", code)
