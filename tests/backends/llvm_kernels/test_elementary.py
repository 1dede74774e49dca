"""The kernels' elementary functions against mpmath, in vectors and one by one."""

from __future__ import annotations

import ctypes
import functools
import math

import mpmath
import numpy as np
import pytest

pytest.importorskip("llvmlite")
from llvmlite import ir

from amidmath.backends.llvm_kernels import jit
from amidmath.backends.llvm_kernels.elementary import Lanes

DTYPE = {32: np.float32, 64: np.float64}
NAMES = ("exp", "expm1", "log", "log1p", "log1p_near")
BOUND = 2.0  # units in the last place
RNG = np.random.default_rng(0)


@functools.cache
def native(name, bits, width, **options):
    """``f(source, target, vectors)``, which maps an array."""
    module = ir.Module()
    integer = ir.IntType(64)
    pointer = Lanes(ir.IRBuilder(), bits, width).real_type.as_pointer()
    type_ = ir.FunctionType(ir.VoidType(), [pointer, pointer, integer])
    function = ir.Function(module, type_, name="map")
    source, target, count = function.args
    before, body, after = (function.append_basic_block() for _ in range(3))
    b = ir.IRBuilder(before)
    b.branch(body)
    b.position_at_end(body)
    i = b.phi(integer)
    value = b.load(b.gep(source, [i]), align=bits // 8)
    result = getattr(Lanes(b, bits, width), name)(value, **options)
    b.store(result, b.gep(target, [i]), align=bits // 8)
    following = b.add(i, ir.Constant(integer, 1))
    i.add_incoming(ir.Constant(integer, 0), before)
    i.add_incoming(following, body)
    b.cbranch(b.icmp_signed("<", following, count), body, after)
    b.position_at_end(after)
    b.ret_void()
    arguments = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return jit.native(str(module), "map", *arguments)


class Function:
    """One of the functions, at one precision and one width."""

    def __init__(self, bits, width):
        self.bits, self.width, self.dtype = bits, width, DTYPE[bits]
        self.info = np.finfo(self.dtype)

    def __call__(self, name, x, **options):
        x = np.array(x, self.dtype)
        padded = np.resize(x, -(-x.size // self.width) * self.width)
        result = np.empty_like(padded)
        vectors = padded.size // self.width
        mapped = native(name, self.bits, self.width, **options)
        mapped(padded.ctypes.data, result.ctypes.data, vectors)
        return result[: x.size]


@pytest.fixture(
    params=[(bits, vector) for bits in (32, 64) for vector in (True, False)],
    ids=lambda p: f"{p[0]} bits, {'vectors' if p[1] else 'numbers'}",
)
def function(request):
    bits, vector = request.param
    return Function(bits, jit.vector_bytes() * 8 // bits if vector else 1)


def log_uniform(count, low, high):
    return np.exp(RNG.uniform(math.log(low), math.log(high), size=count))


def ranges(name, info, count):
    """Where a function is wanted: densely, around its special points, and over all exponents."""
    tiny, huge = float(info.smallest_normal), float(info.max)
    low, high = math.log(tiny) + 0.5 * math.log(2.0), math.log(huge)
    near = log_uniform(count, 1e-3 * float(info.eps), 1.0)
    if name in ("exp", "expm1"):
        multiples = math.log(2.0) * (np.arange(round(low), round(high)) + 0.5)
        x = [RNG.uniform(-1, 1, count), RNG.uniform(low, high - 1e-3, count), near, -near]
        x += [multiples[(multiples > low) & (multiples < high)]]
    elif name == "log":
        x = [log_uniform(count, 2 * tiny, huge), RNG.uniform(0.4, 2.5, count), 1 + near, 1 - near]
        x += [2.0 ** RNG.uniform(-60, 60, count) * math.sqrt(2.0)]
    elif name == "log1p":
        x = [RNG.uniform(-1, 3, count), log_uniform(count, 1.0, huge), near, -near * (1 - 1e-3)]
    else:
        x = [RNG.uniform(-0.29, 1.0, count), near, -0.29 * near]
    return np.concatenate(x).astype(info.dtype)


TRUTH = {
    "exp": mpmath.exp,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log1p": mpmath.log1p,
    "log1p_near": mpmath.log1p,
}


def errors(name, x, got):
    """In units in the last place of the true value."""
    if x.dtype == np.float32:  # a thousandth of a unit is enough
        wanted = getattr(np, "log1p" if name == "log1p_near" else name)(x.astype(np.float64))
        unit = np.spacing(np.abs(wanted).astype(np.float32)).astype(np.float64)
        return np.abs(got.astype(np.float64) - wanted) / unit
    with mpmath.workdps(40):
        found = []
        for u, v in zip(x.tolist(), got.tolist(), strict=True):
            wanted = TRUTH[name](mpmath.mpf(u))
            found.append(float(abs(mpmath.mpf(v) - wanted) / np.spacing(abs(float(wanted)))))
        return np.array(found)


@pytest.mark.parametrize("name", NAMES)
def test_error(function, name):
    x = ranges(name, function.info, 40_000 if function.bits == 32 else 2_000)
    got = function(name, x)
    off = errors(name, x, got)
    worst = int(np.argmax(off))
    assert off[worst] <= BOUND, f"{name}({x[worst]!r}) = {got[worst]!r}, off by {off[worst]} ulp"


NAN, INF = math.nan, math.inf
SPECIAL = {
    "exp": ((0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (1e5, INF), (-1e5, 0.0)),
    "expm1": ((0.0, 0.0), (INF, INF), (-INF, -1.0), (1e5, INF), (-1e5, -1.0)),
    "log": ((0.0, -INF), (-0.0, -INF), (1.0, 0.0), (INF, INF), (-INF, NAN), (-1.0, NAN)),
    "log1p": ((0.0, 0.0), (-1.0, -INF), (INF, INF), (-INF, NAN), (-1.5, NAN)),
    "log1p_near": ((0.0, 0.0),),
}


@pytest.mark.parametrize("name", NAMES)
def test_special_values(function, name):
    x, wanted = np.array([*SPECIAL[name], (NAN, NAN)], function.dtype).T
    np.testing.assert_array_equal(function(name, x), wanted)


def test_exp_at_the_ends_of_the_exponents(function):
    """0 from next to the smallest normal number down, infinite beyond the largest."""
    tiny, huge = float(function.info.smallest_normal), float(function.info.max)
    below = math.log(tiny) - np.array([0.0, 0.5, 1.0, 5.0, 15.0, 50.0])
    np.testing.assert_array_equal(function("exp", below), 0.0)
    top = np.array([math.log(huge) - 0.36, math.log(huge) - 1e-3], function.dtype)
    assert errors("exp", top, function("exp", top)).max() <= BOUND
    above = math.log(huge) + np.array([1e-3, 1.0])
    np.testing.assert_array_equal(function("exp", above), np.inf)


def test_logarithm_of_subnormal_numbers(function):
    smallest = float(function.info.smallest_subnormal)
    x = np.array([1.0, 2.0, 3.0, 1000.0, 12345.0], function.dtype) * function.dtype(smallest)
    assert (x > 0.0).all()
    assert errors("log", x, function("log", x)).max() <= BOUND


@pytest.mark.parametrize("name", ["expm1", "log1p", "log1p_near"])
def test_small_numbers_map_to_themselves(function, name):
    """Also where their squares underflow."""
    info = function.info
    x = np.array([info.smallest_normal, info.smallest_normal * 3, info.eps / 8], function.dtype)
    np.testing.assert_array_equal(function(name, x), x)


def test_exp_of_what_is_never_positive_needs_no_upper_end(function):
    """What row programs say of x - max x spares a comparison."""
    x = -log_uniform(1000, 1e-6, 80.0).astype(function.dtype)
    np.testing.assert_array_equal(function("exp", x, nonpositive=True), function("exp", x))


@pytest.mark.parametrize("bits", [32, 64])
def test_arcsine_of_one_number_is_the_librarys(bits):
    x = np.array([0.0, -0.0, 1e-30, 0.3, 0.5, -0.9, 1.0, -1.0, 1.5, math.nan], DTYPE[bits])
    with np.errstate(invalid="ignore"):
        wanted = np.arcsin(x.astype(np.float64)).astype(DTYPE[bits])
    np.testing.assert_allclose(Function(bits, 1)("asin", x), wanted, rtol=np.finfo(x.dtype).eps)
