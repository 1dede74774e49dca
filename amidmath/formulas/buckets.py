"""Unequal vocabularies: what only one side has becomes one token of both."""

from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.means import log_sum_exp


def fold(logits: Array, common: int, xp: Namespace) -> Array:
    """The first ``common`` logits and a last one for all others together.

    That is the logsumexp of the others, so the softmax of the result is that of the logits with
    the others' probabilities added up; -inf where there are none.

    Args:
        logits: shape (N, V), V >= common.
        common: how many tokens both vocabularies share.
        xp: the namespace that computes.

    Returns:
        Shape (N, common + 1).
    """
    shared, outside = logits[:, :common], logits[:, common:]
    if outside.shape[-1] == 0:
        bucket = xp.full_like(logits[:, :1], -xp.inf)
    else:
        bucket, _ = log_sum_exp(outside, -1, xp)
    return xp.concat((shared, bucket), axis=-1)


def unfold(grad: Array, logits: Array, common: int, xp: Namespace) -> Array:
    """The gradient by the logits from that by their :func:`fold`.

    ∂logsumexp/∂logit is the logit's probability among those in the bucket.

    Args:
        grad: shape (N, common + 1).
        logits: what was folded, shape (N, V).
        common: as it was folded.
        xp: the namespace that computes.

    Returns:
        Shape (N, V).
    """
    outside = logits[:, common:]
    if outside.shape[-1] == 0:
        return grad[:, :common]
    total, within = log_sum_exp(outside, -1, xp)
    share = xp.where(total > -xp.inf, xp.exp(within), 0.0)
    bucket = xp.where(total > -xp.inf, grad[:, common:], 0.0)
    return xp.concat((grad[:, :common], bucket * share), axis=-1)
