"""Losses against top-k lists by definition: k + 1 outcomes, in mpmath."""

from __future__ import annotations

import mpmath
from definitions import log, log_sum
from differences import at_200_digits, loss_and_slopes, slope, states


def exact(row):
    return tuple(mpmath.mpf(float(v)) for v in row)


def bucketed(student, logs, indices, temperature=1.0):
    """The k + 1 logits of the student, and log-probabilities of the teacher."""
    pairs = [(mpmath.mpf(float(u)), int(i)) for u, i in zip(logs, indices, strict=True) if i >= 0]
    scaled = [v / mpmath.mpf(temperature) for v in student]
    chosen = [i for _, i in pairs]
    others = log_sum([v for i, v in enumerate(scaled) if i not in chosen])
    left = 1 - mpmath.fsum(mpmath.exp(u) for u, _ in pairs)
    return [*(scaled[i] for i in chosen), others], [*(u for u, _ in pairs), log(left)]


@at_200_digits
def truth(divergence, order, student, logs, indices, alpha, lam, temperature=1.0):
    """The loss of the k + 1 outcomes; its slopes by the V logits; and the scales of rounding."""

    def loss(point):
        outcomes = [v for side in bucketed(point, logs, indices, temperature) for v in side]
        named, _ = states((*outcomes, mpmath.mpf(alpha), mpmath.mpf(lam)))
        x, y = ([mpmath.exp(v) for v in named[side]] for side in order)
        return mpmath.re(divergence.definition(x, y, divergence.params, mpmath))

    outcomes = [v for side in bucketed(student, logs, indices, temperature) for v in side]
    whole = loss_and_slopes(divergence, order, (*outcomes, mpmath.mpf(alpha), mpmath.mpf(lam)))
    return whole, tuple(slope(loss, student, i) for i in range(len(student)))
