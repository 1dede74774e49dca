"""The arguments of losses from hidden states and heads, looked at."""

import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import array_api_compat

from amidmath import _checks, _loss
from amidmath._head import Head, as_head
from amidmath._linear_form import LinearForm
from amidmath._typing import Array, Namespace

if TYPE_CHECKING:
    from amidmath._loss import Loss

VOCABULARIES = ("strict", "common")

# Both sides' logits of a chunk. Fewer rows would leave the multiplication waiting for the head.
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
        arrays: the same as rows; see :mod:`amidmath._linear_rows`.
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
        hidden = (self.arrays["student_hidden"], self.arrays["teacher_hidden"])
        return _loss._row_scale(self.scale, hidden, self.xp)


def given(
    loss: "Loss",
    student_hidden: Array,
    student_head: Array | Head,
    teacher_hidden: Array,
    teacher_head: Array | Head,
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
    from amidmath._vocab_parallel import VocabParallel

    if isinstance(loss, VocabParallel):
        raise TypeError(
            "linear needs a loss of whole rows, and a VocabParallel one has parts of them: "
            f"multiply the hidden states by this rank's part of the head, and call {loss!r}"
        )
    xp, arguments, student, teacher = _sides(
        student_hidden, student_head, teacher_hidden, teacher_head
    )
    v_s, v_t = student.projection.vocabulary, teacher.projection.vocabulary
    if _checks.choice("vocab", vocab, VOCABULARIES) == "strict" and v_s != v_t:
        raise ValueError(
            f"student_head and teacher_head must have one vocabulary, got {v_s} and {v_t} tokens; "
            "if the first of them are the same, vocab='common' puts the others in one bucket"
        )
    others = {} if mask is None else {"mask": mask}
    if denominator is not None and not isinstance(denominator, numbers.Real):
        _checks.scalar_array(student_logits=student_hidden, denominator=denominator)
    for name, array in (others | loss.knobs).items():
        _checks.namespace(student_hidden=student_hidden, **{name: array})
        _checks.same_device(student_hidden=student_hidden, **{name: array})
    # What there is to check of masks and parameters is checked as for logits, here of one token.
    _, shape, operands, keep = loss._operands(
        student_hidden[..., :1], teacher_hidden[..., :1], mask
    )
    scale = _loss._scale(reduction, denominator, operands, keep, xp)
    rows = math.prod(shape)
    arrays = arguments | {
        name: xp.reshape(arguments[name], (rows, arguments[name].shape[-1]))
        for name in ("student_hidden", "teacher_hidden")
    }
    arrays |= dict(zip(loss.knobs, operands[2:], strict=True))
    if keep is not None:
        arrays["keep"] = keep
    if labels is not None:
        arrays["labels"] = _labels(labels, student_hidden, keep, v_s, ignore_index, xp)
    form = LinearForm(
        loss.block,
        tuple(loss.knobs),
        student.projection,
        teacher.projection,
        _checks.number("label_weight", label_weight),
        ignore_index,
        _chunk_rows(chunk_rows, student_hidden, teacher_hidden, v_s + v_t, xp),
    )
    return Given(xp, form, arguments | loss.knobs, arrays, scale, reduction != "none", shape)


def _sides(
    student_hidden: Array, student_head: Any, teacher_hidden: Array, teacher_head: Any
) -> tuple[Namespace, dict[str, Array], Head, Head]:
    """The library, the arrays of both sides by name, and the heads."""
    hidden = {"student_hidden": student_hidden, "teacher_hidden": teacher_hidden}
    xp = _checks.namespace(**hidden)
    _checks.real_floating(xp, **hidden)
    arguments = dict(hidden)
    heads = []
    for side, given in (("student", student_head), ("teacher", teacher_head)):
        head = as_head(f"{side}_head", given)
        name = f"{side}_hidden"
        shape, weight = tuple(hidden[name].shape), tuple(head.weight.shape)
        if not shape or shape[-1] != weight[1]:
            raise ValueError(
                f"{name} must have a last axis of the size of {side}_head's, {weight[1]} "
                f"(weight of shape {weight}), got shape {shape}"
            )
        arguments |= head.arrays(side)
        heads.append(head)
    _checks.namespace(**arguments)
    _checks.real_floating(xp, **arguments)
    _checks.same_device(**arguments)
    if student_hidden.shape[:-1] != teacher_hidden.shape[:-1]:
        raise ValueError(
            "student_hidden and teacher_hidden must have the same positions, got shapes "
            f"{tuple(student_hidden.shape)} and {tuple(teacher_hidden.shape)}"
        )
    return xp, arguments, heads[0], heads[1]


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
    _checks.namespace(**named)
    _checks.same_device(**named)
    if labels.shape != student_hidden.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of the positions, {tuple(student_hidden.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    if not xp.isdtype(labels.dtype, "integral"):
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral):
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")
    index = xp.arange(1, device=array_api_compat.device(labels))  # the library's own kind of index
    labels = xp.reshape(xp.astype(labels, index.dtype), (-1,))
    if keep is not None:
        labels = xp.where(keep, labels, int(ignore_index))
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= vocabulary))
    wanted = f"tokens in [0, {vocabulary}) or ignore_index {ignore_index}"
    _checks.values_hold("labels", labels, outside, wanted)
    return labels


def _chunk_rows(
    asked: int | None, student: Array, teacher: Array, vocabularies: int, xp: Namespace
) -> int:
    """How many rows make a chunk."""
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, numbers.Integral):
            raise TypeError(f"chunk_rows must be an integer or None, got {asked!r}")
        if asked < 1:
            raise ValueError(f"chunk_rows must be positive, got {asked!r}")
        return int(asked)
    on_cpu = "cpu" in str(getattr(student, "device", "cpu")).lower()
    width = max(xp.finfo(a.dtype).bits for a in (student, teacher)) // 8
    budget = CPU_BYTES if on_cpu else ACCELERATOR_BYTES
    return max(FEWEST_ROWS, budget // (int(width) * vocabularies))
