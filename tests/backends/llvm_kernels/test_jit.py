"""Machine code: vectors, no calls in the loops over the tokens, on this processor and on others."""

from __future__ import annotations

import itertools
import platform
import re

import pytest

import amidmath as am
from amidmath.compiler.graph import UnsupportedError
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm

pytest.importorskip("llvmlite")
from llvmlite import binding as llvm
from storage import written

from amidmath.backends.llvm_kernels import jit
from amidmath.backends.llvm_kernels import kernels as llvm_kernels
from amidmath.backends.llvm_kernels.memory import DTYPES

on_x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="reads the assembly of x86-64"
)
PROCESSORS = [
    ("x86_64-unknown-linux-gnu", "x86-64-v3", 32),
    ("x86_64-unknown-linux-gnu", "x86-64-v4", 64),
    ("x86_64-unknown-linux-gnu", "sapphirerapids", 64),
    ("aarch64-unknown-linux-gnu", "generic", 32),
    ("aarch64-unknown-linux-gnu", "neoverse-v1", 32),
    ("arm64-apple-darwin", "apple-m1", 32),
]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float64"])
def assembly(request):
    form = RowForm(am.AMiD(am.JensenShannon(0.5), order="qr", alpha=0.5).block)
    program = row_program(form, (True, True), request.param == "float64")
    text, *_ = llvm_kernels.llvm_text(
        program, (request.param,) * 2, request.param == "float64", False
    )
    return jit.assembly(text), "pd" if request.param == "float64" else "ps"


@on_x86
def test_arithmetic_is_packed(assembly):
    code, suffix = assembly
    registers = "zmm" if jit.vector_bytes() == 64 else "ymm"
    packed = re.findall(rf"vf(?:n?m)(?:add|sub)\d+{suffix}\s.*%{registers}", code)
    assert len(packed) > 50


@on_x86
def test_nothing_is_called_but_the_ends_of_rows(assembly):
    code, _ = assembly
    # By name, or by a register that an address was put into.
    called = set(re.findall(r"\bcall[a-z]*\s+([^*\s]\S*)", code))
    called |= set(re.findall(r"\bmovabsq\s+\$([A-Za-z_]\w*)", code))
    assert called
    assert all(re.fullmatch(r"(load|store)_\w+", name) for name in called), called
    assert not re.search(r"\b(expf?|logf?|expm1f?|log1pf?|fmaf?|memcpy)\b", code)


@pytest.fixture(params=PROCESSORS, ids=lambda p: f"{p[0].split('-')[0]} {p[1]}")
def processor(request, monkeypatch):
    """LLVM for another processor."""
    triple, name, size = request.param
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this LLVM does not know {triple}")
    machine = target.create_target_machine(cpu=name, opt=3, jit=True, codemodel="large")
    monkeypatch.setattr(jit, "machine", lambda: machine)
    monkeypatch.setattr(jit, "vector_bytes", lambda: size)
    return machine


def functions_of_libraries(code):
    """What a compiler's library or libm would have to bring."""
    names = r"_*(?:trunc|extend)[shdtb]f[shdtb]f2|__gnu_\w+|_?fmaf?|_?fmodf?|_?(?:exp|log)\w*f?"
    return set(re.findall(rf"(?:call|bl|b|movabsq|:abs_g0_nc:)\s*[#$]*({names})\b", code))


def test_functions_of_libraries_would_be_found():
    text = """
    declare float @llvm.fma.f32(float, float, float)
    define half @f(double %x, float %y) {
        %h = fptrunc double %x to half
        %z = call float @llvm.fma.f32(float %y, float %y, float %y)
        %t = fptrunc float %z to half
        %s = fadd half %h, %t
        ret half %s
    }
    """
    old = llvm.Target.from_triple(PROCESSORS[0][0]).create_target_machine(
        cpu="x86-64", opt=3, jit=True, codemodel="large"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit, "machine", lambda: old)
        found = functions_of_libraries(jit.assembly(text))
    assert {"__truncdfhf2", "fmaf"} <= found


def test_no_processor_needs_a_function_for_a_dtype(processor):
    for bits in (32, 64):
        for dtype, to in itertools.product(DTYPES, DTYPES):
            for width in (1, jit.vector_bytes() * 8 // bits):
                code = jit.assembly(written(dtype, bits, to, width))
                assert not functions_of_libraries(code)


def test_no_processor_needs_a_function_for_a_kernel(processor):
    form = RowForm(am.AMiD(alpha=0.5).block, masked=True, scaled=True)
    program = row_program(form, (True, True, False, False), True)
    text, *_ = llvm_kernels.llvm_text(program, ("float64", "float16"), True, True)
    assert not functions_of_libraries(jit.assembly(text))


def test_what_calls_an_unknown_function_is_not_run():
    text = """
    declare void @amidmath_has_no_such_function()
    define void @f() {
        call void @amidmath_has_no_such_function()
        ret void
    }
    """
    with pytest.raises(UnsupportedError, match="on this processor"):
        jit.native(text, "f")
