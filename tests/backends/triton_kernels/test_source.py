"""The source of the Triton kernels, compiled for a GPU that need not be there."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
import torch

import amidmath as am
from amidmath.backends.triton_kernels.source import source
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm

triton = pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
compiler = pytest.importorskip("triton.compiler")
triton_kernels = pytest.importorskip("amidmath.backends.triton_kernels.kernels")

H100 = 90


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def signature(function, logits, real):
    """The types of a kernel's arguments, for logits whose rows begin at multiples of 16 bytes."""
    types, constants, aligned = {}, {}, {}
    for j, name in enumerate(function.arg_names):
        array = name.removesuffix("_at")
        if name in ("REAL", "BLOCK", "SPLITS"):
            types[name] = "constexpr"
        elif array in ("input0", "input1", "partial0", "partial1"):
            types[name] = f"*{logits}"
        elif name.endswith("_at"):
            types[name] = "*i1" if array == "keep" else f"*{real}"
        elif name.endswith("_stride"):
            types[name] = "i64"
        else:
            types[name] = real if name.startswith("param") else "i32"
        if name[:6] in ("input0", "input1", "partia") or name in ("V", "share"):
            aligned[(j,)] = [["tt.divisibility", 16]]
    dtype, width = (torch.float64, "fp64") if real == "fp64" else (torch.float32, "fp32")
    block, warps = triton_kernels.block_of(151_936, dtype)
    constants = {"REAL": getattr(triton.language, f"float{width[2:]}"), "BLOCK": block, "SPLITS": 4}
    constants = {name: value for name, value in constants.items() if name in types}
    return compiler.ASTSource(function, types, constants, aligned), warps


def built(loss, logits, real, *, split=False, masked=False, needs=(True, False)):
    """For each kernel of a loss its PTX, its registers, and the bytes that did not fit them."""
    from triton.backends import compiler as backend
    from triton.backends.nvidia.compiler import get_ptxas

    program = row_program(RowForm(loss.block, masked=masked), needs, real == "fp64")
    written = source(program, masked=masked, double=real == "fp64", split=split)
    for function in triton_kernels.functions(written):
        described, warps = signature(function, logits, real)
        options = {"num_warps": warps, **triton_kernels.LAUNCH}
        target = backend.GPUTarget("cuda", H100, 32)
        assembled = triton.compile(described, target=target, options=options).asm
        assert assembled["cubin"]
        ptx = assembled["ptx"]
        command = [get_ptxas(H100).path, "-v", f"-arch=sm_{H100}a", "-", "-o", os.devnull]
        said = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True).stderr
        (registers,) = re.findall(r"Used (\d+) registers", said)
        (spilt,) = re.findall(r"(\d+) bytes spill stores", said)
        yield ptx, int(registers), int(spilt)


def stores(ptx):
    return re.findall(r"\bst\.global\.(\S+)", ptx)


@pytest.mark.parametrize("alpha", [-1.0, 0.5])
def test_a_row_to_a_program(alpha):
    ((ptx, registers, spilt),) = built(am.AMiD(alpha=alpha), "bf16", "fp32")
    # One store for the value, one of 16 bytes for eight tokens' gradient; nothing else is kept.
    assert sorted(stores(ptx)) == ["b32", "v4.b32"]
    assert all(load.startswith(("v4", "b16")) for load in re.findall(r"\bld\.global\.(\S+)", ptx))
    assert spilt == 0
    assert registers <= 128  # 16 warps to a multiprocessor


def test_double_precision():
    ((_, _, spilt),) = built(am.AMiD(am.FisherRao(), alpha=0.3), "fp64", "fp64", masked=True)
    assert spilt == 0


def test_a_shared_row():
    kernels = list(built(am.AMiD(), "bf16", "fp32", split=True, masked=True, needs=(True, True)))
    assert all(spilt <= 64 for _, _, spilt in kernels)
    *earlier, (last, _, _) = kernels
    assert all(not any("v4" in store for store in stores(ptx)) for ptx, _, _ in earlier)
    assert any("v4" in store for store in stores(last))
