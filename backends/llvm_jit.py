"""Machine code from LLVM's textual form, for the CPU that this process runs on."""

import ctypes
from functools import lru_cache
from typing import Any

from llvmlite import binding as llvm

_ENGINES: list[Any] = []  # an engine owns its code: it must outlive every call


@lru_cache(maxsize=1)
def machine() -> Any:
    """This CPU, with all that it can do."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    name = llvm.get_host_cpu_name()
    # The large code model: in a small one a process full of libraries leaves code and constants
    # too far apart for 32 bits, and LLVM aborts.
    return target.create_target_machine(cpu=name, features=features, opt=3, jit=True)


@lru_cache(maxsize=1)
def vector_bytes() -> int:
    """The size of a vector: 64 bytes with AVX-512, otherwise 32, which narrower CPUs split."""
    return 64 if llvm.get_host_cpu_features().get("avx512f", False) else 32


def optimized(text: str) -> Any:
    """The module, verified and optimised. Its loops are vectors already."""
    module = llvm.parse_assembly(text)
    module.triple = machine().triple
    module.data_layout = str(machine().target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine(), options)
    passes.getModulePassManager().run(module, passes)
    return module


def native(text: str, name: str, *arguments: Any) -> Any:
    """A function of the module to call without the GIL.

    Args:
        text: the module.
        name: the function's name; it returns nothing.
        *arguments: the ctypes of its arguments.
    """
    engine = llvm.create_mcjit_compiler(optimized(text), machine())
    engine.finalize_object()
    _ENGINES.append(engine)
    return ctypes.CFUNCTYPE(None, *arguments)(engine.get_function_address(name))


def assembly(text: str) -> str:
    """The machine code as text, to look at."""
    code: str = machine().emit_assembly(optimized(text))
    return code
