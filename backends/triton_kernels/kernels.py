"""Row programs on the GPU, by Triton: torch's CUDA tensors come here.

A row's tokens are read once a sweep, from the L2 cache after the first; nothing of the
vocabulary's length is kept but the gradient, which may take the place of the student's logits.
docs/backends.md counts the bytes.
"""

import hashlib
import linecache
import weakref
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from amidmath.arrays.annotations import Array, Partials
from amidmath.backends.recent import Recent
from amidmath.backends.torch_backend.rows import side_by_side, writable
from amidmath.backends.triton_kernels import elementary
from amidmath.backends.triton_kernels.source import Source, source
from amidmath.compiler.graph import UnsupportedError
from amidmath.compiler.memory import overwritable
from amidmath.compiler.program import RowProgram, operand_names, row_program
from amidmath.rows.forms import RowForm

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BLOCKS = {torch.float32: (256, 4096), torch.float64: (128, 1024)}
"""Tokens that a program takes at a time, at least and at most: what fits the registers."""
MOST_SPLITS = 64
SHARE = 4096
"""Tokens of a row below which it does not pay to have another program for it."""
EXACT_POSITIONS = 2**24
# A sum with a product would be rounded once, where exact differences need the product rounded.
LAUNCH = {"enable_fp_fusion": False}


def splits(rows: int, vocabulary: int, processors: int) -> int:
    """Count the programs that share a row: a power of 2, where multiprocessors would have none.

    Args:
        rows: how many rows there are.
        vocabulary: tokens in a row.
        processors: multiprocessors of the GPU.
    """
    if rows == 0 or vocabulary >= EXACT_POSITIONS:
        return 1
    wanted = min(processors // rows, vocabulary // SHARE, MOST_SPLITS)
    return 1 << (wanted.bit_length() - 1) if wanted > 1 else 1


@dataclass(frozen=True)
class Compiled:
    """Kernels of a row program, and how they are launched.

    Args:
        source: what they were made of.
        functions: in the order of their launches.
        overwriting: whether the student's gradient may be written over the student's logits.
    """

    source: Source
    functions: tuple[Any, ...]
    overwriting: bool

    def __call__(
        self,
        arrays: dict[str, Array],
        numbers: tuple[float, ...],
        rows: int,
        vocabulary: int,
        real: torch.dtype,
        parts: int,
    ) -> None:
        """Compute all rows.

        Args:
            arrays: those of ``source.arrays``.
            numbers: those of the row program.
            rows: how many rows there are.
            vocabulary: tokens in a row.
            real: the dtype that is computed in.
            parts: how many programs share a row.
        """
        block, warps = block_of(vocabulary, real)
        arguments: list[Any] = []
        for name in self.source.arrays:
            arguments += [arrays[name], arrays[name].stride(0)]
        arguments += [*(numbers[j] for j in self.source.params), vocabulary]
        constants: dict[str, Any] = {
            "REAL": tl.float64 if real == torch.float64 else tl.float32,
            "BLOCK": block,
        }
        if self.source.slots:
            shape = (rows, self.source.slots, parts)
            scratch = torch.empty(shape, dtype=real, device=arrays["value"].device)
            arguments += [scratch, triton.cdiv(triton.cdiv(vocabulary, parts), block) * block]
            constants["SPLITS"] = parts
        with torch.cuda.device_of(arrays["value"]):  # Triton launches on the current one
            for function in self.functions:
                function[(rows, parts)](*arguments, **constants, num_warps=warps, **LAUNCH)


def block_of(vocabulary: int, real: torch.dtype) -> tuple[int, int]:
    """Count the tokens that a program takes at a time, and the warps that do.

    Each thread has eight of them (four in double precision), and none is another thread's too.
    """
    fewest, most = BLOCKS[real]
    block = max(fewest, min(most, triton.next_power_of_2(vocabulary)))
    return block, block // fewest


_COMPILED: Recent[Compiled] = Recent(most=64)


def compiled(program: RowProgram, masked: bool, double: bool, split: bool) -> Compiled:
    """The kernels of a row program; in double precision its numbers are part of them."""

    def make() -> Compiled:
        written = source(program, masked=masked, double=double, split=split)
        overwriting = overwritable(program.scheduled(keeping=False), 0)
        return Compiled(written, functions(written), overwriting and not split)

    key = (program.structure, program.numbers if double else None, masked, double, split)
    return _COMPILED.get(key, make)


def functions(written: Source) -> tuple[Any, ...]:
    """Triton's functions of a source, which they read back: so it gets a name to be found by."""
    text = written.text
    name = f"<amidmath rows {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"tl": tl, "__name__": __name__}
    scope |= {"expm1": elementary.expm1, "log1p": elementary.log1p, "asin": elementary.asin}
    exec(compile(text, name, "exec"), scope)
    made = tuple(triton.jit(scope[f"rows{j}"]) for j in range(written.kernels))
    weakref.finalize(made[0], linecache.cache.pop, name, None)
    return made


def run(
    form: RowForm,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    overwrite: bool = False,
    parts: int | None = None,
) -> tuple[Array, Partials]:
    """Values and partial derivatives of a closed form; ``UnsupportedError`` if not in Triton.

    Args:
        form: the closed form.
        operands: those of the form, on one device.
        needs: which operands' partial derivatives are wanted.
        overwrite: whether the gradient may take the place of the first operand.
        parts: how many programs share a row, a power of 2; None decides by the GPU.
    """
    count = 2 + form.knobs
    unknown = [a.dtype for a in operands[:count] if a.dtype not in DTYPES]
    if unknown:
        raise UnsupportedError(f"the dtype {unknown[0]} in Triton")
    student, teacher = operands[:2]
    rows, vocabulary = student.shape
    double = torch.float64 in (student.dtype, teacher.dtype)
    real = torch.float64 if double else torch.float32
    if parts is None:
        parts = splits(rows, vocabulary, _processors(student))
    program = row_program(form, needs, double)
    kernels = compiled(program, form.masked, double, split=parts > 1)
    names = operand_names(form)
    arrays = {name: side_by_side(a.detach()) for name, a in zip(names, operands, strict=True)}
    arrays["value"] = values = torch.empty(rows, dtype=real, device=student.device)
    partials: list[Array | None] = [None] * len(operands)
    for j in program.given:
        over = j == 0 and overwrite and kernels.overwriting and writable(student)
        partials[j] = arrays[f"partial{j}"] = student.detach() if over else _like(operands[j])
    kernels(arrays, program.numbers, rows, vocabulary, real, parts)
    return values, tuple(partials)


def _like(a: Array) -> Array:
    return torch.empty(a.shape, dtype=a.dtype, device=a.device)


def _processors(a: Array) -> int:
    """Multiprocessors of the GPU; 1 where Triton's interpreter runs on the CPU."""
    if a.device.type != "cuda":
        return 1
    count: int = torch.cuda.get_device_properties(a.device).multi_processor_count
    return count
