"""Whether logarithms are those of probabilities."""

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array, Namespace
from amidmath.arrays.checks import computing_dtype
from amidmath.arrays.dispatch import at_hand
from amidmath.arrays.kinds import eps
from amidmath.rows.forms import rows_per_chunk

TOLERANCE = 1e-3


def mass(log_x: Array, axis: int, tolerance: float, xp: Namespace) -> tuple[Array, Array]:
    """Σ exp(log x) along an axis, and where it is further from 1 than the tolerance, or NaN."""
    # A rounded logarithm of size s moves its probability by eps·s.
    allowed = max(tolerance, 4.0 * eps(log_x, xp) ** 0.5)
    wide = xp.astype(log_x, computing_dtype(xp, log_x), copy=False)
    total = xp.sum(xp.exp(xp.where(wide <= 1.0, wide, 1.0)), axis=axis)
    return total, ~(xp.abs(total - 1.0) <= allowed)


def check_normalized(**rows: Array) -> None:
    """Raise ValueError unless the rows of logarithms each sum to 1, where values are at hand."""
    for name, log_x in rows.items():
        if not at_hand(log_x):
            continue
        xp = libraries.array_namespace(log_x)
        step = rows_per_chunk(log_x)
        for start in range(0, log_x.shape[0], step):
            part = log_x[start : min(start + step, log_x.shape[0]), :]
            total, off = mass(part, -1, TOLERANCE, xp)
            if int(xp.sum(xp.astype(off, xp.int32))):
                worst = float(total[int(xp.argmax(xp.astype(off, xp.int32)))])
                raise ValueError(
                    f"{name} must be logarithms of probabilities that sum to 1 along the axis, "
                    f"got a sum of {worst:.6g}; pass log_softmax(logits), or use a divergence of "
                    "measures such as GeneralizedKL or AlphaBeta"
                )
