"""Tunix's distillation with these losses: a strategy for its ``DistillationTrainer``.

    strategy = AMiDStrategy(forward, forward, next_token_labels, "distillm", skew=0.1)
    DistillationTrainer(student, teacher, strategy, optax.adamw(1e-4), config).train(batches)

Beside the losses it differs from Tunix's ``LogitStrategy`` in that the means are over the positions
that count, and in that forward functions may give :class:`amidmath.Hidden`, so that logits are
never whole. Needs google-tunix. docs: jax-plugins.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

try:
    import optax
    from tunix.distillation.strategies.base_strategy import (  # type: ignore[import-not-found]
        BaseStrategy,  # pyright: ignore[reportMissingImports]
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "amidmath.integrations.plugins.tunix_strategy needs google-tunix, and there is no "
        f"{error.name}: pip install google-tunix (it has other versions of transformers and "
        "safetensors than amidmath[distill-jax], so into an environment without that)",
        name=error.name,
    ) from error

import amidmath as am
from amidmath.arrays import checks
from amidmath.integrations.common.recipe.measures import KL_TO_TEACHER, SAMPLE, TOTAL_VARIATION
from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.jax_loop.loss.objective import sampled
from amidmath.integrations.plugins.jax_losses import chosen_loss

Output = jax.Array | am.Hidden
Metrics = dict[str, jax.Array]


def next_token_labels(input_tokens: jax.Array, input_mask: jax.Array, **_: Any) -> jax.Array:
    """Labels for next-token prediction from what Tunix's trainer gives by default.

    Args:
        input_tokens: shape (B, L).
        input_mask: shape (B, L), which tokens are learned: 0 for padding, and for prompts that are
            not learned. As in Tunix's own fine-tuning, a position counts by the token after it.

    Returns:
        Shape (B, L): the next token of every position, -100 where it is not learned and at the end.
    """
    learned = jnp.where(input_mask.astype(bool), input_tokens, NO_LABEL)
    return jnp.pad(learned[:, 1:], ((0, 0), (0, 1)), constant_values=NO_LABEL)


class AMiDStrategy(BaseStrategy):  # type: ignore[misc]
    """Distillation by any loss of amidmath, in Tunix.

    The loss is ``loss`` + ``label_weight`` · cross-entropy, each a mean over the positions that
    count; 0 if none does. Which ones count is said by the labels, which are all that Tunix passes
    on beside the models' outputs: a position without a label is left out of both terms and of every
    metric, and never read, whatever it holds.

    ``LogitStrategy(temperature=T, alpha=a)`` is ``loss=a * T**2 * am.methods.kl(T)`` and
    ``label_weight=1 - a``, but for that.

    Args:
        student_forward_fn: ``f(model, **inputs)``, the student's logits (..., V), or its
            :class:`amidmath.Hidden`.
        teacher_forward_fn: the teacher's, of the same kind.
        labels_fn: ``f(**inputs)``, the target of every position: integers (...), -100 for none,
            such as :func:`next_token_labels`; or distributions over the tokens (..., V) such as
            one-hot rows, all zeros for none (as MaxText makes them), for logits only.
        loss: the name of a method in ``am.methods.METHODS``, or a loss.
        label_weight: what the cross-entropy with the labels counts; not negative.
        **parameters: the method's.

    Raises:
        TypeError: a loss that is neither a name nor a loss, or parameters that do not go with it.
        ValueError: an unknown method, a parameter out of its range, or a negative label weight.
    """

    def __init__(
        self,
        student_forward_fn: Callable[..., Any],
        teacher_forward_fn: Callable[..., Any],
        labels_fn: Callable[..., jax.Array],
        loss: str | am.Loss = "amid",
        label_weight: float = 0.0,
        **parameters: Any,
    ) -> None:
        super().__init__(student_forward_fn, teacher_forward_fn, labels_fn)
        self.loss = chosen_loss(loss, parameters)
        self.label_weight = checks.number("label_weight", label_weight)
        if self.label_weight < 0.0:
            raise ValueError(f"label_weight must not be negative, got {label_weight!r}")

    def compute_loss(
        self,
        student_output: Output,
        teacher_output: Output,
        labels: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a batch, and what to log.

        Args:
            student_output: logits (..., V), or hidden states.
            teacher_output: likewise; constant.
            labels: integers (...), or distributions (..., V).

        Returns:
            The loss, and, as means over up to 64 of the positions that count, spread over the
            batch: "distill/soft_loss", the distillation loss; "distill/hard_loss" and
            "distill/teacher_loss", the student's and the teacher's cross-entropy; "distill/kl_div",
            KL(teacher‖student) at temperature 1; "distill/overlap", Σ min(p, q).

        Raises:
            TypeError: logits of the one and hidden states of the other.
            ValueError: labels that do not fit.
        """
        mask = _counting(labels, student_output)
        value = _compared(
            self.loss, student_output, teacher_output, mask, labels, self.label_weight
        )
        return value, self._metrics(student_output, teacher_output, labels, mask)

    def compute_eval_loss(
        self, student_output: Output, labels: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The student's cross-entropy, a mean over the positions that count; no metrics.

        Args:
            student_output: logits (..., V), or hidden states.
            labels: integers (...), or distributions (..., V).

        Raises:
            ValueError: labels that do not fit.
        """
        mask = _counting(labels, student_output)
        return _cross_entropy(student_output, labels, mask), {}

    def _metrics(
        self,
        student_output: Output,
        teacher_output: Output,
        labels: jax.Array,
        mask: jax.Array,
    ) -> Metrics:
        chosen = sampled(mask).reshape(-1)
        size = min(SAMPLE, chosen.shape[0])
        (at,) = jnp.nonzero(chosen, size=size, fill_value=0)
        keep = jnp.arange(size) < jnp.sum(chosen)
        student, teacher = (_rows(output, at) for output in (student_output, teacher_output))
        targets = labels.reshape(-1, *labels.shape[mask.ndim :])[at]
        count = jnp.minimum(jnp.sum(chosen), 1)  # 0 where there is nothing to be close to
        return {
            "distill/soft_loss": _compared(self.loss, student, teacher, keep),
            "distill/hard_loss": _cross_entropy(student, targets, keep),
            "distill/kl_div": _compared(KL_TO_TEACHER, student, teacher, keep),
            "distill/teacher_loss": _cross_entropy(teacher, targets, keep),
            "distill/overlap": count - _compared(TOTAL_VARIATION, student, teacher, keep),
        }


def _counting(labels: jax.Array, output: Output) -> jax.Array:
    """Which positions have a label."""
    if isinstance(output, am.Hidden):
        shape, whole = output.states.shape[:-1], None
    else:
        shape, whole = output.shape[:-1], output.shape
    if labels.shape == shape and jnp.issubdtype(labels.dtype, jnp.integer):
        return labels != NO_LABEL
    if labels.shape == whole:
        return jnp.any(labels != 0, axis=-1)
    rows = "" if whole is None else f", or rows over the tokens of shape {whole}"
    raise ValueError(
        f"labels_fn must give integers of the shape of the positions, {shape}{rows}; "
        f"got shape {labels.shape} and dtype {labels.dtype}"
    )


def _rows(output: Output, at: jax.Array) -> Output:
    """Some of the positions, held constant."""
    output = jax.lax.stop_gradient(output)
    array = output.states if isinstance(output, am.Hidden) else output
    rows = array.reshape(-1, array.shape[-1])[at]
    return am.Hidden(rows, output.head) if isinstance(output, am.Hidden) else rows


def _compared(
    loss: am.Loss,
    student: Output,
    teacher: Output,
    mask: jax.Array,
    labels: jax.Array | None = None,
    label_weight: float = 0.0,
) -> jax.Array:
    """The mean of a loss over a mask, with so much of the cross-entropy."""
    if isinstance(student, am.Hidden) or isinstance(teacher, am.Hidden):
        hidden: jax.Array = loss(
            student,
            teacher,
            mask,
            labels=labels if label_weight else None,
            label_weight=label_weight,
        )
        return hidden
    value: jax.Array = loss(student, teacher, mask)
    if labels is not None and label_weight:
        value += label_weight * _cross_entropy(student, labels, mask)
    return value


def _cross_entropy(output: Output, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the cross-entropy over a mask, 0 if that is empty."""
    if isinstance(output, am.Hidden):
        # The divergence from itself is 0, and what is left is the cross-entropy, chunk by chunk.
        return _compared(KL_TO_TEACHER, output, output, mask, labels, 1.0)
    computing = jnp.promote_types(output.dtype, jnp.float32)
    # Rows left out may hold anything, and must not reach the gradient either.
    logits = jnp.where(mask[..., None], output.astype(computing), 0.0)
    if labels.ndim == logits.ndim:
        values = optax.safe_softmax_cross_entropy(logits, labels)
    else:
        targets = jnp.where(mask, labels, 0)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
