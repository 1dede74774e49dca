"""Cross-entropy with hard labels, by rows of logits."""

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.means import log_softmax


def cross_entropy(
    logits: Array,
    labels: Array,
    ignore_index: int,
    *,
    need: bool,
    xp: Namespace,
    first: Array | int = 0,
    vocabulary: Array | int | None = None,
) -> tuple[Array, Array | None]:
    """-log softmax(logits)[label] and its gradient, row by row.

    Args:
        logits: shape (N, V), float32 or float64; or one row (V,), and all else without its N.
        labels: shape (N,), integers. ``ignore_index`` gives 0; one that is no token gives NaN.
        ignore_index: what marks rows without a label.
        need: whether the gradient is wanted.
        xp: the namespace that computes; one of all ranks for a part of the vocabulary.
        first: the token of the first logit, other than 0 in a part of the vocabulary.
        vocabulary: the size of the whole vocabulary, None for V.

    Returns:
        Values (N,), and the gradient (N, V) or None.
    """
    size = logits.shape[-1] if vocabulary is None else vocabulary
    token = xp.where((labels >= 0) & (labels < size), labels, -1)[..., None]
    ignored = (labels == ignore_index)[..., None]
    _, _, log_q = log_softmax(logits, -1, xp)
    labelled = xp.arange(logits.shape[-1], device=libraries.device(logits)) + first == token
    picked = xp.sum(xp.where(labelled, log_q, 0.0), axis=-1, keepdims=True)
    # Where labels cannot be checked beforehand, a NaN says that one is wrong.
    value = xp.where(ignored, 0.0, xp.where(token < 0, xp.nan, -picked))[..., 0]
    if not need:
        return value, None
    grad = xp.where(labelled, xp.expm1(log_q), xp.exp(log_q))
    return value, xp.where(ignored, 0.0, xp.where(token < 0, xp.nan, grad))
