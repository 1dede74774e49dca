"""A loss a chunk of rows at a time: multiply, rows, multiply.

Libraries whose arrays can be written into run :func:`run`; JAX has a loop of its own, of the same
parts. Arrays go by the names of the arguments: ``student.states`` (N, H), ``student.head.weight``
(V, H), ``student.head.bias``, ``student.head.low_rank[0]`` and ``[1]``, or ``student`` (N, V) where
its logits are given; the teacher's likewise, or those of its lists, ``teacher.log_probs`` and
``teacher.indices``; the knobs of the loss (N, 1), ``labels`` (N,) and ``keep`` (N,).
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array
from amidmath.arrays.checks import computing_dtype
from amidmath.pairs.chunk_form import ChunkForm
from amidmath.pairs.layers import Library, side_of

Sums: TypeAlias = tuple[Array, dict[str, Array]]
"""Values (N,), and gradients by name."""


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
        form: ChunkForm,
        arrays: Mapping[str, Array],
        wanted: Collection[str],
        scale: Array | None,
        library: Library,
    ) -> None:
        self.form, self.library, self.scale = form, library, scale
        self.step = max(1, min(form.chunk_rows, arrays[form.numbers].shape[0]))
        self.student = side_of("student", form.student, arrays, library, self.step)
        self.teacher = form.teacher.source(arrays, library, self.step)
        self.small = {k: arrays[k] for k in (*form.knobs, "labels") if k in arrays}
        self.through_outputs = any(name.startswith("student") for name in wanted)
        self.wanted = {k for k in form.knobs if k in wanted}
        if self.through_outputs:
            self.wanted.add("outputs")

    def start(self, arrays: Mapping[str, Array], wanted: Collection[str]) -> Sums:
        """Values and gradients to add to: zeros, in float32 for sums in half precision."""
        xp, hidden = self.library.xp, self.student.hidden
        computing = computing_dtype(xp, *self.form.pair(arrays))
        device = libraries.device(hidden)
        values = xp.zeros((hidden.shape[0],), dtype=computing, device=device)
        grads = {}
        for name in wanted:
            array = arrays[name]
            summed = name.startswith("student.head.")
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
        u, others = self.student.outputs(hidden), self.teacher.rows(at, keep)
        if self.through_outputs and u is hidden:
            u = library.own(u)
        found, by_knobs = [], []
        block = max(1, -(-self.step // library.blocks))
        for first in range(0, size, block):
            part = slice(first, min(first + block, size))
            value, partials = form.rows(
                u[part, ...],
                tuple(a[part, ...] for a in others),
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
    form: ChunkForm,
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
        Values in the computing dtype; gradients by name, those by states, logits and knobs
        in their dtypes, those of the head in that in which they are added up.
    """
    chunks = Chunks(form, arrays, wanted, scale, library)
    keep = arrays.get("keep")
    kept = None if keep is None else library.kept(keep)
    count = arrays[form.numbers].shape[0] if kept is None else kept.shape[0]
    sums = chunks.start(arrays, wanted)
    zeroed = keep if kept is None else None
    with library.quiet():
        for start in range(0, count, chunks.step):
            part = slice(start, min(start + chunks.step, count))
            at = part if kept is None else kept[part]
            sums = chunks.add(sums, at, part.stop - start, None if zeroed is None else zeroed[part])
    return sums
