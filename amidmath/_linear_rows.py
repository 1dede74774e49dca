"""The loss from hidden states, a chunk of rows at a time: multiply, rows, multiply.

Libraries whose arrays can be written into run :func:`run`; JAX has a loop of its own, of the same
parts. Arrays go by the names of the arguments: ``student_hidden`` (N, H), ``student_head`` (V, H),
``student_bias``, ``student_low_rank_a`` and ``_b``, the teacher's likewise, the knobs of the loss
(N, 1), ``labels`` (N,) and ``keep`` (N,).
"""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import array_api_compat

from amidmath._checks import computing_dtype
from amidmath._head import Projection
from amidmath._linear_form import LinearForm
from amidmath._typing import Array, Namespace

_TILE = 2**20

Sums: TypeAlias = tuple[Array, dict[str, Array]]
"""Values (N,), and gradients by name."""


class Library:
    """What the chunks ask of an array library; this one can write into its arrays.

    What writes returns the array, for libraries that cannot.

    Args:
        xp: its namespace.
    """

    blocks = 8
    """In how many parts the rows of a chunk are computed, each gradient over its own outputs."""

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    def quiet(self) -> AbstractContextManager[Any]:
        """Without warnings of infinities, which the formulas handle themselves."""
        errstate = getattr(self.xp, "errstate", None)  # NumPy's
        return nullcontext() if errstate is None else errstate(all="ignore")

    def multiplying_dtype(self, hidden: Array) -> Any:
        """In what dtype a side is multiplied out."""
        return computing_dtype(self.xp, hidden)

    def buffer(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array | None:
        """Memory for outputs of one chunk after the other."""
        return self.xp.empty(shape, dtype=dtype, device=array_api_compat.device(like))

    def product(self, a: Array, b: Array, out: Array | None) -> Array:
        """A @ b, in ``out`` where the library can write there."""
        if array_api_compat.is_numpy_array(a) or array_api_compat.is_cupy_array(a):
            return self.xp.matmul(a, b, out=out)
        return self.xp.matmul(a, b)

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        """The total plus a @ b, in the dtype of the total; a tile at a time."""
        step = max(1, _TILE // b.shape[-1])
        b = self.xp.astype(b, total.dtype, copy=False)
        for start in range(0, a.shape[0], step):
            part = slice(start, min(start + step, a.shape[0]))
            tile = self.xp.astype(a[part, ...], total.dtype, copy=False)
            total[part, ...] += self.xp.matmul(tile, b)
        return total

    def kept(self, keep: Array) -> Array | None:
        """The indices of the rows that are kept; None where the library cannot tell."""
        if array_api_compat.is_numpy_array(keep) or array_api_compat.is_cupy_array(keep):
            return self.xp.nonzero(keep)[0]
        return None

    def take(self, array: Array, at: Any, fill: float = 0) -> Array:
        """The rows of the array at a slice, or at indices; ``fill`` where an index is none."""
        return array[at, ...] if isinstance(at, slice) else self.xp.take(array, at, axis=0)

    def put(self, array: Array, at: Any, new: Array) -> Array:
        """The array with other rows there."""
        new = self.xp.astype(new, array.dtype, copy=False)
        if isinstance(at, slice):
            array[at, ...] = new
        else:
            array[at] = new
        return array


class _Layer:
    """The layer of one side, in the dtype in which it is multiplied out."""

    def __init__(
        self, side: str, projection: Projection, arrays: Mapping[str, Array], library: Library
    ) -> None:
        self.library, self.projection = library, projection
        self.hidden = arrays[f"{side}_hidden"]
        self.dtype = library.multiplying_dtype(self.hidden)
        self.weight, self.bias, self.a, self.b = (
            self._prepared(arrays.get(f"{side}_{name}"))
            for name in ("head", "bias", "low_rank_a", "low_rank_b")
        )

    def _prepared(self, array: Array | None) -> Array:
        return None if array is None else self.library.xp.astype(array, self.dtype, copy=False)

    def states(self, at: Any, keep: Array | None) -> Array:
        """The hidden states of some rows; zeros for what is left out, as 0 times NaN is not 0."""
        xp = self.library.xp
        hidden = xp.astype(self.library.take(self.hidden, at), self.dtype, copy=False)
        return hidden if keep is None else xp.where(keep[:, None], hidden, 0.0)

    def outputs(self, hidden: Array, out: Array | None) -> Array:
        """H Wᵀ + b + factor·(h Aᵀ) Bᵀ."""
        out = self.library.product(hidden, self.weight.T, out)
        if self.bias is not None:
            out += self.bias
        if self.a is not None:
            out = self.library.add_product(out, self.through_a(hidden), self.b.T)
        return out

    def through_a(self, hidden: Array) -> Array:
        """factor·h Aᵀ."""
        return self.projection.factor * (hidden @ self.a.T)

    def pulled_back(
        self, grads: dict[str, Array], u: Array, hidden: Array, at: Any
    ) -> dict[str, Array]:
        """The student's gradients with those of a chunk, from that by its outputs, u."""
        grads, library = dict(grads), self.library

        def add(name: str, a: Array, b: Array) -> None:
            if name in grads:
                grads[name] = library.add_product(grads[name], a.T, b)

        by_hidden = u @ self.weight if "student_hidden" in grads else None
        if self.a is not None and {"student_low_rank_a", "student_hidden"} & grads.keys():
            by_a = self.projection.factor * (u @ self.b)
            add("student_low_rank_a", by_a, hidden)
            if by_hidden is not None:
                by_hidden += by_a @ self.a
        if by_hidden is not None:
            grads["student_hidden"] = library.put(grads["student_hidden"], at, by_hidden)
        add("student_head", u, hidden)
        if "student_low_rank_b" in grads:
            add("student_low_rank_b", u, self.through_a(hidden))
        if "student_bias" in grads:
            total = grads["student_bias"]
            grads["student_bias"] = total + library.xp.sum(u, axis=0, dtype=total.dtype)
        return grads


class Chunks:
    """The loss and its gradients a chunk of rows at a time.

    Args:
        form: what is computed.
        arrays: by name, see the module.
        wanted: which of the student's arrays and of the knobs to differentiate by.
        scale: (N,), what the values count in the sum that is differentiated; None is 1.
        library: of the arrays.
    """

    def __init__(
        self,
        form: LinearForm,
        arrays: Mapping[str, Array],
        wanted: Collection[str],
        scale: Array | None,
        library: Library,
    ) -> None:
        self.form, self.library, self.scale = form, library, scale
        self.student = _Layer("student", form.student, arrays, library)
        self.teacher = _Layer("teacher", form.teacher, arrays, library)
        self.small = {k: arrays[k] for k in (*form.knobs, "labels") if k in arrays}
        self.through_outputs = any(name.startswith("student_") for name in wanted)
        self.wanted = {k for k in form.knobs if k in wanted}
        if self.through_outputs:
            self.wanted.add("outputs")
        count = self.student.hidden.shape[0]
        self.step = max(1, min(form.chunk_rows, count))
        self.buffers = [
            library.buffer((self.step, layer.projection.vocabulary), layer.dtype, layer.hidden)
            for layer in (self.student, self.teacher)
        ]

    def start(self, arrays: Mapping[str, Array], wanted: Collection[str]) -> Sums:
        """Values and gradients to add to: zeros, in float32 for sums in half precision."""
        xp, hidden = self.library.xp, self.student.hidden
        computing = computing_dtype(xp, hidden, self.teacher.hidden)
        device = array_api_compat.device(hidden)
        values = xp.zeros((hidden.shape[0],), dtype=computing, device=device)
        grads = {}
        for name in wanted:
            array = arrays[name]
            summed = name.startswith("student_") and name != "student_hidden"
            wide = xp.float64 if self.student.dtype == xp.float64 else computing_dtype(xp, array)
            grads[name] = xp.zeros_like(array, dtype=wide if summed else array.dtype)
        return values, grads

    def add(self, sums: Sums, at: Any, size: int, keep: Array | None) -> Sums:
        """The sums with those of the rows at a slice, or at indices, ``size`` of them."""
        (values, grads), library = sums, self.library
        xp, form = library.xp, self.form
        fills = {"labels": form.ignore_index}
        small = {k: library.take(a, at, fills.get(k, 0)) for k, a in self.small.items()}
        if keep is not None:
            small["keep"] = keep
        scale = None if self.scale is None else library.take(self.scale, at)
        hidden = self.student.states(at, keep)
        out, other_out = (None if b is None else b[:size, ...] for b in self.buffers)
        u = self.student.outputs(hidden, out)
        v = self.teacher.outputs(self.teacher.states(at, keep), other_out)
        found, by_knobs = [], []
        block = max(1, -(-self.step // library.blocks))
        for first in range(0, size, block):
            part = slice(first, min(first + block, size))
            value, partials = form.rows(
                u[part, ...],
                v[part, ...],
                {k: a[part, ...] for k, a in small.items()},
                None if scale is None else scale[part],
                self.wanted,
                xp,
            )
            if "outputs" in partials:
                u = library.put(u, part, partials.pop("outputs"))
            found.append(value)
            by_knobs.append(partials)
        values = library.put(values, at, xp.concat(found))
        for name in by_knobs[0]:
            knob = xp.concat([partials[name] for partials in by_knobs])
            grads[name] = library.put(grads[name], at, knob)
        if self.through_outputs:
            grads = self.student.pulled_back(grads, u, hidden, at)
        return values, grads


def run(
    form: LinearForm,
    arrays: Mapping[str, Array],
    wanted: Collection[str],
    scale: Array | None,
    library: Library,
) -> Sums:
    """Values (N,) of all rows, and the gradients of the sum of values times ``scale``.

    Rows that are not kept are not multiplied out where the library can tell which they are, and
    multiplied as zeros elsewhere.

    Args:
        form: what is computed.
        arrays: by name, see the module.
        wanted: which of the student's arrays and of the knobs to differentiate by.
        scale: (N,), or None for 1.
        library: of the arrays.

    Returns:
        Values in the computing dtype; gradients by name, those of ``student_hidden`` and of knobs
        in their dtypes, those of the head in that in which they are added up.
    """
    chunks = Chunks(form, arrays, wanted, scale, library)
    keep = arrays.get("keep")
    kept = None if keep is None else library.kept(keep)
    count = arrays["student_hidden"].shape[0] if kept is None else kept.shape[0]
    sums = chunks.start(arrays, wanted)
    zeroed = keep if kept is None else None
    with library.quiet():
        for start in range(0, count, chunks.step):
            part = slice(start, min(start + chunks.step, count))
            at = part if kept is None else kept[part]
            sums = chunks.add(sums, at, part.stop - start, None if zeroed is None else zeroed[part])
    return sums
