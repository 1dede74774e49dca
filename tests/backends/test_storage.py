"""Dtypes that kernels read and write: every number is rounded once, and nothing called for it.

What is right is known without a conversion: between two neighbours of a narrow dtype a number goes
to the nearer one, and from the middle to the one whose last bit is 0.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import re

import ml_dtypes
import numpy as np
import pytest

import amidmath as am
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm

pytest.importorskip("llvmlite")
from llvmlite import binding as llvm
from llvmlite import ir

from amidmath.backends.llvm_kernels import jit
from amidmath.backends.llvm_kernels import kernels as llvm_kernels
from amidmath.backends.llvm_kernels.elementary import Lanes
from amidmath.backends.llvm_kernels.memory import DTYPES, STORAGE, from_storage, to_storage
from amidmath.compiler.graph import UnsupportedError

NUMPY = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
NUMPY["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
NARROW = ("float16", "bfloat16")
KINDS = ("vectors", "numbers")


@pytest.fixture(autouse=True)
def _quiet():
    """NumPy warns of what overflows and of NaN, as is wanted here."""
    with np.errstate(all="ignore"):
        yield


def written(dtype, bits, to, width):
    """LLVM's text of ``map(source, target, vectors)``, which reads one dtype and writes another."""
    module = ir.Module()
    integer = ir.IntType(64)
    b = ir.IRBuilder()
    lanes = Lanes(b, bits, width)
    source_type, target_type = (lanes.of(STORAGE[d]).as_pointer() for d in (dtype, to))
    function = ir.Function(
        module, ir.FunctionType(ir.VoidType(), [source_type, target_type, integer]), name="map"
    )
    source, target, count = function.args
    before, body, after = (function.append_basic_block() for _ in range(3))
    b.position_at_end(before)
    b.branch(body)
    b.position_at_end(body)
    i = b.phi(integer)
    value = from_storage(dtype, b.load(b.gep(source, [i]), align=1), lanes)
    b.store(to_storage(to, value, lanes), b.gep(target, [i]), align=1)
    following = b.add(i, ir.Constant(integer, 1))
    i.add_incoming(ir.Constant(integer, 0), before)
    i.add_incoming(following, body)
    b.cbranch(b.icmp_signed("<", following, count), body, after)
    b.position_at_end(after)
    b.ret_void()
    return str(module)


@functools.cache
def native(dtype, bits, to, width):
    arguments = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return jit.native(written(dtype, bits, to, width), "map", *arguments)


def converted(x, bits, to, kind):
    """The numbers in another dtype, by way of a computing dtype."""
    width = jit.vector_bytes() * 8 // bits if kind == "vectors" else 1
    padded = np.resize(x, -(-x.size // width) * width)
    result = np.empty(padded.size, NUMPY[to])
    mapped = native(x.dtype.name, bits, to, width)
    mapped(padded.ctypes.data, result.ctypes.data, padded.size // width)
    return result[: x.size]


def every(dtype):
    """All numbers of a dtype of 16 bits."""
    return np.arange(2**16, dtype=np.uint16).view(NUMPY[dtype])


def ascending(dtype):
    """The finite ones from 0 up, and the number that infinity rounds as."""
    bits = np.arange(2**15, dtype=np.uint16).view(NUMPY[dtype]).astype(np.float64)
    finite = bits[np.isfinite(bits)]
    return np.append(finite, 2.0 * finite[-1] - finite[-2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_numbers_are_read_as_they_are_and_written_back(dtype, wide, kind):
    x = every(dtype)
    bits = 8 * NUMPY[wide].itemsize
    np.testing.assert_array_equal(converted(x, bits, wide, kind), x.astype(wide))
    back = converted(x, bits, dtype, kind)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(back.view(np.uint16)[number], x.view(np.uint16)[number])
    assert np.isnan(back[~number]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("dtype", NARROW)
def test_every_boundary_between_narrow_numbers(dtype, wide, kind):
    """The middle between neighbours and the numbers next to it, subnormal, largest and all."""
    numbers = ascending(dtype)
    middle = (0.5 * (numbers[:-1] + numbers[1:])).astype(wide)
    assert (middle.astype(np.float64) == 0.5 * (numbers[:-1] + numbers[1:])).all()
    place = np.arange(middle.size, dtype=np.uint16)  # of the lower neighbour: its bits
    zero, infinity = NUMPY[wide].type(0.0), NUMPY[wide].type(np.inf)
    below, above = np.nextafter(middle, zero), np.nextafter(middle, infinity)
    for x, wanted in ((below, place), (middle, place + (place & 1)), (above, place + 1)):
        for sign, bit in ((1, 0), (-1, 0x8000)):
            found = converted(sign * x, 8 * NUMPY[wide].itemsize, dtype, kind)
            np.testing.assert_array_equal(found.view(np.uint16), wanted | np.uint16(bit))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ends(dtype, kind):
    x = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, -5e-324, 0.0, -0.0, 1e-310])
    wanted = x.astype(NUMPY[dtype])
    found = converted(x, 64, dtype, kind)
    np.testing.assert_array_equal(found.astype(np.float64), wanted.astype(np.float64))
    number = ~np.isnan(x)
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(wanted[number]))


@pytest.mark.parametrize("kind", KINDS)
def test_single_and_double(kind):
    """A knob may be wider than what is computed with it."""
    x = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-50, 50).repeat(10)
    np.testing.assert_array_equal(converted(x, 32, "float32", kind), x.astype(np.float32))
    wanted = x.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(converted(x, 32, "float64", kind), wanted)


# ---------------------------------------------------------------------------------------------
# Functions that LLVM might call

PROCESSORS = [
    ("x86_64-unknown-linux-gnu", "x86-64-v3", 32),
    ("x86_64-unknown-linux-gnu", "x86-64-v4", 64),
    ("x86_64-unknown-linux-gnu", "sapphirerapids", 64),
    ("aarch64-unknown-linux-gnu", "generic", 32),
    ("aarch64-unknown-linux-gnu", "neoverse-v1", 32),
    ("arm64-apple-darwin", "apple-m1", 32),
]


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


@pytest.mark.parametrize("lacking", ["fma", "a function"])
def test_the_core_computes_where_the_processor_cannot(monkeypatch, lacking):
    """And it is found out once."""
    tried = itertools.count()
    original = llvm_kernels.llvm_text

    def llvm_text(*args):
        next(tried)
        text, *rest = original(*args)
        if lacking == "a function":
            call = "call void @amidmath_has_no_such_function()"
            text = text.replace("entry:\n", f"entry:\n{call}\n")
            text += "\ndeclare void @amidmath_has_no_such_function()"
        return text, *rest

    monkeypatch.setattr(llvm_kernels, "llvm_text", llvm_text)
    monkeypatch.setattr(llvm_kernels, "_KERNELS", type(llvm_kernels._KERNELS)(most=4))
    if lacking == "fma":
        monkeypatch.setattr(jit, "fuses", lambda: False)
    student, teacher = np.random.default_rng(0).normal(size=(2, 65, 1024)).astype(np.float32)
    loss = am.AMiD()
    for _ in range(3):
        assert loss(student, teacher) == loss(student, teacher, backend="reference")
    with pytest.raises(ValueError, match=r"'compiled' cannot compute this on (this|a) "):
        loss(student, teacher, backend="compiled")
    assert next(tried) == 1
