"""Conversions between the dtypes of the CPU's kernels, compiled by themselves."""

from __future__ import annotations

import ctypes
import functools

import ml_dtypes
import numpy as np
from llvmlite import ir

from amidmath.backends.llvm_kernels import jit
from amidmath.backends.llvm_kernels.elementary import Lanes
from amidmath.backends.llvm_kernels.memory import STORAGE, from_storage, to_storage

NUMPY = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
NUMPY["bfloat16"] = np.dtype(ml_dtypes.bfloat16)


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
