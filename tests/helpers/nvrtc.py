"""CUDA's run-time compiler, which needs no GPU, in a process of its own: it sets the C locale.

python tests/helpers/nvrtc.py libnvrtc.so.12 --gpu-architecture=compute_90 < rows.cu
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path


def library() -> Path | None:
    """Where it is installed, None if it is not."""
    for package in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        folders = (spec.submodule_search_locations if spec is not None else None) or ()
        for path in (p for folder in folders for p in Path(folder, "lib").glob("libnvrtc.so.*")):
            return path
    return None


def ptx(path: Path, source: str, *options: str) -> str:
    """What a source compiles to, or an error with the messages of the compiler."""
    command = [sys.executable, __file__, str(path), *options]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def main(path: str, *options: str) -> int:
    """Compile standard input to standard output, with messages on standard error."""
    nvrtc, program, size = ctypes.CDLL(path), ctypes.c_void_p(), ctypes.c_size_t()
    source = sys.stdin.read().encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"rows.cu", 0, None, None)
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    failed: int = nvrtc.nvrtcCompileProgram(program, len(options), given)
    what = "ProgramLog" if failed else "PTX"
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    result = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, result)
    print(result.value.decode(), file=sys.stderr if failed else sys.stdout)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
