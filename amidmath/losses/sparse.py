"""Losses against a teacher's top-k lists: the contract and its arguments."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from amidmath.arrays import checks, dispatch
from amidmath.arrays.annotations import Array, Namespace
from amidmath.inputs.list_rows import SparseForm
from amidmath.inputs.top_k import TopK, checked
from amidmath.rows import positions
from amidmath.rows.forms import Block

if TYPE_CHECKING:
    from amidmath.losses.loss import Loss


class SparseLoss:
    """A loss by rows of logits, computed where the teacher is known by k tokens a position."""

    def sparse(
        self,
        student_logits: Array,
        teacher: TopK,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        backend: str | None = None,
    ) -> Array:
        """The loss against a teacher of which k tokens a position are known.

        Teacher and student are distributions over k + 1 outcomes: the listed tokens, and the tail,
        which is all others together. The teacher's tail has what its list leaves of 1, the
        student's is added up from the tokens that are not listed. The loss is exactly that of
        those two distributions. It differs from the loss of the whole vocabulary by what happens
        within the tail, which the list does not say; where all tokens are listed, or for an
        f-divergence the teacher's tail has no mass, it is the same.

        The gradient pulls at listed tokens each by itself, and at all others by their tail, in
        proportion to their probabilities. The student's logits and array knobs are differentiated
        by, under autograd, torch.compile, torch.func, jit, grad and vmap; the teacher is constant.

        A method of its own, since a teacher's list is not a stand-in for its logits: it cannot be
        tempered any more, has no gradient, and gives the loss of a coarser distribution.

        Source: docs: gradients, G10.

        Args:
            student_logits: shape (..., V), real floating dtype. They are divided by the loss's
                temperature before the tail is added up.
            teacher: log-probabilities and tokens, (..., k), at the loss's temperature already.
                A sum of probabilities above 1 by rounding (1e-3, four times the square root of
                half precision's eps) leaves no tail, and is normalised. Where the k tokens are
                the whole vocabulary there is no tail, whatever rounding leaves; otherwise what a
                truncated teacher's list lacks by rounding is a tail like any other.
            mask: as for calling the loss.
            reduction: as for calling the loss.
            denominator: as for calling the loss.
            backend: None, or "reference" for the array core, differentiated by torch and JAX.

        Returns:
            As calling the loss: a scalar, or shape (...) for "none".

        Raises:
            TypeError: not arrays, of different libraries, or of a wrong dtype; a teacher that is
                no TopK; a VocabParallel loss.
            ValueError: shapes that do not fit, a sum of losses at different temperatures, a
                gradient with respect to the teacher, and as for calling the loss. Where values
                are at hand, on the CPU and outside of jit and compile: a token outside the
                vocabulary, one listed twice, a NaN, or probabilities that sum to more than 1.
                Elsewhere the loss of such a position is NaN.

        Example:
            >>> import numpy as np, amidmath as am
            >>> student, teacher = np.zeros((1, 8)), np.arange(8.0)[None, :]
            >>> loss = am.AMiD(am.KL(), alpha=-1.0, lam=0.1)
            >>> print(*(f"{loss.sparse(student, am.top_k(teacher, k)):.5f}" for k in (1, 2, 4, 8)))
            0.51285 0.71496 0.80631 0.81414
            >>> print(f"{loss(student, teacher):.5f}")
            0.81414
        """
        given = _given(self, student_logits, teacher, mask, reduction, denominator, backend)
        if reduction == "none":
            values = dispatch.apply(given.form, -1, *given.operands, backend=backend)
            return given.xp.reshape(values, given.shape)
        # Its form is one of rows but for the operands, which is all that is asked of it.
        form: Any = given.form
        return dispatch.total(form, given.scale, *given.operands, backend=backend)

    @overload
    def sparse_value_and_grad(
        self,
        student_logits: Array,
        teacher: TopK,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        wrt: str = "student_logits",
        backend: str | None = None,
    ) -> tuple[Array, Array]: ...

    @overload
    def sparse_value_and_grad(
        self,
        student_logits: Array,
        teacher: TopK,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        wrt: tuple[str, ...],
        backend: str | None = None,
    ) -> tuple[Array, tuple[Array, ...]]: ...

    def sparse_value_and_grad(
        self,
        student_logits: Array,
        teacher: TopK,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        wrt: str | tuple[str, ...] = "student_logits",
        backend: str | None = None,
    ) -> tuple[Array, Any]:
        """The loss against a top-k list and its gradient, on any library.

        Args:
            student_logits: as for :meth:`sparse`; so are the other arguments.
            teacher: log-probabilities and tokens.
            mask: positions to keep.
            reduction: "mean", "sum" or "none".
            denominator: divides the sum, for "mean".
            wrt: what to differentiate by: "student_logits", or a parameter of the loss that is an
                array ("alpha", "lam"); or several of them in a tuple.
            backend: as for :meth:`sparse`; the gradient is the closed form's in any case.

        Returns:
            The value, and d value/d ``wrt`` in the shape and dtype of that argument (a tuple of
            them for a tuple); for "none", the gradient of each position's value.

        Raises:
            TypeError: as for :meth:`sparse`.
            ValueError: as for :meth:`sparse`; also an unknown name in ``wrt``.

        Example:
            >>> import numpy as np, amidmath as am
            >>> teacher = am.TopK(np.log([[0.5, 0.25]]), np.array([[3, 0]]))
            >>> loss = am.AMiD(am.KL(), lam=0.0)
            >>> loss.sparse_value_and_grad(np.zeros((1, 5)), teacher)[1].round(4)
            array([[-0.05  ,  0.1167,  0.1167, -0.3   ,  0.1167]])
        """
        given = _given(self, student_logits, teacher, mask, reduction, denominator, backend)
        xp, knobs = given.xp, given.knobs
        wanted = positions.wanted_of(wrt, ["student_logits", *knobs])
        operands, form = list(given.operands), given.form
        if given.scale is not None:
            form = replace(form, scaled=True)
            operands.append(positions.row_scale(given.scale, given.operands, xp))
        names = ("student_logits", "", "", *knobs)
        needs = (*(name in wanted for name in names), *(False for _ in operands[len(names) :]))
        values, grads = dispatch.value_and_partials(form, needs, *operands, backend=backend)
        value = positions.reduced(values, given.scale, reduction, given.shape, xp)
        shaped = {
            name: positions.unbroadcast(grad, knobs[name], given.shape, xp)
            if name in knobs
            else xp.reshape(grad, student_logits.shape)
            for name, grad in zip(names, grads, strict=False)
            if grad is not None
        }
        return value, positions.as_asked(wrt, shaped)


@dataclass(frozen=True, eq=False)
class _Given:
    """Arguments that have been looked at, as :class:`SparseForm` takes them."""

    xp: Namespace
    form: SparseForm
    operands: tuple[Array, ...]
    knobs: dict[str, Array]
    scale: Array | float | None
    shape: tuple[int, ...]


def _given(
    loss: Any,
    student_logits: Array,
    teacher: TopK,
    mask: Array | None,
    reduction: str,
    denominator: Any,
    backend: str | None,
) -> _Given:
    checks.backend(backend)
    if backend == "compiled":
        raise ValueError(
            "backend 'compiled' computes losses of whole rows, not of top-k lists; leave it out"
        )
    temperature, block = untempered(loss)
    xp, shape, (student,) = positions.logit_rows(student_logits=student_logits)
    beside = ("student_logits", student_logits)
    keep = positions.mask_rows(mask, beside, shape, xp)
    top = checked("teacher", teacher, beside, int(student.shape[-1]), keep, xp)
    dtype = checks.computing_dtype(xp, student, top.log_probs)
    knobs = positions.knob_rows(loss.knobs, beside, shape, dtype, xp)
    scale = positions.scale_of(reduction, denominator, beside, (student, top.log_probs), keep, xp)
    operands = (student, *top, *knobs, *(() if keep is None else (keep,)))
    form = SparseForm(block, temperature, len(knobs), masked=keep is not None)
    return _Given(xp, form, operands, loss.knobs, scale, shape)


def untempered(loss: "Loss") -> tuple[float, Block]:
    """The temperature of a loss, and its block at temperature 1.

    A tail can be added up at one temperature only, and a list holds the teacher at one.
    """
    from amidmath.losses.sums import WeightedSum
    from amidmath.losses.vocab_parallel import VocabParallel

    if isinstance(loss, VocabParallel):
        raise TypeError("a VocabParallel loss takes whole rows of teacher logits, no top-k lists")
    parts = loss.parts if isinstance(loss, WeightedSum) else ((1.0, loss),)
    temperatures = sorted({float(getattr(part, "temperature", 1.0)) for _, part in parts})
    if len(temperatures) > 1:
        raise ValueError(
            "a teacher's list is at one temperature, and so must be the parts of a sum of losses, "
            f"got {', '.join(map(str, temperatures))}; call each part with a list of its own"
        )
    (temperature,) = temperatures
    if temperature == 1.0:
        return 1.0, loss.block
    if isinstance(loss, WeightedSum):
        return temperature, WeightedSum(tuple((w, _at_one(part)) for w, part in parts)).block
    return temperature, _at_one(loss).block


def _at_one(loss: Any) -> "Loss":
    made: Loss = replace(loss, temperature=1.0)
    return made
