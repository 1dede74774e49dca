"""Pairs of which one side is made of hidden states, or that come with labels: in chunks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amidmath.arrays import checks, dispatch, kinds
from amidmath.arrays.adapters import Adapter, adapter_of
from amidmath.arrays.annotations import Array, Namespace
from amidmath.inputs.head import Projection
from amidmath.inputs.hidden import Hidden
from amidmath.inputs.top_k import TopK, checked
from amidmath.pairs.call import Batch, Call, RowLoss, leaves_of
from amidmath.pairs.chunk_form import ChunkForm
from amidmath.pairs.labels import label_rows
from amidmath.pairs.teachers import INDICES, LOG_PROBS, DenseTeacher, SparseTeacher, Teacher
from amidmath.rows import positions

# All logits of a chunk. Fewer rows would leave the multiplication waiting for the head.
CPU_BYTES = 96 * 2**20
ACCELERATOR_BYTES = 512 * 2**20
FEWEST_ROWS = 16


@dataclass(frozen=True, eq=False)
class ChunkedCall(Call):
    """A loss in chunks of rows; see :class:`amidmath.pairs.call.Call`.

    Args:
        form: what is computed.
        arrays: those of both sides by name, as rows; see :mod:`amidmath.pairs.chunks`.
    """

    form: ChunkForm
    arrays: dict[str, Array]

    @property
    def row_scale(self) -> Array | None:
        """The scale of every row."""
        if self.scale is None:
            return None
        return positions.row_scale(self.scale, self.form.pair(self.arrays), self.xp)

    def value(self) -> Array:
        """Differentiable by the student's side and by the knobs."""
        return self._adapter.chunked_value(self)

    def partials(self, wanted: Sequence[str]) -> tuple[Array, dict[str, Array]]:
        """In one pass over the chunks."""
        return self._adapter.chunked_partials(self, wanted)

    @property
    def _adapter(self) -> Adapter:
        return adapter_of(self.arrays[self.form.numbers])


def chunked_call(
    loss: RowLoss, student: Array | Hidden, teacher: Array | Hidden | TopK, batch: Batch
) -> ChunkedCall:
    """The call of a loss with hidden states on a side, or with labels."""
    head, numbers, arrays = _side("student", student, {})
    first = arrays[numbers]
    beside = (numbers, first)
    xp = checks.namespace(**arrays)
    shape = first.shape[:-1]
    keep = positions.mask_rows(batch.mask, beside, shape, xp)
    compared: Teacher
    if isinstance(teacher, TopK):
        _without_others(student)
        temperature, block = loss.untempered()
        compared = SparseTeacher(temperature, block)
        lists = checked("teacher", teacher, beside, head.vocabulary, keep, xp)
        theirs = {LOG_PROBS: lists.log_probs, INDICES: lists.indices}
    else:
        their_head, name, theirs = _side("teacher", teacher, arrays)
        _same_positions(numbers, first, name, theirs[name])
        _one_vocabulary(head.vocabulary, their_head.vocabulary, (student, teacher))
        compared = DenseTeacher(loss.block, their_head, name)
    rows = math.prod(shape)
    every = {
        name: xp.reshape(array, (rows, array.shape[-1]))
        if name in (numbers, compared.numbers)
        else array
        for name, array in (arrays | theirs).items()
    }
    if keep is not None:
        every["keep"] = keep
    if batch.labels is not None:
        every["labels"] = label_rows(
            batch.labels, beside, keep, head.vocabulary, batch.ignore_index, xp
        )
    form = ChunkForm(
        student=head,
        numbers=numbers,
        teacher=compared,
        knobs=tuple(loss.knobs),
        label_weight=batch.label_weight,
        ignore_index=batch.ignore_index,
        chunk_rows=_chunk_rows((student, teacher), every, head.vocabulary + compared.width, xp),
    )
    pair = form.pair(every)
    dtype = checks.computing_dtype(xp, *pair)
    knobs = positions.knob_rows(loss.knobs, beside, shape, dtype, xp)
    return ChunkedCall(
        xp=xp,
        shape=shape,
        reduction=batch.reduction,
        scale=positions.scale_of(batch.reduction, batch.denominator, beside, pair, keep, xp),
        inputs={"student": student},
        knobs=loss.knobs,
        form=form,
        arrays=every | dict(zip(loss.knobs, knobs, strict=True)),
    )


def _side(
    name: str, value: Array | Hidden, others: dict[str, Array]
) -> tuple[Projection, str, dict[str, Array]]:
    """A side's head, the array that its rows are made of, and its arrays by name, checked."""
    arrays = leaves_of(name, value)
    xp = checks.namespace(**others, **arrays)
    checks.real_floating(xp, **arrays)
    checks.same_device(**others, **arrays)
    if isinstance(value, Hidden):
        return value.head.projection, f"{name}.states", arrays
    if value.ndim == 0 or value.shape[-1] == 0:
        raise ValueError(
            f"{name} must have a last axis over a vocabulary of at least one token, "
            f"got shape {tuple(value.shape)}"
        )
    return Projection(int(value.shape[-1]), None, 1.0, 0.0), name, arrays


def _same_positions(student: str, here: Array, teacher: str, there: Array) -> None:
    if here.shape[:-1] != there.shape[:-1]:
        raise ValueError(
            f"{student} and {teacher} must have the same positions, got shapes "
            f"{tuple(here.shape)} and {tuple(there.shape)}"
        )


def _one_vocabulary(student: int, teacher: int, sides: tuple[Any, Any]) -> None:
    """Raise ValueError where two sizes of vocabularies are not said to be meant."""
    common = any(isinstance(side, Hidden) and side.vocab == "common" for side in sides)
    if student == teacher or common:
        return
    hint = (
        "; if the first of them are the same, am.Hidden(…, vocab='common') puts the others in one "
        "bucket"
    )
    raise ValueError(
        f"student and teacher must have one vocabulary, got {student} and {teacher} tokens"
        + (hint if any(isinstance(side, Hidden) for side in sides) else "")
    )


def _without_others(student: Array | Hidden) -> None:
    """Raise where tokens that are not common would be put in a bucket beside lists."""
    if isinstance(student, Hidden) and student.vocab != "strict":
        raise ValueError(
            f"student.vocab must be 'strict' where teacher is an am.TopK, got {student.vocab!r}: "
            "put -1 for listed tokens that the student does not have, whose mass then goes to the "
            "tail"
        )


def _chunk_rows(sides: tuple[Any, Any], arrays: dict[str, Array], width: int, xp: Namespace) -> int:
    """How many rows make a chunk, if ``width`` logits a row are made."""
    asked = [
        side.chunk_rows
        for side in sides
        if isinstance(side, Hidden) and side.chunk_rows is not None
    ]
    if asked:
        return min(asked)
    wide = [
        array
        for name, array in arrays.items()
        if kinds.is_of(array, "real floating", xp)
        and name.endswith((".states", "student", "teacher"))
    ]
    size = max(kinds.float_bits(a, xp) for a in wide) // 8
    budget = CPU_BYTES if dispatch.on_cpu(wide[0]) else ACCELERATOR_BYTES
    return max(FEWEST_ROWS, budget // (size * width))
