"""JAX on the CPU: compiled rows as a foreign function that XLA calls.

XLA passes the addresses of arguments and results by its C interface (``xla/ffi/api/c_api.h``,
version 0), so that nothing is copied. The handler is a Python function: XLA's thread holds the GIL
for as long as it takes to find the kernel, which then runs without it.
"""

import ctypes
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
from jax.interpreters import mlir

from amidmath.arrays.annotations import Array
from amidmath.compiler.graph import UnsupportedError
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm

_TARGET = "amidmath_rows"
_MAJOR, _MINOR = 0, 1
_EXECUTE, _METADATA, _INTERNAL_ERROR = 3, 1, 13
_DTYPES = {1: "bool", 10: "float16", 11: "float32", 12: "float64", 16: "bfloat16"}
_BYTES = {"bool": 1, "float16": 2, "float32": 4, "float64": 8, "bfloat16": 2}
_SIZE, _PLACE, _COUNT = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64


def _struct(name: str, *fields: tuple[str, Any]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


# The structures of the interface, as far as they are read or written here.
_Extension = _struct("Extension", ("size", _SIZE), ("type", ctypes.c_int), ("next", _PLACE))
_Version = _struct(
    "Version",
    *(("size", _SIZE), ("extension", _PLACE), ("major", ctypes.c_int), ("minor", ctypes.c_int)),
)
_Metadata = _struct("Metadata", ("size", _SIZE), ("version", _Version))
_MetadataExtension = _struct(
    "MetadataExtension", ("base", _Extension), ("metadata", ctypes.POINTER(_Metadata))
)
_Buffer = _struct(
    "Buffer",
    *(("size", _SIZE), ("extension", _PLACE), ("dtype", ctypes.c_int), ("data", _PLACE)),
    *(("rank", _COUNT), ("dims", ctypes.POINTER(_COUNT))),
)
_Span = _struct("Span", ("data", ctypes.POINTER(ctypes.c_char)), ("length", _SIZE))
_Buffers = _struct(
    "Buffers",
    *(("size", _SIZE), ("extension", _PLACE), ("count", _COUNT), ("types", _PLACE)),
    ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
)
_Attributes = _struct(
    "Attributes",
    *(("size", _SIZE), ("extension", _PLACE), ("count", _COUNT), ("types", _PLACE)),
    *(("names", _PLACE), ("items", ctypes.POINTER(ctypes.POINTER(_Span)))),
)
_ErrorArguments = _struct(
    "ErrorArguments",
    *(("size", _SIZE), ("extension", _PLACE)),
    *(("message", ctypes.c_char_p), ("code", ctypes.c_int)),
)
_MakeError = ctypes.CFUNCTYPE(_PLACE, ctypes.POINTER(_ErrorArguments))
_Api = _struct(
    "Api",
    *(("size", _SIZE), ("extension", _PLACE), ("version", _Version), ("internal", _PLACE)),
    ("make_error", _MakeError),
)
_Frame = _struct(
    "Frame",
    *(("size", _SIZE), ("extension", ctypes.POINTER(_MetadataExtension))),
    *(("api", ctypes.POINTER(_Api)), ("context", _PLACE), ("stage", ctypes.c_int)),
    *(("arguments", _Buffers), ("results", _Buffers), ("attributes", _Attributes)),
)


@dataclass(frozen=True)
class _Call:
    """The computation of a foreign call."""

    form: RowForm
    needs: tuple[bool, ...]


_CALLS: dict[str, _Call] = {}
"""By a digest of what is computed, which a compiled program that was kept on disk still names."""


def kernel(form: RowForm, operands: tuple[Array, ...], needs: tuple[bool, ...]) -> str:
    """The name by which a call finds what it is to compute.

    Raises:
        UnsupportedError: there is no kernel for it.
    """
    return _registered(form, needs, tuple(str(a.dtype) for a in operands))


@lru_cache(maxsize=1024)
def _registered(form: RowForm, needs: tuple[bool, ...], dtypes: tuple[str, ...]) -> str:
    program = row_program(form, needs, "float64" in dtypes[:2])
    if len(program.given) < sum(needs):
        raise UnsupportedError("a derivative that the block does not give")
    what = (program.structure, program.numbers, needs, dtypes, form.masked, form.scaled)
    key = hashlib.sha256(repr(what).encode()).hexdigest()
    _CALLS[key] = _Call(form, needs)
    return key


def why_not(module: Any) -> str | None:
    """Why a program cannot call a kernel here; None where it can.

    Args:
        module: the context of the lowering. A call would not be shared out by XLA's partitioner, so
            there is to be one device, or all axes of the mesh belong to a ``shard_map``.
    """
    if module.lowering_parameters.for_export:
        return "the program is exported, and kernels are of this process"
    context = module.axis_context
    if isinstance(context, mlir.ShardingContext):
        devices = context.num_devices
    else:
        shape, manual = context.mesh.shape, context.manual_axes
        devices = math.prod(size for axis, size in shape.items() if axis not in manual)
    if devices != 1:
        return f"the program is for {devices} devices that share the arrays"
    return None


def lower(ctx: Any, operands: Sequence[Any], key: str) -> Any:
    """The call, in a lowering, of a kernel that is compiled by now.

    Raises:
        UnsupportedError: it cannot be.
    """
    from amidmath.backends.llvm_kernels import kernels as llvm_kernels

    call = _CALLS[key]
    llvm_kernels.kernel_of(call.form, call.needs, [str(aval.dtype) for aval in ctx.avals_in])
    _register()
    return jax.ffi.ffi_lowering(_TARGET)(ctx, *operands, key=key)


@lru_cache(maxsize=1)
def _register() -> None:
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(_handler), platform="cpu")


def _compute(frame: Any) -> None:
    from amidmath.backends.llvm_kernels import kernels as llvm_kernels

    span = frame.attributes.items[0].contents
    call = _CALLS.get(ctypes.string_at(span.data, span.length).decode())
    if call is None:
        raise RuntimeError(
            "the program was compiled in another process, whose kernels are not here: trace the "
            "loss in this one too, or write it down by jax.export, which leaves them out"
        )
    arguments = [frame.arguments.items[j].contents for j in range(frame.arguments.count)]
    results = [frame.results.items[j].contents for j in range(frame.results.count)]
    vocabulary = arguments[0].dims[arguments[0].rank - 1]
    rows = math.prod(arguments[0].dims[: arguments[0].rank]) // vocabulary
    computed = iter(results)

    def view(buffer: Any) -> llvm_kernels.View:
        dtype = _DTYPES[buffer.dtype]
        numbers = math.prod(buffer.dims[: buffer.rank])
        return llvm_kernels.View(buffer.data or 0, numbers // rows * _BYTES[dtype], dtype)

    def empty(which: int | None) -> tuple[Any, llvm_kernels.View]:
        return None, view(next(computed))

    views = [view(a) for a in arguments]
    threads = llvm_kernels.threads_at_hand()
    llvm_kernels.run(call.form, call.needs, views, rows, vocabulary, empty, threads)


@ctypes.CFUNCTYPE(_PLACE, ctypes.POINTER(_Frame))  # type: ignore[untyped-decorator]
def _handler(pointer: Any) -> int | None:
    """XLA's entry: tells its version when asked, computes, and gives errors back as XLA's own."""
    frame = pointer.contents
    extension = frame.extension
    if extension and extension.contents.base.type == _METADATA:
        version = extension.contents.metadata.contents.version
        version.major, version.minor = _MAJOR, _MINOR
        return None
    if frame.stage != _EXECUTE:
        return None
    try:
        _compute(frame)
    except BaseException as error:  # no exception must cross XLA's frames, nor be lost there
        message = f"amidmath: {type(error).__name__}: {error}".encode()
        arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, _INTERNAL_ERROR)
        made: int | None = frame.api.contents.make_error(ctypes.byref(arguments))
        return made
    return None
