"""Distillation losses as Optax has its losses, for a training loop of one's own in JAX.

    >>> import jax.numpy as jnp
    >>> from amidmath.integrations.plugins.jax_losses import am_loss
    >>> student, teacher = jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4))
    >>> am_loss(student, teacher, loss="distillm", skew=0.1).shape
    (2, 3)

Predictions first, then targets; ``axis`` and ``where`` as in ``optax.losses``; one value an example
and no reduction. Beneath is :class:`amidmath.Loss`, so they work under ``jax.jit``, ``jax.grad``,
``jax.vmap`` and ``jax.shard_map``. docs: jax-plugins.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import amidmath as am
from amidmath.backends.jax_backend.derivatives import quiet


def am_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    loss: str | am.Loss = "amid",
    **parameters: Any,
) -> jax.Array:
    """A distillation loss of every example, in nats.

    The gradient is the loss's closed form, for both logits. Reducing is the caller's:
    ``jnp.mean(values, where=where)``; or ``values.sum() / jnp.maximum(where.sum(), 1)``, which is 0
    and not NaN where nothing counts.

    Args:
        student_logits: unnormalized log-probabilities, the tokens along ``axis``.
        teacher_logits: the targets, same shape.
        axis: the axis of the tokens.
        where: what counts, boolean or 0/1 integers: examples, in the shape of the result; or
            tokens, in the shape of the logits. Examples left out give 0, and are never read.
            Tokens left out take no part, as if both logits were -inf there.
        loss: the name of a method in ``am.methods.METHODS``, or a loss such as
            ``am.AMiD(am.Renyi(2.0), order="qr")``.
        **parameters: the method's. Numbers are part of what ``jax.jit`` compiles; those that may be
            arrays (α, λ, skews) can change without. A temperature that changes divides both logits
            beforehand.

    Returns:
        The values, in the shape of the logits without ``axis``. float32 (float64 if the logits
        are), whatever half precision the logits have.

    Raises:
        TypeError: logits of a wrong dtype, a loss that is neither a name nor a loss, or parameters
            that do not go with it.
        ValueError: shapes that do not fit, an axis that is not there, an unknown method, or a
            parameter out of its range.

    Example:
        >>> import jax, jax.numpy as jnp
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
    """
    chosen = chosen_loss(loss, parameters)
    student, teacher = jnp.asarray(student_logits), jnp.asarray(teacher_logits)
    if student.shape != teacher.shape:
        raise ValueError(
            "student_logits and teacher_logits must have the same shape, "
            f"got {student.shape} and {teacher.shape}"
        )
    if not isinstance(axis, int) or not -student.ndim <= axis < student.ndim:
        raise ValueError(
            f"axis must be an integer in [{-student.ndim}, {student.ndim - 1}] for student_logits "
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
        values: jax.Array = chosen(student, teacher, keep, "none")
    return values


def am_loss_from_hidden(
    student_hidden: ArrayLike,
    student_head: ArrayLike | am.Head,
    teacher_hidden: ArrayLike,
    teacher_head: ArrayLike | am.Head,
    where: ArrayLike | None = None,
    *,
    loss: str | am.Loss = "amid",
    reduction: str = "none",
    vocab: str = "strict",
    labels: ArrayLike | None = None,
    label_weight: float = 1.0,
    chunk_rows: int | None = None,
    **parameters: Any,
) -> jax.Array:
    """A distillation loss from hidden states and heads; the logits are never whole.

    The values of :func:`am_loss` on the logits, at a cost in memory that does not depend on
    positions × vocabulary. One value a position costs one more multiplication by the heads, in the
    backward pass, than "mean" and "sum".

    Args:
        student_hidden: shape (..., H_s): after the last norm, before the output layer.
        student_head: its weight, shape (V, H_s), or an ``am.Head`` (soft cap, bias, scale). A
            Flax ``Linear`` keeps the transpose, ``kernel.T``; a tied head is the embedding.
        teacher_hidden: shape (..., H_t), the same positions. The teacher's side is constant.
        teacher_head: its weight, shape (V, H_t), or a Head.
        where: positions that count, in the shape of the positions; others are 0 and never read.
        loss: the name of a method in ``am.methods.METHODS``, or a loss.
        reduction: "none", "mean" over the positions that count (0 if none does), or "sum".
        vocab: "strict", or "common" for vocabularies that share their first tokens only.
        labels: shape (...), integers; adds ``label_weight`` times their cross-entropy to every
            position whose label is not -100.
        label_weight: what the cross-entropy counts.
        chunk_rows: positions whose logits are held at a time; None for as many as fit a budget.
        **parameters: the method's.

    Returns:
        The values in the shape of the positions, or a scalar; in float32 (float64 if an input is).

    Raises:
        TypeError: arrays of a wrong dtype, or as for :func:`am_loss`.
        ValueError: shapes that do not fit, an unknown method or reduction, or a parameter out of
            its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from amidmath.integrations.plugins.jax_losses import am_loss, am_loss_from_hidden
        >>> hidden, head = jnp.eye(2, 3), jax.random.normal(jax.random.key(0), (5, 3))
        >>> teacher, teacher_head = jnp.eye(2, 4), jax.random.normal(jax.random.key(1), (5, 4))
        >>> values = am_loss_from_hidden(hidden, head, teacher, teacher_head, loss="reverse_kl")
        >>> whole = am_loss(hidden @ head.T, teacher @ teacher_head.T, loss="reverse_kl")
        >>> bool(jnp.allclose(values, whole, rtol=1e-5))
        True
    """
    hidden = jnp.asarray(student_hidden)
    values: jax.Array = chosen_loss(loss, parameters).linear(
        hidden,
        _head(student_head),
        jnp.asarray(teacher_hidden),
        _head(teacher_head),
        None if where is None else _mask(where, hidden.shape[:-1]),
        reduction,
        vocab=vocab,
        labels=None if labels is None else jnp.asarray(labels),
        label_weight=label_weight,
        chunk_rows=chunk_rows,
    )
    return values


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
    """What counts, as booleans of one of the shapes."""
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


def _head(head: ArrayLike | am.Head) -> Any:
    return head if isinstance(head, am.Head) else jnp.asarray(head)
