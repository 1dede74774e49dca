"""Distillation losses as Optax has its losses, for a training loop of one's own in JAX.

    >>> import jax.numpy as jnp
    >>> from amidmath.integrations.plugins.jax_losses import am_loss
    >>> student, teacher = jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4))
    >>> am_loss(student, teacher, loss="distillm", skew=0.1).shape
    (2, 3)

Predictions first, then targets; ``axis`` and ``where`` as in ``optax.losses``; one value an example
and no reduction unless it is asked for. Beneath is :class:`amidmath.Loss`, so they work under
``jax.jit``, ``jax.grad``, ``jax.vmap`` and ``jax.shard_map``. docs: jax-plugins.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import amidmath as am
from amidmath.backends.jax_backend.derivatives import quiet


def am_loss(
    student: ArrayLike | am.Hidden,
    teacher: ArrayLike | am.Hidden | am.TopK,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    loss: str | am.Loss = "amid",
    reduction: str = "none",
    labels: ArrayLike | None = None,
    label_weight: float = 1.0,
    **parameters: Any,
) -> jax.Array:
    """A distillation loss of every example, in nats.

    The gradient is the loss's closed form, for both logits, or for hidden states and head of the
    student. Reducing is the caller's: ``jnp.mean(values, where=where)``; or
    ``values.sum() / jnp.maximum(where.sum(), 1)``, which is 0 and not NaN where nothing counts.
    From hidden states, ``reduction`` "mean" and "sum" save one multiplication by the heads, in the
    backward pass.

    Args:
        student: unnormalized log-probabilities, the tokens along ``axis``; or hidden states with
            their head, whose logits are never whole. A Flax ``Linear`` keeps the transpose of a
            head's weight, ``kernel.T``; a tied head is the embedding.
        teacher: the targets, at the same positions; beside hidden states or lists it is constant.
        axis: the axis of the tokens of logits on both sides.
        where: what counts, boolean or 0/1 integers: examples, in the shape of the result; or
            tokens, in the shape of the logits. Examples left out give 0, and are never read.
            Tokens left out take no part, as if both logits were -inf there.
        loss: the name of a method in ``am.methods.METHODS``, or a loss such as
            ``am.AMiD(am.Renyi(2.0), order="qr")``.
        reduction: "none", "mean" over the examples that count (0 if none does), or "sum".
        labels: integers in the shape of the examples; adds ``label_weight`` times their
            cross-entropy to every example whose label is not -100.
        label_weight: what the cross-entropy counts.
        **parameters: the method's. Numbers are part of what ``jax.jit`` compiles; those that may be
            arrays (α, λ, skews) can change without. A temperature that changes divides both logits
            beforehand.

    Returns:
        The values, in the shape of the logits without ``axis``, or a scalar. float32 (float64 if
        the logits are), whatever half precision the logits have.

    Raises:
        TypeError: logits of a wrong dtype, a loss that is neither a name nor a loss, or parameters
            that do not go with it.
        ValueError: shapes that do not fit, an axis that is not there, an unknown method or
            reduction, or a parameter out of its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import amidmath as am
        >>> from amidmath.integrations.plugins.jax_losses import am_loss
        >>> student, teacher = jnp.zeros((3, 4)), jnp.eye(3, 4)
        >>> where = jnp.array([True, True, False])
        >>> values = am_loss(student, teacher, where=where, alpha=-1.0, lam=0.1)
        >>> [f"{value:.4f}" for value in values]
        ['0.0930', '0.0930', '0.0000']
        >>> grad = jax.grad(lambda s: am_loss(s, teacher, where=where).sum())(student)
        >>> print(grad[1:].round(4))
        [[ 0.0575 -0.1726  0.0575  0.0575]
         [ 0.      0.      0.      0.    ]]
        >>> hidden = am.Hidden(jnp.eye(3, 2), head=jax.random.normal(jax.random.key(0), (4, 2)))
        >>> am_loss(hidden, teacher, loss="reverse_kl").shape
        (3,)
    """
    chosen = chosen_loss(loss, parameters)
    labelled: dict[str, Any] = {"label_weight": label_weight}
    if labels is not None:
        labelled["labels"] = jnp.asarray(labels)
    student, teacher = _input(student), _input(teacher)
    if not (isinstance(student, jax.Array) and isinstance(teacher, jax.Array)):
        if axis != -1:
            raise ValueError(f"axis goes with logits on both sides, got axis {axis!r}")
        states: Any = student.states if isinstance(student, am.Hidden) else student
        keep = None if where is None else _mask(where, states.shape[:-1])
        values: jax.Array = chosen(student, teacher, keep, reduction, **labelled)
        return values
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {student.shape} and {teacher.shape}"
        )
    if not isinstance(axis, int) or not -student.ndim <= axis < student.ndim:
        raise ValueError(
            f"axis must be an integer in [{-student.ndim}, {student.ndim - 1}] for student "
            f"of shape {student.shape}, got {axis!r}"
        )
    whole = student.shape
    student, teacher = jnp.moveaxis(student, axis, -1), jnp.moveaxis(teacher, axis, -1)
    keep = None if where is None else _mask(where, student.shape[:-1], whole)
    with quiet():  # infinities that stand for tokens left out are none of the caller's
        if keep is not None and keep.shape == whole:
            counted = jnp.moveaxis(keep, axis, -1)
            student, teacher = (jnp.where(counted, x, -jnp.inf) for x in (student, teacher))
            keep = jnp.any(counted, axis=-1)
        reduced: jax.Array = chosen(student, teacher, keep, reduction, **labelled)
        return reduced


def _input(side: Any) -> Any:
    """Logits as an array of JAX's, other inputs as they are."""
    return side if isinstance(side, (am.Hidden, am.TopK)) else jnp.asarray(side)


def chosen_loss(loss: str | am.Loss, parameters: Mapping[str, Any]) -> am.Loss:
    """The loss itself, or that of a method with its parameters.

    Args:
        loss: a loss, or the name of a method in ``am.methods.METHODS``.
        parameters: the method's; none for a loss.

    Raises:
        TypeError: neither a name nor a loss, parameters beside a loss, or one that the method does
            not have.
        ValueError: an unknown method, one with a loss for each source of rows, or a parameter out
            of its range.
    """
    if isinstance(loss, am.Loss):
        if parameters:
            raise TypeError(
                f"parameters go with the name of a method, got {', '.join(parameters)} beside "
                f"loss={loss!r}"
            )
        return loss
    if not isinstance(loss, str):
        raise TypeError(
            "loss must be the name of a method or a loss such as am.AMiD(), "
            f"got {type(loss).__name__}: {loss!r}"
        )
    if loss not in am.methods.METHODS:
        raise ValueError(f"loss must be one of {', '.join(am.methods.METHODS)}, got {loss!r}")
    return am.methods.METHODS[loss].loss(**parameters)


def _mask(where: ArrayLike, *shapes: tuple[int, ...]) -> jax.Array:
    """The mask as booleans of one of the shapes."""
    mask = jnp.asarray(where)
    if mask.shape not in shapes:
        raise ValueError(
            f"where must have shape {' or '.join(map(str, shapes))}, that of the examples"
            f"{' or that of the logits' if len(shapes) > 1 else ''}; got {mask.shape}"
        )
    if not (mask.dtype == bool or jnp.issubdtype(mask.dtype, jnp.integer)):
        # A weight between 0 and 1 would count in full.
        raise TypeError(f"where must be boolean or 0/1 integers, got dtype {mask.dtype}")
    return mask.astype(bool)
