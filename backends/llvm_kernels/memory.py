"""Rows in memory: their dtypes, the arrays that a kernel gets, the ends of rows."""

import math
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from amidmath.backends.llvm_kernels.elementary import Lanes

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
STORAGE = {"float32": F32, "float64": F64, "bfloat16": I16, "float16": ir.HalfType()}
SIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
DTYPES = tuple(STORAGE)


@dataclass(frozen=True)
class Layout:
    """The layout of a kernel's arguments.

    Args:
        bits: of the computing dtype, 32 or 64.
        width: tokens in a vector.
        student: dtype of the student logits and their gradient.
        teacher: that of the teacher's.
        knobs: those of the knobs.
        masked: whether there is a mask of the rows.
        params: which of the program's numbers take part.
    """

    bits: int
    width: int
    student: str
    teacher: str
    knobs: tuple[str, ...]
    masked: bool
    params: tuple[int, ...]

    @property
    def pointers(self) -> list[str]:
        """The arrays, in the order in which their addresses and row strides are passed."""
        names = ["input0", "input1", *(f"knob{j}" for j in range(len(self.knobs)))]
        names += ["scale", "keep", "value", "partial0", "partial1"]
        return names + [f"partial{2 + j}" for j in range(len(self.knobs))]

    def dtype(self, name: str) -> str:
        """The dtype of one of the arrays."""
        kind, index = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
        if kind in ("input", "partial") and int(index) < 2:
            return (self.student, self.teacher)[int(index)]
        if kind == "knob":
            return self.knobs[int(index)]
        if kind == "partial":
            return self.knobs[int(index) - 2]
        return "uint8" if kind == "keep" else f"float{self.bits}"


def tail(module: ir.Module, verb: str, dtype: str, width: int) -> ir.Function:
    """A function that loads or stores the first few numbers of a vector."""
    element = STORAGE[dtype]
    name = f"{verb}_{dtype}"
    if name in module.globals:
        return module.globals[name]
    vector = ir.VectorType(element, width)
    if verb == "load":
        type_ = ir.FunctionType(vector, [element.as_pointer(), I64])
    else:
        type_ = ir.FunctionType(ir.VoidType(), [element.as_pointer(), I64, vector])
    function = ir.Function(module, type_, name=name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    scratch = b.alloca(vector)
    first = b.bitcast(scratch, element.as_pointer())
    lowest: Any = -math.inf
    if dtype == "bfloat16":
        lowest = 0xFF80
    fill = ir.Constant(vector, [ir.Constant(element, lowest)] * width)
    b.store(fill if verb == "load" else function.args[2], scratch)
    for j in range(width):
        place = [ir.Constant(I64, j)]
        inside = b.icmp_signed(">", function.args[1], ir.Constant(I64, j))
        with b.if_then(inside):
            ours, theirs = b.gep(first, place), b.gep(function.args[0], place)
            source, target = (theirs, ours) if verb == "load" else (ours, theirs)
            b.store(b.load(source, align=1), target, align=1)
    if verb == "load":
        b.ret(b.load(scratch))
    else:
        b.ret_void()
    return function


def load(dtype: str, row: Any, first: Any, length: Any, lanes: Lanes) -> Any:
    """A vector of a row as it is kept, from a position on; -inf beyond the end of the row."""
    b, width = lanes.builder, lanes.width
    vector = ir.VectorType(STORAGE[dtype], width)
    start = b.gep(b.bitcast(row, STORAGE[dtype].as_pointer()), [first])
    full = b.icmp_signed("<=", b.add(first, ir.Constant(I64, width)), length)
    with b.if_else(full, likely=True) as (then, otherwise):
        with then:
            whole = b.load(b.bitcast(start, vector.as_pointer()), align=1)
            whole_block = b.block
        with otherwise:
            part = b.call(tail(b.module, "load", dtype, width), [start, b.sub(length, first)])
            part_block = b.block
    raw = b.phi(vector)
    raw.add_incoming(whole, whole_block)
    raw.add_incoming(part, part_block)
    return raw


def store(dtype: str, stored: Any, row: Any, first: Any, length: Any, lanes: Lanes) -> None:
    """Write a vector to a row from a position on, as far as the row goes."""
    b, width = lanes.builder, lanes.width
    start = b.gep(b.bitcast(row, STORAGE[dtype].as_pointer()), [first])
    full = b.icmp_signed("<=", b.add(first, ir.Constant(I64, width)), length)
    with b.if_else(full, likely=True) as (then, otherwise):
        with then:
            b.store(stored, b.bitcast(start, stored.type.as_pointer()), align=1)
        with otherwise:
            rest = b.sub(length, first)
            b.call(tail(b.module, "store", dtype, width), [start, rest, stored])


def from_storage(dtype: str, raw: Any, lanes: Lanes) -> Any:
    """A number, or a vector, as it is kept, in the computing dtype."""
    if dtype == "bfloat16":
        raw, dtype = _from_bfloat16(raw, lanes), "float32"
    return _converted(raw, dtype, f"float{lanes.bits}", lanes)


def to_storage(dtype: str, value: Any, lanes: Lanes) -> Any:
    """A number, or a vector, as it is to be kept: rounded once, to the nearest."""
    computed = f"float{lanes.bits}"
    if computed == "float64" and dtype in ("float16", "bfloat16"):
        value, computed = _rounded_to_odd(value, lanes), "float32"
    if dtype == "bfloat16":
        return _to_bfloat16(value, lanes)
    return _converted(value, computed, dtype, lanes)


_BITS = {"float16": 16, "float32": 32, "float64": 64}
_REAL = {"float16": ir.HalfType(), "float32": F32, "float64": F64}


def _converted(value: Any, dtype: str, to: str, lanes: Lanes) -> Any:
    if dtype == to:
        return value
    b, type_ = lanes.builder, lanes.of(_REAL[to])
    return b.fpext(value, type_) if _BITS[dtype] < _BITS[to] else b.fptrunc(value, type_)


def _rounded_to_odd(value: Any, lanes: Lanes) -> Any:
    """In single precision: the number itself, or of the two beside it the one with an odd end.

    Rounding that to half precision is rounding the number itself, as half precision has at least
    two bits less everywhere. LLVM has no conversion from double precision to half precision for
    most processors, but calls a function of a compiler's library.
    """
    b = lanes.builder
    single = Lanes(b, 32, lanes.width)
    nearest = b.fptrunc(value, single.real_type)
    back = b.fpext(nearest, lanes.real_type)
    bits = b.bitcast(nearest, single.int_type)
    larger = b.fcmp_ordered(">", lanes.unary("fabs", back), lanes.unary("fabs", value))
    toward_zero = b.sub(bits, b.zext(larger, single.int_type))
    odd = b.or_(toward_zero, single.whole(1))
    inexact = b.fcmp_ordered("!=", back, value)  # of NaN there is one kind only
    return b.bitcast(b.select(inexact, odd, bits), single.real_type)


def _from_bfloat16(raw: Any, lanes: Lanes) -> Any:
    """The number whose upper half it is."""
    b = lanes.builder
    single = Lanes(b, 32, lanes.width)
    return b.bitcast(b.shl(b.zext(raw, single.int_type), single.whole(16)), single.real_type)


def _to_bfloat16(value: Any, lanes: Lanes) -> Any:
    """The upper half of a number in single precision, rounded to even; NaN stays NaN."""
    b = lanes.builder
    single = Lanes(b, 32, lanes.width)
    bits = b.bitcast(value, single.int_type)
    odd = b.and_(b.lshr(bits, single.whole(16)), single.whole(1))
    rounded = b.lshr(b.add(bits, b.add(odd, single.whole(0x7FFF))), single.whole(16))
    nan = b.fcmp_unordered("uno", value, value)
    rounded = b.select(nan, single.whole(0x7FC0), rounded)
    return b.trunc(rounded, lanes.of(I16))
