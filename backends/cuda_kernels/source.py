"""Row programs as the source of CUDA kernels, in C++: one block of threads a row.

The threads of a block take every ``blockDim.x``-th token; what they reduce is put together in
shared memory, in an order that depends on the number of threads only. Sums are compensated
(Neumaier), so that they are as good as their terms at any vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from amidmath.compiler.program import RowProgram
from amidmath.compiler.text import Language, Line, Listing, Loop, Results, indented, listed, number

THREADS = 512
"""Threads to a block, at most; a power of 2."""
TYPES = {"float32": "float", "float64": "double", "float16": "__half"}

OPERATIONS = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "div": "({} / {})",
    "neg": "(-{})",
    "abs": "fabs({})",
    "exp": "exp({})",
    "expm1": "expm1({})",
    "log": "log({})",
    "log1p": "log1p({})",
    "log1p_near": "log1p({})",
    "sqrt": "sqrt({})",
    "asin": "asin({})",
    "lt": "({} < {})",
    "le": "({} <= {})",
    "eq": "({} == {})",
    "ne": "({} != {})",
    "and": "({} && {})",
    "or": "({} || {})",
    "not": "(!{})",
    "select": "({} ? {} : {})",
}


def _constant(value: float | bool) -> str:
    text = number(value, "infinity()", "true", "false")
    return text if isinstance(value, bool) or "infinity" in text else f"real({text})"


LANGUAGE = Language(
    operations=OPERATIONS,
    constant=_constant,
    logits=lambda which: f"load(input{which}[i])",
    logit=lambda which, place: f"load(input{which}[{place}])",
    positions="i",
)

_PRELUDE = """
typedef long long integer;

__device__ inline real infinity() { return __int_as_float(0x7f800000); }

__device__ inline real load(float x) { return x; }
__device__ inline real load(double x) { return x; }
__device__ inline void store(float* at, real x) { *at = x; }
__device__ inline void store(double* at, real x) { *at = x; }

struct Sum {
    real total, lost;
    __device__ Sum() : total(0), lost(0) {}
    __device__ void add(real x) {
        const real sum = total + x;
        lost += fabs(total) >= fabs(x) ? (total - sum) + x : (x - sum) + total;
        total = sum;
    }
    __device__ real value() const { return fabs(total) < infinity() ? total + lost : total; }
};

struct Largest {
    real value;
    integer place;
    __device__ Largest() : value(-infinity()), place(0) {}
    __device__ void take(real x, integer i) {
        if (x > value || (x == value && i < place)) {
            value = x;
            place = i;
        }
    }
};

__device__ inline real reduced(const Sum& mine, real* shared) {
    shared[threadIdx.x] = mine.value();
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    const real sum = shared[0];
    __syncthreads();
    return sum;
}

__device__ inline Largest reduced(const Largest& mine, real* shared, integer* places) {
    shared[threadIdx.x] = mine.value;
    places[threadIdx.x] = mine.place;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            Largest best;
            best.value = shared[threadIdx.x];
            best.place = places[threadIdx.x];
            best.take(shared[threadIdx.x + half], places[threadIdx.x + half]);
            shared[threadIdx.x] = best.value;
            places[threadIdx.x] = best.place;
        }
        __syncthreads();
    }
    Largest best;
    best.value = shared[0];
    best.place = places[0];
    __syncthreads();
    return best;
}
"""
_HALF = """
__device__ inline real load(__half x) { return __half2float(x); }
__device__ inline void store(__half* at, float x) { *at = __float2half(x); }
__device__ inline void store(__half* at, double x) { *at = __double2half(x); }
"""


@dataclass(frozen=True)
class Source:
    """A kernel ``rows``, to be launched with a block a row.

    Args:
        text: its arguments are the address and the row stride, in numbers, of each array, then
            the program's numbers in the computing dtype, and V.
        arrays: the names of the arrays.
        params: which of the program's numbers are passed.
    """

    text: str
    arrays: tuple[str, ...]
    params: tuple[int, ...]


def source(program: RowProgram, *, dtypes: tuple[str, ...], masked: bool, double: bool) -> Source:
    """The kernel of a row program; raises :class:`UnsupportedError` where there is none.

    Args:
        program: what is computed.
        dtypes: of the logits and the knobs, keys of ``TYPES``.
        masked: whether there is an array "keep".
        double: whether it computes in double precision.
    """
    listing = listed(program.scheduled(keeping=False), LANGUAGE)
    arrays = (*listing.arrays, *(["keep"] if masked else []))
    head = [f"{_pointer(name, dtypes)} {name}_at, integer {name}_stride" for name in arrays]
    head += [f"real param{j}" for j in listing.params]
    lines = ['extern "C" __global__ void', f"__launch_bounds__({THREADS})"]
    lines += [f"rows({', '.join([*head, 'integer V'])}) {{", *indented(_body(listing, arrays))]
    half = "float16" in dtypes
    text = "\n".join(
        [
            *(["#include <cuda_fp16.h>"] if half else []),
            f"typedef {'double' if double else 'float'} real;",
            _PRELUDE + (_HALF if half else ""),
            *lines,
            "}",
            "",
        ]
    )
    return Source(text, arrays, tuple(listing.params))


def _pointer(name: str, dtypes: tuple[str, ...]) -> str:
    kind, index = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    if kind == "keep":
        return "const bool*"
    if kind in ("value", "scale"):
        return "real*" if kind == "value" else "const real*"
    place = int(index) + (2 if kind == "knob" else 0)
    return f"{'' if kind == 'partial' else 'const '}{TYPES[dtypes[place]]}*"


def _assigned(lines: Iterable[Line]) -> list[str]:
    return [f"const auto {line.name} = {line.expression};" for line in lines]


def _over_tokens(lines: Iterable[str]) -> list[str]:
    head = "for (integer i = threadIdx.x; i < V; i += blockDim.x) {"
    return [head, *indented(lines), "}"]


def _body(listing: Listing, arrays: tuple[str, ...]) -> list[str]:
    lines = [f"__shared__ real shared[{THREADS}];", f"__shared__ integer places[{THREADS}];"]
    lines += ["const integer row = blockIdx.x;"]
    for name in arrays:
        if name.startswith("knob") or name == "scale":
            lines += [f"const real {name} = load({name}_at[row * {name}_stride]);"]
        elif name != "keep":
            lines += [f"auto {name} = {name}_at + row * {name}_stride;"]
    if "keep" in arrays:
        left_out = [*_written(listing.left_out), "return;"]
        lines += ["if (!keep_at[row * keep_stride]) {", *indented(left_out), "}"]
    for before, loop in listing.steps:
        lines += [*_assigned(before), *_sweep(loop)]
    return [*lines, *_assigned(listing.after), *_written(listing.results)]


def _written(results: Results) -> list[str]:
    """Numbers of the row, and what is the same for all of its tokens."""
    once = [f"store({array}, {value});" for array, value in results.once]
    lines = ["if (threadIdx.x == 0) {", *indented(once), "}"]
    spread = [f"store({array} + i, {value});" for array, value in results.spread]
    return [*lines, *(_over_tokens(spread) if spread else [])]


def _sweep(loop: Loop) -> list[str]:
    lines = [f"Sum {name}_mine;" for name, _ in loop.totals]
    lines += [f"Largest {name}_mine;" for name, *_ in loop.extremes]
    body = _assigned(loop.lines)
    body += [f"{name}_mine.add({of});" for name, of in loop.totals]
    body += [f"{name}_mine.take({of}, i);" for name, _, of in loop.extremes]
    body += [f"store({array} + i, {value});" for array, value in loop.stores]
    # Where a gradient is written over its logits, no thread may still be looking for one of them.
    lines += ["__syncthreads();"] if loop.stores else []
    lines += _over_tokens(body)
    lines += [f"const real {name} = reduced({name}_mine, shared);" for name, _ in loop.totals]
    for name, place, _ in loop.extremes:
        lines += [f"const Largest {name}_best = reduced({name}_mine, shared, places);"]
        lines += [f"const real {name} = {name}_best.value;"]
        lines += [f"const integer {place} = {name}_best.place;"] if place else []
    return lines
