"""Machine code from LLVM's textual form, for the CPU that this process runs on."""

import ctypes
from collections import deque
from functools import lru_cache
from typing import Any

from llvmlite import binding as llvm

from amidmath.backends.recent import COMPILING
from amidmath.compiler.graph import UnsupportedError


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


@lru_cache(maxsize=1)
def fuses() -> bool:
    """Tell whether the CPU multiplies and adds in one instruction; LLVM calls functions if not."""
    on_x86 = str(machine().triple).startswith(("x86", "i"))
    return not on_x86 or bool(llvm.get_host_cpu_features().get("fma", False))


def optimized(text: str) -> Any:
    """The module, verified and tidied up; its loops are vectors already.

    LLVM's whole pipeline takes as long again as making the code, which is no faster for it, and
    llvmlite keeps megabytes of memory each time.
    """
    module = llvm.parse_assembly(text, llvm.create_context())
    module.triple = machine().triple
    module.data_layout = str(machine().target_data)
    module.verify()
    passes = llvm.create_new_module_pass_manager()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    options = llvm.create_pipeline_tuning_options()
    passes.run(module, llvm.create_pass_builder(machine(), options))
    return module


_UNUSED: deque[Any] = deque()


class _Code:
    """Machine code in memory, for as long as the object lives, or a little longer.

    Freeing it is work for LLVM, which may be in the middle of something when an object dies.
    """

    def __init__(self, tracker: Any) -> None:
        """Own what llvmlite's resource tracker does."""
        self.tracker = tracker

    def __del__(self, unused: deque[Any] = _UNUSED) -> None:
        """Leave it to whoever compiles next."""
        unused.append(self.tracker)


def native(text: str, name: str, *arguments: Any) -> Any:
    """A function of the module to call without the GIL; its code is freed with it.

    Args:
        text: the module.
        name: the function's name; it returns nothing.
        *arguments: the ctypes of its arguments.

    Raises:
        UnsupportedError: the processor lacks instructions for it.
    """
    with COMPILING:
        _UNUSED.clear()
        tracker = _linked(text, name)
    function: Any = ctypes.CFUNCTYPE(None, *arguments)(tracker[name])
    function.code = _Code(tracker)
    return function


def _linked(text: str, name: str) -> Any:
    """The owner of the code in memory; all else that LLVM made is gone on return."""
    if not fuses():
        raise UnsupportedError("this on a processor without fused multiply-add")
    library = llvm.JITLibraryBuilder().add_current_process().export_symbol(name)
    library.add_object_img(machine().emit_object(optimized(text)))
    jit = llvm.create_lljit_compiler(machine(), suppress_errors=True)
    try:
        return library.link(jit, name)
    except RuntimeError as reason:
        raise UnsupportedError(
            "this on this processor, where LLVM has no instructions for it but calls functions "
            f"that are not there ({reason})"
        ) from None


def assembly(text: str) -> str:
    """The machine code as text, to look at."""
    code: str = machine().emit_assembly(optimized(text))
    return code
