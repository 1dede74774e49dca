"""Arrays that look like those that are taken, in every place where an array goes.

One table, kinds of arrays × places: what comes out is what the plain dense copy gives, or an error
of amidmath's that names the argument and says what to pass instead. It runs as a process of its
own (tests/amidmath/arrays/test_kinds.py), since the kernels read memory by address and strides:

    python tests/helpers/array_kinds.py numpy torch jax
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.experimental.sparse
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from array_places import Place, other_places, places_of_rows
from torch._subclasses.fake_tensor import FakeTensorMode

if TYPE_CHECKING:
    from collections.abc import Callable

SAME = "the same"
"""The word of a kind that is taken: values and gradients are those of the plain copy."""


@dataclass(frozen=True)
class Kind:
    """A kind of array.

    Args:
        name: for the report.
        make: from a plain NumPy array of floats, booleans or integers.
        word: what the error says; ``SAME`` where there is none. Only "its dtype" is looked for
            where a kind is another dtype.
        takes: for which arrays: f(loats), b(ooleans), i(ntegers).
    """

    name: str
    make: Callable[[np.ndarray], Any]
    word: str
    takes: str = "fbi"


# ---------------------------------------------------------------------------------------------
# Kinds


class Labelled(np.ndarray):
    """A subclass that changes nothing."""


def masked(values):
    return np.ma.array(values, mask=np.arange(values.size).reshape(values.shape) == 0)


def unaligned(values):
    raw = np.frombuffer(b"\0" + values.tobytes(), dtype=np.uint8)[1:]
    return raw.view(values.dtype).reshape(values.shape)


def mapped(values):
    with tempfile.NamedTemporaryFile() as file:
        made = np.memmap(file.name, values.dtype, "w+", shape=values.shape)
    made[...] = values
    return made


def structured(values):
    made = np.zeros(values.shape, [("x", values.dtype)])
    made["x"] = values
    return made


def read_only(values):
    made = values.copy()
    made.flags.writeable = False
    return made


def every_second(values):
    return np.stack([values, values], axis=-1)[..., 0]


def backwards(values):
    return np.ascontiguousarray(values[..., ::-1])[..., ::-1] if values.ndim else values


def upside_down(values):
    return np.ascontiguousarray(values[::-1])[::-1] if values.ndim else values


def one_row(values):
    return np.broadcast_to(values[:1], values.shape) if values.ndim else values


def table(values):
    return pd.DataFrame(values) if values.ndim == 2 else pd.Series(values.ravel())


NUMPY = [
    Kind("plain", np.copy, SAME),
    Kind("memmap", mapped, SAME),
    Kind("read-only", read_only, SAME),
    Kind("big-endian", lambda v: v.astype(v.dtype.newbyteorder(">")), SAME),
    Kind("every second", every_second, SAME),
    Kind("Fortran's order", lambda v: v.copy(order="F"), SAME),
    Kind("one row", one_row, SAME),
    Kind("backwards", backwards, SAME),
    Kind("upside down", upside_down, SAME),
    Kind("unaligned", unaligned, SAME),
    Kind("double", lambda v: v.astype("f8"), SAME, "f"),
    Kind("long double", lambda v: v.astype(np.longdouble), SAME, "f"),
    Kind("bfloat16", lambda v: v.astype(ml_dtypes.bfloat16), SAME, "f"),
    Kind("float8", lambda v: v.astype(ml_dtypes.float8_e4m3fn), "its dtype"),
    Kind("int4", lambda v: v.astype(ml_dtypes.int4), "its dtype"),
    Kind("complex", lambda v: v.astype(complex), "its dtype"),
    Kind("object", lambda v: v.astype(object), "its dtype"),
    Kind("str", lambda v: v.astype(str), "its dtype"),
    Kind("datetime", lambda v: v.astype("i8").astype("M8[s]"), "its dtype"),
    Kind("structured", structured, "its dtype"),
    Kind("float0", lambda v: np.zeros(v.shape, jax.dtypes.float0), "numbers"),
    Kind("masked", masked, ".filled("),
    Kind("record", lambda v: structured(v).view(np.recarray), "numpy.asarray"),
    Kind("subclass", lambda v: v.view(Labelled), "numpy.asarray"),
    Kind("matrix", lambda v: np.matrix(v.reshape(-1, *v.shape[-1:])), "numpy.asarray"),
    Kind("list", lambda v: v.tolist() if v.ndim else [v.tolist()], "numpy.asarray"),
    Kind("tuple", lambda v: tuple(v.tolist()) if v.ndim else (v.tolist(),), "numpy.asarray"),
    Kind("scipy", lambda v: scipy.sparse.coo_array(v.reshape(v.shape or 1)), ".toarray()"),
    Kind("pandas", table, ".to_numpy()"),
]


class Tagged(torch.Tensor):
    """A subclass that changes nothing."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapper:
    """No tensor, though torch's functions take it."""

    def __init__(self, values):
        self.tensor = tensor(values)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return func(*(getattr(a, "tensor", a) for a in args), **(kwargs or {}))


def tensor(values):
    return torch.from_numpy(np.array(values))


def negative(values):
    return torch._neg_view(-tensor(values)) if values.dtype != bool else tensor(values)


def imaginary(values):
    made = torch.complex(torch.zeros(values.shape), -tensor(values)).conj().imag
    assert made.is_neg()
    return made


def in_inference(values):
    with torch.inference_mode():
        return tensor(values).clone()


def fake(values):
    with FakeTensorMode():
        return torch.empty(values.shape, dtype=tensor(values).dtype)


def nested(values, layout=torch.strided):
    return torch.nested.nested_tensor([tensor(row) for row in np.atleast_2d(values)], layout=layout)


def masked_tensor(values):
    made = tensor(values)
    return torch.masked.masked_tensor(made, torch.ones_like(made, dtype=torch.bool))


def transposed(values):
    return tensor(values.swapaxes(-1, -2).copy()).mT if values.ndim > 1 else tensor(values)


def odd_offset(values):
    raw = bytearray(b"\0" + values.tobytes())
    return torch.frombuffer(raw, dtype=tensor(values).dtype, offset=1).reshape(values.shape)


def quantised(values):
    return torch.quantize_per_tensor(tensor(values).float(), 0.1, 0, torch.qint8)


TORCH = [
    Kind("plain", tensor, SAME),
    Kind("expanded", lambda v: tensor(v[:1]).expand(v.shape) if v.ndim else tensor(v), SAME),
    Kind("every second", lambda v: torch.stack([tensor(v)] * 2, -1)[..., 0], SAME),
    Kind("transposed", transposed, SAME),
    Kind("unaligned", odd_offset, SAME),
    Kind("of inference", in_inference, SAME),
    Kind("subclass", lambda v: tensor(v).as_subclass(Tagged), SAME),
    Kind("double", lambda v: tensor(v).double(), SAME, "f"),
    Kind("bfloat16", lambda v: tensor(v).bfloat16(), SAME, "f"),
    Kind("uint16", lambda v: tensor(v).to(torch.uint16), SAME, "bi"),
    Kind("float8", lambda v: tensor(v).to(torch.float8_e4m3fn), "its dtype"),
    Kind("complex", lambda v: tensor(v).cfloat(), "its dtype"),
    Kind("conjugated", lambda v: tensor(v).cfloat().conj(), "its dtype"),
    Kind("negative", negative, ".resolve_neg()", "f"),
    Kind("imaginary", imaginary, ".resolve_neg()", "f"),
    Kind("COO", lambda v: tensor(v).to_sparse(), ".to_dense()"),
    Kind("CSR", lambda v: tensor(np.ones((2, 2), v.dtype)).to_sparse_csr(), ".to_dense()"),
    Kind("oneDNN", lambda v: tensor(np.atleast_1d(v)).float().to_mkldnn(), ".to_dense()", "f"),
    Kind("quantised", quantised, ".dequantize()"),
    Kind("nested", nested, ".to_padded_tensor("),
    Kind("jagged", partial(nested, layout=torch.jagged), ".to_padded_tensor("),
    Kind("masked", masked_tensor, ".to_tensor("),
    Kind("meta", lambda v: tensor(v).to("meta"), "meta"),
    Kind("fake", fake, "Fake"),
    Kind("wrapper", Wrapper, "Wrapper"),
]


def deleted(values):
    made = jnp.array(values)
    made.delete()
    return made


KEY = jax.random.key(0)
SPARSE = jax.experimental.sparse.BCOO.fromdense(jnp.eye(2))

JAX = [
    Kind("bfloat16", lambda v: jnp.asarray(v, jnp.bfloat16), SAME, "f"),
    Kind("int4", lambda v: jnp.asarray(v).astype(jnp.int4), SAME, "bi"),
    Kind("float8", lambda v: jnp.asarray(v).astype(jnp.float8_e4m3fn), "its dtype"),
    Kind("complex", lambda v: jnp.asarray(v).astype(jnp.complex64), "its dtype"),
    Kind("keys", lambda v: jnp.broadcast_to(KEY, v.shape) if v.ndim else KEY, "PRNG keys"),
    Kind("float0", lambda v: np.zeros(v.shape, jax.dtypes.float0), "float0"),
    Kind("deleted", deleted, "deleted"),
    Kind("specification", lambda v: jax.ShapeDtypeStruct(v.shape, np.float32), "ShapeDtype"),
    Kind("BCOO", lambda v: SPARSE, ".todense()"),
    Kind("reference", lambda v: jax.new_ref(jnp.asarray(v)), "Ref"),
]

WEIGHTLESS = ("one row", "expanded", "list", "tuple")
"""What is not tried as the weights of a mean: their sum would be another, or they are taken."""

UNMIXED = ("logs", "values", "teacher_logits")
"""Where an array stands alone, and one without numbers has nothing that it cannot be mixed with."""

OTHER_DTYPES = ("double", "long double", "bfloat16")
"""Kinds for which kernels are compiled anew."""

KINDS = {"numpy": (NUMPY, np.array), "torch": (TORCH, tensor), "jax": (JAX, jnp.asarray)}


# ---------------------------------------------------------------------------------------------
# The table


def numbers(result) -> list[np.ndarray]:
    """All numbers of a result, by arrays."""
    if isinstance(result, (tuple, list)):
        return [array for part in result for array in numbers(part)]
    if isinstance(result, torch.Tensor):
        return [np.asarray(result.detach().double())]
    return [np.asarray(result, dtype=float)]


def plain_copy(made, values):
    """The array in the dtype in which its place takes it."""
    if isinstance(made, torch.Tensor):
        return np.asarray(made.detach().to(tensor(values).dtype))
    return np.array(made).astype(values.dtype)


def wrong(kind: Kind, place: Place, make: Callable[[np.ndarray], Any]) -> str:
    """What is not as the table says it, "" for nothing."""
    made = kind.make(place.values)
    if kind.word != SAME:
        return wrong_error(kind, place, made, make)
    copy = plain_copy(made, place.values)
    try:
        if isinstance(made, jax.Array):  # every operation by itself would take minutes to compile
            got, wanted = jax.jit(lambda a: place.call(a, make))(made), place.call(copy, np.array)
        else:
            got, wanted = place.call(made, make), place.call(make(copy), make)
    except Exception as error:  # a line of the report, not the end of it
        return f"{type(error).__name__}: {error}"[:300]
    # The gradient comes in the dtype of the array.
    rtol = 2e-2 if kind.name == "bfloat16" else 1e-5
    for here, there in zip(numbers(got), numbers(wanted), strict=True):
        if here.shape != there.shape:
            return f"shape {here.shape} for {there.shape}"
        if not np.allclose(here, there, rtol=rtol, atol=rtol * np.abs(there).max() + 1e-6):
            return f"off by {np.abs(here - there).max():.3g} of {np.abs(there).max():.3g}"
    return ""


def wrong_error(kind: Kind, place: Place, made, make) -> str:
    try:
        result = place.call(made, make)
    except (TypeError, ValueError) as error:
        message = str(error)
        if not any(name in message for name in place.argument.split("|")):
            return f"{place.argument} is not in: {type(error).__name__}: {message}"
        word = kind.word
        if word == "its dtype":
            word = str(getattr(made, "dtype", ""))
        if place.values.ndim and word not in message:
            return f"{word} is not in: {message}"
        return ""
    except Exception as error:  # whatever it is, it is not ours
        return f"{type(error).__name__}: {error}"[:300]
    return f"gave {type(result).__name__}"


def left_out(library: str, size: str, kind: Kind, index: int, place: Place) -> bool:
    """Whether a cell is no case, or one that costs seconds and shows nothing new."""
    if place.values.dtype.kind.replace("u", "i") not in kind.takes:
        return True
    if place.argument == "weights" and kind.name in WEIGHTLESS:
        return True
    if place.argument in UNMIXED and kind.name in ("meta", "fake"):
        return True
    many = size == "many"
    if kind.word != SAME:
        return many and index > 8
    if library == "jax":
        return not place.dear or (many and index > 0)
    return many and kind.name in OTHER_DTYPES and not place.dear


def report(library: str) -> list[str]:
    """What is wrong, a line each."""
    kinds, make = KINDS[library]
    failures = []
    sizes = {
        "few": list(places_of_rows((2, 3, 5))),
        "many": list(places_of_rows((2, 2, 17_000))),
        "other": list(other_places()),
    }
    for size, places in sizes.items():
        for kind in kinds:
            for index, place in enumerate(places):
                if left_out(library, size, kind, index, place):
                    continue
                what = f"{library}, {size}, {kind.name} as {place.argument} ({index})"
                print(what, file=sys.stderr, flush=True)  # the last one, where the process dies
                found = wrong(kind, place, make)
                if found:
                    failures.append(f"{what}: {found}")
    return failures


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = [line for library in sys.argv[1:] for line in report(library)]
    print("\n".join(found))
    sys.exit(1 if found else 0)
