"""Cross-entropy with hard labels, by rows of logits."""

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.means import log_softmax


def cross_entropy(
    logits: Array, labels: Array, ignore_index: int, *, need: bool, xp: Namespace
) -> tuple[Array, Array | None]:
    """-log softmax(logits)[label] and its gradient, row by row.

    Args:
        logits: shape (N, V), float32 or float64.
        labels: shape (N,), integers. ``ignore_index`` gives 0; one that is no token gives NaN.
        ignore_index: what marks rows without a label.
        need: whether the gradient is wanted.
        xp: the namespace that computes.

    Returns:
        Values (N,), and the gradient (N, V) or None.
    """
    vocabulary = logits.shape[-1]
    token = xp.where((labels >= 0) & (labels < vocabulary), labels, -1)[:, None]
    ignored = (labels == ignore_index)[:, None]
    _, _, log_q = log_softmax(logits, -1, xp)
    picked = xp.take_along_axis(log_q, xp.where(token < 0, 0, token), axis=-1)
    # Where labels cannot be checked beforehand, a NaN says that one is wrong.
    value = xp.where(ignored, 0.0, xp.where(token < 0, xp.nan, -picked))[:, 0]
    if not need:
        return value, None
    index = xp.arange(vocabulary, device=libraries.device(logits))
    grad = xp.where(index == token, xp.expm1(log_q), xp.exp(log_q))
    return value, xp.where(ignored, 0.0, xp.where(token < 0, xp.nan, grad))
