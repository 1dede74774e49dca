"""The arguments of losses from hidden states and heads, looked at."""

import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amidmath.arrays import checks, dispatch, kinds, libraries
from amidmath.arrays.annotations import Array, Namespace
from amidmath.inputs.head import Head, as_head
from amidmath.inputs.hidden_form import LinearForm
from amidmath.inputs.hidden_teacher import INDICES, LOG_PROBS, DenseTeacher, SparseTeacher, Teacher
from amidmath.inputs.top_k import TopK, checked
from amidmath.losses.sparse import untempered
from amidmath.rows import positions

if TYPE_CHECKING:
    from amidmath.losses.loss import Loss

VOCABULARIES = ("strict", "common")

# All logits of a chunk. Fewer rows would leave the multiplication waiting for the head.
CPU_BYTES = 96 * 2**20
ACCELERATOR_BYTES = 512 * 2**20
FEWEST_ROWS = 16


@dataclass(frozen=True, eq=False)
class Given:
    """Arguments that have been looked at.

    Args:
        xp: their namespace.
        form: what is computed.
        arguments: the arrays that were given, by name.
        arrays: the same as rows; see :mod:`amidmath.inputs.hidden_rows`.
        scale: what each value counts in the sum, None for 1.
        reduced: whether there is a sum.
        shape: that of the positions.
    """

    xp: Namespace
    form: LinearForm
    arguments: dict[str, Array]
    arrays: dict[str, Array]
    scale: Array | float | None
    reduced: bool
    shape: tuple[int, ...]

    @property
    def differentiable(self) -> list[str]:
        """What ``wrt`` may name."""
        names = ["student_hidden", "student_head"]
        names += ["student_bias"] if "student_bias" in self.arguments else []
        names += ["student_low_rank"] if "student_low_rank_a" in self.arguments else []
        return [*names, *self.form.knobs]

    @property
    def row_scale(self) -> Array | None:
        """The scale of every row."""
        if self.scale is None:
            return None
        return positions.row_scale(self.scale, self.form.pair(self.arrays), self.xp)


def given(
    loss: "Loss",
    student_hidden: Array,
    student_head: Array | Head,
    teacher_hidden: Array | TopK,
    teacher_head: Array | Head | None,
    mask: Array | None,
    reduction: str,
    denominator: Any,
    vocab: str,
    labels: Array | None,
    label_weight: float,
    ignore_index: int,
    chunk_rows: int | None,
) -> Given:
    """The arguments of :meth:`amidmath.Loss.linear`, checked."""
    from amidmath.losses.vocab_parallel import VocabParallel

    if isinstance(loss, VocabParallel):
        raise TypeError(
            "linear needs a loss of whole rows, and a VocabParallel one has parts of them: "
            f"multiply the hidden states by this rank's part of the head, and call {loss!r}"
        )
    checks.choice("vocab", vocab, VOCABULARIES)
    student, arguments = _layer("student", student_hidden, student_head, {})
    xp = checks.namespace(student_hidden=student_hidden)
    beside = ("student_hidden", student_hidden)
    shape = student_hidden.shape[:-1]
    keep = positions.mask_rows(mask, beside, shape, xp)
    vocabulary = student.projection.vocabulary
    teacher: Teacher
    if isinstance(teacher_hidden, TopK):
        _without_a_head(teacher_head, vocab)
        teacher = SparseTeacher(*untempered(loss))
        lists = checked("teacher_hidden", teacher_hidden, beside, vocabulary, keep, xp)
        arguments |= {LOG_PROBS: lists.log_probs, INDICES: lists.indices}
    else:
        head, layer = _teacher_layer(teacher_hidden, teacher_head, arguments)
        _one_vocabulary(vocabulary, head.projection.vocabulary, vocab)
        teacher = DenseTeacher(loss.block, head.projection)
        arguments |= layer
    rows = math.prod(shape)
    arrays = arguments | {
        name: xp.reshape(array, (rows, array.shape[-1]))
        for name, array in arguments.items()
        if name.endswith("_hidden")
    }
    if keep is not None:
        arrays["keep"] = keep
    if labels is not None:
        arrays["labels"] = _labels(labels, student_hidden, keep, vocabulary, ignore_index, xp)
    hidden = [array for name, array in arguments.items() if name.endswith("_hidden")]
    form = LinearForm(
        student.projection,
        teacher,
        tuple(loss.knobs),
        checks.number("label_weight", label_weight),
        ignore_index,
        _chunk_rows(chunk_rows, hidden, vocabulary + teacher.width, xp),
    )
    pair = form.pair(arrays)
    dtype = checks.computing_dtype(xp, *pair)
    knobs = positions.knob_rows(loss.knobs, beside, shape, dtype, xp)
    arrays |= dict(zip(loss.knobs, knobs, strict=True))
    scale = positions.scale_of(reduction, denominator, beside, pair, keep, xp)
    return Given(xp, form, arguments | loss.knobs, arrays, scale, reduction != "none", shape)


def _layer(
    side: str, hidden: Array, head: Any, beside: dict[str, Array]
) -> tuple[Head, dict[str, Array]]:
    """The head of a side, and its arrays by name, which fit each other and those ``beside``."""
    name = f"{side}_hidden"
    xp = checks.namespace(**beside, **{name: hidden})
    checks.real_floating(xp, **{name: hidden})
    head = as_head(f"{side}_head", head)
    shape, weight = tuple(hidden.shape), tuple(head.weight.shape)
    if not shape or shape[-1] != weight[1]:
        raise ValueError(
            f"{name} must have a last axis of the size of {side}_head's, {weight[1]} "
            f"(weight of shape {weight}), got shape {shape}"
        )
    arrays = {name: hidden, **head.arrays(side)}
    checks.namespace(**beside, **arrays)
    checks.real_floating(xp, **arrays)
    checks.same_device(**beside, **arrays)
    return head, arrays


def _teacher_layer(
    hidden: Array, head: Any, student: dict[str, Array]
) -> tuple[Head, dict[str, Array]]:
    """The same of the teacher, at the positions of the student."""
    if head is None and checks.is_array(hidden):
        raise TypeError(
            "teacher_head must be the weight or am.Head that makes logits of teacher_hidden, got "
            f"None and hidden states of shape {tuple(hidden.shape)}; only an am.TopK has no head"
        )
    found = _layer("teacher", hidden, head, student)
    shape = student["student_hidden"].shape[:-1]
    if shape != hidden.shape[:-1]:
        raise ValueError(
            "student_hidden and teacher_hidden must have the same positions, got shapes "
            f"{tuple(student['student_hidden'].shape)} and {tuple(hidden.shape)}"
        )
    return found


def _one_vocabulary(student: int, teacher: int, vocab: str) -> None:
    """Raise ValueError where two sizes of vocabularies are not said to be meant."""
    if vocab == "strict" and student != teacher:
        raise ValueError(
            f"student_head and teacher_head must have one vocabulary, got {student} and {teacher} "
            "tokens; if the first of them are the same, vocab='common' puts the others in one "
            "bucket"
        )


def _without_a_head(head: Any, vocab: str) -> None:
    """Raise unless what goes with a head only is left out beside lists."""
    if head is not None:
        raise TypeError(
            "teacher_head must be left out (None) where teacher_hidden is an am.TopK, which has "
            f"log-probabilities already, got {type(head).__name__}: {checks.shortened(head)}"
        )
    if vocab != "strict":
        raise ValueError(
            f"vocab must be 'strict' where teacher_hidden is an am.TopK, got {vocab!r}: put -1 for "
            "listed tokens that the student does not have, whose mass then goes to the tail"
        )


def _labels(
    labels: Array,
    student_hidden: Array,
    keep: Array | None,
    vocabulary: int,
    ignore_index: int,
    xp: Namespace,
) -> Array:
    """The labels (N,), ignored where positions are left out."""
    named = {"student_hidden": student_hidden, "labels": labels}
    checks.namespace(**named)
    checks.same_device(**named)
    if labels.shape != student_hidden.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of the positions, {tuple(student_hidden.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    checks.integral(xp, labels=labels)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral):
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")
    index = xp.arange(1, device=libraries.device(labels))  # the library's own kind of index
    labels = xp.reshape(xp.astype(labels, index.dtype), (-1,))
    if keep is not None:
        labels = xp.where(keep, labels, int(ignore_index))
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= vocabulary))
    wanted = f"tokens in [0, {vocabulary}) or ignore_index {ignore_index}"
    checks.values_hold("labels", labels, outside, wanted)
    return labels


def _chunk_rows(asked: int | None, hidden: list[Array], width: int, xp: Namespace) -> int:
    """How many rows make a chunk, if ``width`` logits a row are made of those hidden states."""
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, numbers.Integral):
            raise TypeError(f"chunk_rows must be an integer or None, got {asked!r}")
        if asked < 1:
            raise ValueError(f"chunk_rows must be positive, got {asked!r}")
        return int(asked)
    size = max(kinds.float_bits(a, xp) for a in hidden) // 8
    budget = CPU_BYTES if dispatch.on_cpu(hidden[0]) else ACCELERATOR_BYTES
    return max(FEWEST_ROWS, budget // (size * width))
