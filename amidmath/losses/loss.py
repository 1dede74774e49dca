"""What every loss on a pair of logits is: a value a position, reduced, and its gradients."""

from abc import ABC, abstractmethod
from typing import Any, overload

from amidmath.arrays import checks, dispatch
from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.losses.linear import LinearLoss
from amidmath.losses.sparse import SparseLoss
from amidmath.rows import positions
from amidmath.rows.forms import Block, RowForm
from amidmath.values.operators import Algebra
from amidmath.values.value import Value


class Loss(LinearLoss, SparseLoss, Algebra, Value, ABC):
    """A loss of student logits against teacher logits, in nats per position.

    Losses add and subtract, and are multiplied and divided by numbers and by arrays that broadcast
    to the positions: ``0.5 * am.AMiD(order="pr") + 0.5 * am.AMiD(order="qr")``, ``sum(losses)``.
    With a negative weight the whole is no divergence any more, and may be negative; infinite parts
    of opposite signs make NaN.

    They are values: they cannot be changed, and are equal where their class and parameters are.
    Parameters that are arrays are compared where their numbers are at hand, and then there is no
    hash. In JAX a loss is a pytree, and its leaves are the parameters that are arrays: it can be
    an argument of what is jitted or differentiated, be mapped over, and be carried through a scan.
    ``torch.func`` takes it likewise. If it was made before JAX was imported, JAX knows it once
    another one is made, or one is called with JAX's arrays.
    """

    @property
    @abstractmethod
    def block(self) -> Block:
        """Rows of student and teacher logits, then the knobs, to values and gradients."""

    @property
    def knobs(self) -> dict[str, Array]:
        """The parameters that are arrays, by name, in the order in which the block takes them."""
        return {}

    def __call__(
        self,
        student_logits: Array,
        teacher_logits: Array,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        backend: str | None = None,
    ) -> Array:
        """The loss of a batch, differentiable with respect to both logits and the array knobs.

        Args:
            student_logits: shape (..., V), a plain, dense array of a real floating dtype.
            teacher_logits: shape (..., V), same library and device.
            mask: boolean or 0/1, of shape (...) or one that broadcasts to it; positions that are
                False or 0 are left out, and never read. None keeps all.
            reduction: "mean" over the positions kept, "sum", or "none" for one value a position
                (0 where left out).
            denominator: what the sum is divided by instead of the number of positions kept, a
                positive number or scalar array; for "mean" only (gradient accumulation, data
                parallel).
            backend: None for the fastest that there is; "reference" for the array core, which
                torch and JAX then differentiate operation by operation, as often as asked;
                "compiled" for a row kernel (CPU, CUDA) or an error that says why not.

        Returns:
            A scalar array, or shape (...) for "none", in float32 (float64 if an input is). 0 when
            no position is kept, or there is none.

        Raises:
            TypeError: not plain arrays, of different libraries, or of a wrong dtype.
            ValueError: shapes or devices that differ, an unknown reduction, a denominator
                without reduction "mean", or a backend that is unknown or cannot compute this.
            ModuleNotFoundError: backend "compiled" without its compiler (llvmlite, Triton).
        """
        self._check_backend(backend)
        xp, shape, operands, keep = self._operands(student_logits, teacher_logits, mask)
        beside = ("student_logits", operands[0])
        scale = positions.scale_of(reduction, denominator, beside, operands, keep, xp)
        if keep is not None:
            operands = (*operands, keep)
        if reduction == "none":
            values = self._values(operands, keep is not None, backend)
            return positions.reduced(values, None, reduction, shape, xp)
        return self._total(operands, keep is not None, scale, backend)

    @overload
    def value_and_grad(
        self,
        student_logits: Array,
        teacher_logits: Array,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        wrt: str = "student_logits",
        backend: str | None = None,
        overwrite_student_logits: bool = False,
    ) -> tuple[Array, Array]: ...

    @overload
    def value_and_grad(
        self,
        student_logits: Array,
        teacher_logits: Array,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        wrt: tuple[str, ...],
        backend: str | None = None,
        overwrite_student_logits: bool = False,
    ) -> tuple[Array, tuple[Array, ...]]: ...

    def value_and_grad(
        self,
        student_logits: Array,
        teacher_logits: Array,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
        *,
        wrt: str | tuple[str, ...] = "student_logits",
        backend: str | None = None,
        overwrite_student_logits: bool = False,
    ) -> tuple[Array, Any]:
        """The loss and its gradient with respect to the student logits, on any library.

        Args:
            student_logits: as for calling the loss; so are the other arguments.
            teacher_logits: same shape as the student's.
            mask: positions to keep.
            reduction: "mean", "sum" or "none".
            denominator: divides the sum, for "mean".
            wrt: what to differentiate by: "student_logits", "teacher_logits", or a parameter of
                the loss that is an array ("alpha", "lam"); or several of them in a tuple.
            backend: as for calling the loss; the gradient is the closed form's in any case.
            overwrite_student_logits: whether the gradient with respect to the student logits may
                be written where they are, which saves memory of their size. It is where a kernel
                computes it (NumPy, torch, CuPy) and they can be written to; in any case they are
                not to be used afterwards, and must share no memory with the other arguments.

        Returns:
            The value, and d value/d ``wrt`` in the shape and dtype of that argument (a tuple of
            them for a tuple); for "none", the gradient of each position's value.

        Raises:
            TypeError: as for calling the loss.
            ValueError: as for calling the loss; also an unknown name in ``wrt``.
            ModuleNotFoundError: backend "compiled" without its compiler (llvmlite, Triton).
        """
        self._check_backend(backend)
        xp, shape, operands, keep = self._operands(student_logits, teacher_logits, mask)
        beside = ("student_logits", operands[0])
        names = ["student_logits", "teacher_logits", *self.knobs]
        wanted = positions.wanted_of(wrt, names)
        scale = positions.scale_of(reduction, denominator, beside, operands, keep, xp)
        extras = [] if keep is None else [keep]
        if scale is not None:
            extras.append(positions.row_scale(scale, operands, xp))
        needs = (*(name in wanted for name in names), *(False for _ in extras))
        masked, scaled = keep is not None, scale is not None
        every = (*operands, *extras)
        values, grads = self._partials(
            every, needs, masked, scaled, backend, overwrite_student_logits
        )
        value = positions.reduced(values, scale, reduction, shape, xp)
        arrays = (student_logits, teacher_logits, *self.knobs.values())
        shaped = {
            name: positions.unbroadcast(grad, array, shape, xp)
            if name in self.knobs
            else self._whole(xp.reshape(grad, (*shape, grad.shape[-1])), array)
            for name, array, grad in zip(names, arrays, grads, strict=False)
            if grad is not None
        }
        return value, positions.as_asked(wrt, shaped)

    # What a loss whose logits are not all here does otherwise.

    def _check_backend(self, backend: str | None) -> None:
        checks.backend(backend)

    def _values(self, operands: tuple[Array, ...], masked: bool, backend: str | None) -> Array:
        """The value of every row, differentiable."""
        form = RowForm(self.block, len(self.knobs), masked)
        return dispatch.apply(form, -1, *operands, backend=backend)

    def _total(
        self,
        operands: tuple[Array, ...],
        masked: bool,
        scale: Array | float | None,
        backend: str | None,
    ) -> Array:
        """Their sum times the scale."""
        form = RowForm(self.block, len(self.knobs), masked)
        return dispatch.total(form, scale, *operands, backend=backend)

    def _partials(
        self,
        operands: tuple[Array, ...],
        needs: tuple[bool, ...],
        masked: bool,
        scaled: bool,
        backend: str | None,
        overwrite: bool,
    ) -> tuple[Array, Partials]:
        """Values, and the partial derivatives that ``needs`` marks."""
        form = RowForm(self.block, len(self.knobs), masked, scaled)
        return dispatch.value_and_partials(
            form, needs, *operands, backend=backend, overwrite=overwrite
        )

    def _whole(self, grad: Array, argument: Array) -> Array:
        """A gradient by logits as what the argument was."""
        return grad

    def _operands(
        self, student_logits: Array, teacher_logits: Array, mask: Array | None
    ) -> tuple[Namespace, tuple[int, ...], tuple[Array, ...], Array | None]:
        """The library, the shape of the positions, logits and knobs as rows, and the mask."""
        named = {"student_logits": student_logits, "teacher_logits": teacher_logits}
        xp, shape, rows = positions.logit_rows(**named)
        beside = ("student_logits", student_logits)
        dtype = checks.computing_dtype(xp, *rows)
        knobs = positions.knob_rows(self.knobs, beside, shape, dtype, xp)
        return xp, shape, (*rows, *knobs), positions.mask_rows(mask, beside, shape, xp)
