"""exp, log and their kin as LLVM instructions over vectors: no calls, no branches, no tables.

Argument reduction and polynomials, as libraries of vector functions have them; the polynomials are
Chebyshev fits (``mpmath.chebyfit``) of what is left after the leading terms. Errors are within
two units in the last place: tests/backends/llvm_kernels/test_elementary.py measures them.
"""

import math
import struct
from typing import Any

from llvmlite import ir

# fmt: off
# (eʳ - 1 - r)/r² on |r| <= ½ log 2, highest power first.
_EXP = {
    32: (
        0.0013926926614021907, 0.008363773874405574, 0.04166655011030512, 0.16666573381900845, 0.5,
    ),
    64: (
        2.0915442297780116e-09, 2.5106274733573296e-08, 2.75572718102198e-07,
        2.755725283351691e-06, 2.4801587327007187e-05, 0.00019841269876864356,
        0.0013888888888883327, 0.008333333333325544, 0.04166666666666667, 0.1666666666666667, 0.5,
    ),
}
# (log(1+f) - f + f²/2)/f³ on √½ - 1 <= f <= √2 - 1.
_LOG = (
    0.06971611471451178, -0.11479733846637635, 0.1168541992348674, -0.12425687331451106,
    0.1424905764569748, -0.16667802319501254, 0.200007157488921, -0.24999996957950882,
    0.33333331180030046,
)
# (2 atanh(s)/s - 2)/s² in s², |s| <= √2 - 1 over √2 + 1.
_ATANH = (
    0.14618462083796982, 0.15331558670323325, 0.18182894030543298, 0.22222211067419392,
    0.2857142862638853, 0.39999999999898594, 0.666666666666667,
)
# fmt: on
# log 2 in two parts, the first with enough zeros at its end that whole multiples of it are exact.
_LOG2 = {
    32: (0.693145751953125, 1.428606820309417e-06),
    64: (0.6931471803691238, 1.9082149292705877e-10),
}
_MANTISSA = {32: 23, 64: 52}
_BIAS = {32: 127, 64: 1023}


class Lanes:
    """Arithmetic on vectors of floating-point numbers, or on single ones.

    Args:
        builder: where instructions go.
        bits: 32 or 64.
        width: numbers in a vector; 1 for plain numbers.
    """

    def __init__(self, builder: ir.IRBuilder, bits: int, width: int) -> None:
        """Prepare the types."""
        self.builder, self.bits, self.width = builder, bits, width
        self.scalar = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.integer = ir.IntType(bits)
        self.real_type = self.of(self.scalar)
        self.int_type = self.of(self.integer)

    def of(self, type_: Any) -> Any:
        """The type of as many as there are lanes."""
        return type_ if self.width == 1 else ir.VectorType(type_, self.width)

    def real(self, value: float) -> Any:
        """A constant in every lane."""
        if self.bits == 32 and math.isfinite(value):
            value = _float32(value)
        return self._constant(self.real_type, self.scalar, value)

    def whole(self, value: int) -> Any:
        """An integer constant in every lane."""
        return self._constant(self.int_type, self.integer, value)

    def _constant(self, type_: Any, element: Any, value: Any) -> Any:
        if self.width == 1:
            return ir.Constant(element, value)
        return ir.Constant(type_, [ir.Constant(element, value)] * self.width)

    def splat(self, value: Any) -> Any:
        """A number in every lane."""
        if self.width == 1:
            return value
        undefined = ir.Constant(ir.VectorType(value.type, self.width), ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, undefined, mask)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a·b + c, rounded once."""
        return self._intrinsic("fma", a, b, c)

    def unary(self, name: str, x: Any) -> Any:
        """An LLVM intrinsic of one argument."""
        return self._intrinsic(name, x)

    def _intrinsic(self, name: str, *args: Any) -> Any:
        module, kind = self.builder.module, f"f{self.bits}"
        full = f"llvm.{name}.{kind if self.width == 1 else f'v{self.width}{kind}'}"
        if full not in module.globals:
            type_ = ir.FunctionType(self.real_type, [self.real_type] * len(args))
            ir.Function(module, type_, name=full)
        return self.builder.call(module.globals[full], args)

    def _bits(self, x: Any) -> Any:
        return self.builder.bitcast(x, self.int_type)

    def _reals(self, n: Any) -> Any:
        return self.builder.bitcast(n, self.real_type)

    def _polynomial(self, coefficients: tuple[float, ...], z: Any) -> Any:
        """Even and odd powers apart: two chains of half the length, which run side by side."""
        square = self.builder.fmul(z, z)
        parts = []
        for start in (0, 1):
            chosen = coefficients[::-1][start::2][::-1]
            total = self.real(chosen[0])
            for c in chosen[1:]:
                total = self.fma(total, square, self.real(c))
            parts.append(total)
        return self.fma(parts[1], z, parts[0])

    def _reduced(self, x: Any, halved: bool) -> tuple[Any, Any]:
        """eʳ - 1 and 2ⁿ, or half of it, for x = n log 2 + r; meaningless beyond exponents' range.

        Adding 1.5·2^mantissa rounds to a whole number, which is then in the lowest bits; with the
        exponent's bias added as well they are those of 2ⁿ.
        """
        b = self.builder
        high, low = _LOG2[self.bits]
        bias = _BIAS[self.bits] - halved
        magic = self.real(1.5 * 2.0 ** _MANTISSA[self.bits] + bias)
        shifted = self.fma(x, self.real(1.4426950408889634), magic)
        n = b.fsub(shifted, magic)
        r = self.fma(n, self.real(-high), x)
        r = self.fma(n, self.real(-low), r)
        beyond = self.fma(b.fmul(r, r), self._polynomial(_EXP[self.bits], r), r)
        power = b.shl(self._bits(shifted), self.whole(_MANTISSA[self.bits]))
        return beyond, self._reals(power)

    @property
    def _lowest(self) -> float:
        """The number below which exp is no normal number, and counts as 0."""
        return math.log(2.0) * (1.5 - _BIAS[self.bits])

    @property
    def _highest(self) -> float:
        """The number above which exp is beyond the largest number."""
        return math.log(2.0) * (_BIAS[self.bits] + 1)

    def exp(self, x: Any, nonpositive: bool = False) -> Any:
        """e^x."""
        beyond, power = self._reduced(x, halved=not nonpositive)
        y = self.builder.fmul(self.builder.fadd(beyond, self.real(1.0)), power)
        low = self.builder.fcmp_ordered("<", x, self.real(self._lowest))
        y = self.builder.select(low, self.real(0.0), y)
        if nonpositive:
            return y
        high = self.builder.fcmp_ordered(">", x, self.real(self._highest))
        return self.builder.select(high, self.real(math.inf), self.builder.fadd(y, y))

    def expm1(self, x: Any) -> Any:
        """e^x - 1, as precise near 0."""
        b = self.builder
        lowest = -20.0 if self.bits == 32 else -40.0
        x = b.select(b.fcmp_ordered("<", x, self.real(lowest)), self.real(lowest), x)
        beyond, power = self._reduced(x, halved=True)
        half = self.fma(beyond, power, b.fsub(power, self.real(0.5)))
        high = b.fcmp_ordered(">", x, self.real(self._highest))
        return b.select(high, self.real(math.inf), b.fadd(half, half))

    def _split(self, u: Any) -> tuple[Any, Any]:
        """(e, m) for a normal u > 0, u = m·2^e with √½ <= m < √2; e is a whole number."""
        b, shift = self.builder, self.whole(_MANTISSA[self.bits])
        root_bits = 0x3F3504F3 if self.bits == 32 else 0x3FE6A09E667F3BCD
        e = b.ashr(b.sub(self._bits(u), self.whole(root_bits)), shift)
        return e, self._reals(b.sub(self._bits(u), b.shl(e, shift)))

    def _log_of(self, e: Any, f: Any) -> Any:
        """e·log 2 + log(1 + f) for √½ - 1 <= f <= √2 - 1."""
        b = self.builder
        high, low = _LOG2[self.bits]
        if self.bits == 32:
            return self.fma(e, self.real(high), self.fma(e, self.real(low), self._log1p_single(f)))
        half_square = b.fmul(self.real(0.5), b.fmul(f, f))
        s = b.fdiv(f, b.fadd(f, self.real(2.0)))
        z = b.fmul(s, s)
        rest = b.fmul(s, self.fma(z, self._polynomial(_ATANH, z), half_square))
        tail = self.fma(e, self.real(low), b.fsub(rest, half_square))
        return self.fma(e, self.real(high), b.fadd(f, tail))

    def _log1p_single(self, f: Any) -> Any:
        """log(1 + f) in single precision for √½ - 1 <= f <= √2 - 1: f + f²(f P(f) - ½)."""
        bend = self.fma(f, self._polynomial(_LOG, f), self.real(-0.5))
        return self.fma(self.builder.fmul(f, f), bend, f)

    def _where_positive(self, u: Any, value: Any) -> Any:
        """The logarithm's value for 0 < u < ∞, and its limits and NaN elsewhere."""
        b = self.builder
        value = b.select(b.fcmp_ordered("==", u, self.real(math.inf)), u, value)
        value = b.select(b.fcmp_ordered("==", u, self.real(0.0)), self.real(-math.inf), value)
        outside = b.fcmp_unordered("<", u, self.real(0.0))
        return b.select(outside, self.real(math.nan), value)

    def log(self, x: Any) -> Any:
        """Log x."""
        b = self.builder
        smallest, lift = 2.0 ** (1 - _BIAS[self.bits]), _MANTISSA[self.bits] + 1
        tiny = b.fcmp_ordered("<", x, self.real(smallest))
        u = b.select(tiny, b.fmul(x, self.real(2.0**lift)), x)
        e, m = self._split(u)
        exponent = b.sitofp(e, self.real_type)
        exponent = b.select(tiny, b.fsub(exponent, self.real(float(lift))), exponent)
        f = b.fsub(m, self.real(1.0))
        return self._where_positive(x, self._log_of(exponent, f))

    def log1p(self, x: Any) -> Any:
        """log(1 + x), as precise near 0: what rounding takes from 1 + x is put back."""
        b = self.builder
        u = b.fadd(x, self.real(1.0))
        e, m = self._split(u)
        lost = b.fsub(x, b.fsub(u, self.real(1.0)))
        bias, shift = self.whole(_BIAS[self.bits]), self.whole(_MANTISSA[self.bits])
        # Nothing is lost where 2^-e is not a normal number.
        there = b.icmp_signed("<", e, bias)
        inverse = self._reals(b.shl(b.sub(bias, e), shift))
        inverse = b.select(there, inverse, self.real(0.0))
        f = self.fma(lost, inverse, b.fsub(m, self.real(1.0)))
        return self._where_positive(u, self._log_of(b.sitofp(e, self.real_type), f))

    def log1p_near(self, x: Any) -> Any:
        """log(1 + x) for -0.29 < x <= 1."""
        b = self.builder
        above = b.fcmp_ordered(">", x, self.real(math.sqrt(2.0) - 1.0))
        f = b.select(above, self.fma(x, self.real(0.5), self.real(-0.5)), x)
        if self.bits == 32:
            near = self._log1p_single(f)
            return b.select(above, b.fadd(near, self.real(math.log(2.0))), near)
        return self._log_of(b.select(above, self.real(1.0), self.real(0.0)), f)

    def asin(self, x: Any) -> Any:
        """Arcsin x of one number, by the function of C's library."""
        b, double = self.builder, ir.DoubleType()
        functions = b.module.globals
        if "asin" not in functions:
            ir.Function(b.module, ir.FunctionType(double, [double]), name="asin")
        if self.bits == 64:
            return b.call(functions["asin"], [x])
        return b.fptrunc(b.call(functions["asin"], [b.fpext(x, double)]), self.scalar)


def _float32(value: float) -> float:
    """The nearest number that single precision has."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
