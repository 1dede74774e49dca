"""CUDA kernels on the CPU: their source through the machine's C++ compiler, and a CuPy over NumPy.

A block's threads are threads of the CPU, with a barrier between them; blocks run one after the
other. ``cuda_on_cpu.hpp`` has what the kernels use of CUDA.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-pthread")
MOST_THREADS = 4
"""To a block: enough that what is shared between threads goes wrong if it can."""


class Array(np.ndarray):
    """An array that is on a device to be entered, as CuPy's are."""

    device = contextlib.nullcontext()


def array(values: Any) -> Array:
    return np.array(values).view(Array)


class RawKernel:
    """cupy.RawKernel, as far as row kernels use it."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        self.code, self.name, self.options = code, name, options

    def __call__(self, grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
        """Launch, with arguments in the kernel's own types, as the CUDA driver takes them."""
        types = _parameters(self.code, self.name)
        assert len(args) == len(types)
        held = [_argument(type_, a) for type_, a in zip(types, args, strict=True)]
        addresses = (ctypes.c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
        _launcher(self.code, self.name)(grid[0], min(block[0], MOST_THREADS), addresses)


def _parameters(code: str, name: str) -> list[str]:
    match = re.search(rf"\b{name}\(([^()]*)\) \{{", code)
    assert match is not None
    return [parameter.rsplit(" ", 1)[0] for parameter in match[1].split(", ")]


def _argument(type_: str, value: Any) -> Any:
    """The argument's bytes; what is not what the kernel takes is an error, not a wrong result."""
    if type_.endswith("*"):
        assert isinstance(value, np.ndarray)
        return ctypes.c_void_p(value.ctypes.data)
    if type_ == "integer":
        assert isinstance(value, np.int64)
        return ctypes.c_int64(int(value))
    assert type_ == "real"
    assert isinstance(value, np.floating)
    is_double = isinstance(value, np.float64)
    return (ctypes.c_double if is_double else ctypes.c_float)(float(value))


@cache
def _launcher(code: str, name: str) -> Any:
    """The machine code of a kernel and its launch."""
    types = _parameters(code, name)
    passed = ", ".join(f"*({type_}*)arguments[{j}]" for j, type_ in enumerate(types))
    launch = (
        f'extern "C" void launch_it(unsigned blocks, unsigned threads, void** arguments) {{\n'
        f"    launch(blocks, threads, [&] {{ {name}({passed}); }});\n}}\n"
    )
    assert COMPILER is not None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "rows.cpp"), Path(folder, "rows.so")
        source.write_text(code + launch)
        included = ("-I", str(HERE), "-include", str(HERE / "cuda_on_cpu.hpp"))
        command = [COMPILER, *FLAGS, *included, str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library)).launch_it


def cupy() -> SimpleNamespace:
    """A module to import as cupy."""
    return SimpleNamespace(
        RawKernel=RawKernel,
        # Not zeros, with which a kernel that forgets to write would pass.
        empty=lambda shape, dtype: np.full(shape, 7.0, dtype).view(Array),
        ascontiguousarray=lambda a: np.ascontiguousarray(a).view(Array),
        int64=np.int64,
        float32=np.float32,
        float64=np.float64,
    )
