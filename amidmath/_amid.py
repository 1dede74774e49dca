"""The AMiD distillation loss: a divergence to or from the α-mixture assistant."""

import numbers
from dataclasses import dataclass, field
from typing import Any

from amidmath import _checks, _dispatch
from amidmath._assistant import exponent, log_mixture, mixture_ratios
from amidmath._means import exp_limit, log_sum_exp
from amidmath._pointwise import exp_difference, log_near_one, shared_support
from amidmath._rows import RowForm
from amidmath._typing import Array, Namespace, Partials
from amidmath.divergences import KL, Divergence

ORDERS = ("pr", "rp", "qr", "rq")
"""The four losses D(p‖r), D(r‖p), D(q‖r), D(r‖q): teacher p, student q, assistant r."""

REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class AMiD:
    """Distillation loss with the α-mixture assistant distribution.

    Teacher p and student q are softmaxes of logits over a temperature, the assistant is
    r ∝ (λpᵏ + (1-λ)qᵏ)^(1/k), k = (1-α)/2, and the loss is a divergence between r and one of
    them, per position, in nats. It is not multiplied by the temperature squared.

    torch's autograd and JAX's transformations see the closed-form gradient for student and
    teacher logits; :meth:`value_and_grad` gives it on any library. float16 and bfloat16 logits
    are computed in float32 and get their gradient in their own dtype. A vocabulary entry at -inf
    has probability zero; at -inf on both sides it takes no part.

    First derivatives only: torch's autograd raises on a second one.

    At α >= 1 the assistant lives only where teacher and student both do: D(p‖r) = 0 then says
    that they agree on that common support, and nothing about the rest.

    Source: AMiD (arXiv 2510.15982); docs: gradients, G1 to G4.

    Args:
        divergence: the divergence D.
        order: "pr" for D(p‖r), "rp" for D(r‖p), "qr" for D(q‖r), "rq" for D(r‖q).
        alpha: α in [-∞, ∞]: -1 arithmetic mixture (GKD, DistiLLM), 1 geometric (TAID).
        lam: λ in [0, 1], the weight of the teacher in the assistant.
        temperature: divides both logits, positive.
        detach_assistant: hold r constant in the gradient, as TAID does; with "qr" or "rq" only.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown order, α NaN, λ outside [0, 1], a temperature that is not positive,
            or a detached assistant in an order where nothing else depends on the student.

    Example:
        >>> import numpy as np, amidmath as am
        >>> loss = am.AMiD(am.KL(), order="pr", alpha=-1.0, lam=0.1)
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> value, grad = loss.value_and_grad(student, teacher)
        >>> print(f"{value:.5f}", grad[0].round(4))
        0.09297 [-0.0863  0.0288  0.0288  0.0288]
    """

    divergence: Divergence = field(default_factory=KL)
    order: str = "pr"
    alpha: float = -1.0
    lam: float = 0.1
    temperature: float = 1.0
    detach_assistant: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.divergence, Divergence):
            raise TypeError(
                "divergence must be a Divergence such as am.KL() or am.AlphaBeta(0.2, 0.7), "
                f"got {self.divergence!r}"
            )
        _checks.choice("order", self.order, ORDERS)
        set_field = object.__setattr__
        set_field(self, "alpha", _checks.number("alpha", self.alpha, finite=False))
        set_field(self, "lam", _checks.weight("lam", self.lam))
        set_field(self, "temperature", _checks.number("temperature", self.temperature))
        if self.temperature <= 0.0:
            raise ValueError(f"temperature must be positive, got {self.temperature!r}")
        if self.detach_assistant and self.order in ("pr", "rp"):
            raise ValueError(
                f"detach_assistant=True leaves order {self.order!r} without a gradient: only the "
                "assistant depends on the student there; use order 'qr' or 'rq'"
            )

    def __call__(
        self,
        student_logits: Array,
        teacher_logits: Array,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
    ) -> Array:
        """The loss of a batch, differentiable with respect to both logits.

        Args:
            student_logits: shape (..., V), real floating dtype.
            teacher_logits: shape (..., V), same library and device.
            mask: shape (...), boolean or 0/1; positions that are False or 0 are left out, and
                never read. None keeps all.
            reduction: "mean" over the positions kept, "sum", or "none" for one value a position
                (0 where left out).
            denominator: what the sum is divided by instead of the number of positions kept, a
                number or a scalar array; for "mean" only (gradient accumulation, data parallel).

        Returns:
            A scalar array, or shape (...) for "none", in float32 (float64 if an input is). 0 when
            no position is kept.

        Raises:
            TypeError: not arrays, of different libraries, or of a wrong dtype.
            ValueError: shapes or devices that differ, an unknown reduction, or a denominator
                without reduction "mean".
        """
        operands, shape, xp = self._operands(student_logits, teacher_logits, mask)
        scale = _scale(reduction, denominator, operands, xp)
        values = _dispatch.apply(RowForm(self._block), -1, *operands)
        return _reduce(values, scale, reduction, shape, xp)

    def value_and_grad(
        self,
        student_logits: Array,
        teacher_logits: Array,
        mask: Array | None = None,
        reduction: str = "mean",
        denominator: Any = None,
    ) -> tuple[Array, Array]:
        """The loss and its gradient with respect to the student logits, on any library.

        Args:
            student_logits: as for calling the loss; so are the other arguments.
            teacher_logits: same shape as the student's.
            mask: positions to keep.
            reduction: "mean", "sum" or "none".
            denominator: divides the sum, for "mean".

        Returns:
            The value, and d value/d student_logits in the shape and dtype of the student logits;
            for "none", the gradient of each position's value.

        Raises:
            TypeError: as for calling the loss.
            ValueError: as for calling the loss.
        """
        operands, shape, xp = self._operands(student_logits, teacher_logits, mask)
        scale = _scale(reduction, denominator, operands, xp)
        x, y, *keep = operands
        dtype = _checks.computing_dtype(xp, x, y)
        row_scale = None if scale is None else xp.zeros_like(x[:, 0], dtype=dtype) + scale
        values, grads = _dispatch.value_and_partials(
            RowForm(self._block), (True, False), x, y, keep[0] if keep else None, row_scale
        )
        value = _reduce(values, scale, reduction, shape, xp)
        return value, xp.reshape(grads[0], student_logits.shape)

    def _operands(
        self, student_logits: Array, teacher_logits: Array, mask: Array | None
    ) -> tuple[tuple[Array, ...], tuple[int, ...], Namespace]:
        named = {"student_logits": student_logits, "teacher_logits": teacher_logits}
        xp = _checks.namespace(**named)
        _checks.real_floating(xp, **named)
        _checks.same_shape(**named)
        _checks.same_device(**named)
        if student_logits.ndim == 0 or student_logits.shape[-1] == 0:
            raise ValueError(
                "student_logits must have a last axis over the vocabulary, "
                f"got shape {tuple(student_logits.shape)}"
            )
        shape = student_logits.shape[:-1]
        flat = (-1, student_logits.shape[-1])
        operands = (xp.reshape(student_logits, flat), xp.reshape(teacher_logits, flat))
        if mask is None:
            return operands, shape, xp
        _checks.namespace(student_logits=student_logits, mask=mask)
        if mask.shape != shape:
            raise ValueError(
                f"mask must have the shape of the positions, {tuple(shape)}, "
                f"got {tuple(mask.shape)}"
            )
        _checks.same_device(student_logits=student_logits, mask=mask)
        if not xp.isdtype(mask.dtype, ("bool", "integral")):
            raise TypeError(f"mask must be boolean or 0/1 integers, got dtype {mask.dtype}")
        return (*operands, xp.reshape(xp.astype(mask, xp.bool), (-1,))), shape, xp

    def _block(
        self, student: Array, teacher: Array, *, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Rows of logits to rows of values and gradients; docs: gradients, G1 to G4."""
        student, teacher = student / self.temperature, teacher / self.temperature
        log_q, log_p, ratio = _log_softmax_pair(student, teacher, xp)
        k, lam = exponent(self.alpha), self.lam
        over_p, over_q, pi, w = mixture_ratios(ratio, k, lam, exp_limit(xp, student), xp)
        log_r = log_mixture(log_p, log_q, over_p, over_q, k, lam, xp)
        if self.alpha != -1.0 and 0.0 < lam < 1.0:
            log_z = _log_normalizer(log_r, *((log_q, over_q) if lam < 0.5 else (log_p, over_p)), xp)
            exists = log_z > -xp.inf
            log_z = xp.where(exists, log_z, 0.0)
            log_r, over_p, over_q = log_r - log_z, over_p - log_z, over_q - log_z
        else:
            exists = None

        source, over = (log_p, over_p) if "p" in self.order else (log_q, over_q)
        assistant_first = self.order[0] == "r"
        arguments = (log_r, source, over) if assistant_first else (source, log_r, -over)
        value, partials = self.divergence.evaluate(*arguments, any(needs), xp)
        if exists is not None:
            value = xp.where(exists[..., 0], value, xp.inf)
        if partials is None:
            return value, (None, None)
        by_r, by_source = partials if assistant_first else partials[::-1]
        if self.detach_assistant:
            through_r = xp.zeros_like(by_r)
        else:
            through_r = by_r - xp.exp(log_r) * xp.sum(by_r, axis=-1, keepdims=True)
        grads: list[Array | None] = []
        for need, side, log_side, share in zip(needs, "qp", (log_q, log_p), (w, pi), strict=True):
            if not need:
                grads.append(None)
                continue
            c = share * through_r + (by_source if side in self.order else 0.0)
            grad = c - xp.exp(log_side) * xp.sum(c, axis=-1, keepdims=True)
            grads.append(grad / self.temperature)
        return value, tuple(grads)


def _log_softmax_pair(student: Array, teacher: Array, xp: Namespace) -> tuple[Array, Array, Array]:
    """Return log q, log p, and log(p/q) to the precision of the difference of the logits.

    The constant in the log ratio comes from two normalisers, each rounded; that it makes Σ(q - p)
    vanish gives it back to full relative precision. Docs: stable evaluation, S5.
    """
    log_zq, log_q = log_sum_exp(student, -1, xp)
    log_zp, log_p = log_sum_exp(teacher, -1, xp)
    _, _, ratio = shared_support(student, teacher, (teacher - student) - (log_zp - log_zq), xp)
    off = xp.sum(exp_difference(log_q, log_p, -ratio, xp), axis=-1, keepdims=True)
    return log_q, log_p, ratio + xp.log1p(off)


def _log_normalizer(log_r: Array, log_source: Array, over_source: Array, xp: Namespace) -> Array:
    """Return log Z of an unnormalised mixture, from its differences to a source (docs: M7)."""
    excess = xp.sum(exp_difference(log_r, log_source, over_source, xp), axis=-1, keepdims=True)
    # Z itself may underflow, where teacher and student have almost nothing in common.
    log_total, _ = log_sum_exp(log_r, -1, xp)
    return log_near_one(excess, log_total, xp)


def _scale(
    reduction: str, denominator: Any, operands: tuple[Array, ...], xp: Namespace
) -> Array | float | None:
    """What each position's value counts in the result: 1/denominator, None for 1."""
    _checks.choice("reduction", reduction, REDUCTIONS)
    if reduction != "mean":
        if denominator is not None:
            raise ValueError(
                f"denominator goes with reduction 'mean', got reduction {reduction!r} "
                f"and denominator {denominator!r}"
            )
        return None
    dtype = _checks.computing_dtype(xp, *operands[:2])
    if denominator is None:
        if len(operands) == 2:
            return 1.0 / max(1, operands[0].shape[0])
        count = xp.astype(xp.sum(xp.astype(operands[2], xp.int32)), dtype)
        return 1.0 / xp.where(count > 0.0, count, 1.0)
    if isinstance(denominator, numbers.Real) and not isinstance(denominator, bool):
        if not float(denominator) > 0.0:
            raise ValueError(f"denominator must be positive, got {denominator!r}")
        return 1.0 / float(denominator)
    _checks.scalar_array(student_logits=operands[0], denominator=denominator)
    return 1.0 / xp.astype(denominator, dtype)


def _reduce(
    values: Array,
    scale: Array | float | None,
    reduction: str,
    shape: tuple[int, ...],
    xp: Namespace,
) -> Array:
    if reduction == "none":
        return xp.reshape(values, shape)
    total = xp.sum(values)
    return total if scale is None else total * scale
