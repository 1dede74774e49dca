"""Means by their textbook formula, over mpmath numbers. Divergences bring their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mpmath
from mpmath import mp

if TYPE_CHECKING:
    from collections.abc import Sequence

Number = Any


def log_mean(logs: Sequence[Number], weights: Sequence[Number], alpha: Number) -> Number:
    """log of the f_α-mean (Σ λ x^k)^(1/k), k = (1-α)/2, of x = exp(logs), and its limits.

    A source may be zero, log x = -inf: the mean is then zero for k <= 0.
    """
    pairs = [(u, w) for u, w in zip(logs, weights, strict=True) if w != 0]
    positive = [(u, w) for u, w in pairs if u != -mpmath.inf]
    if not positive or (len(positive) < len(pairs) and alpha >= 1):
        return -mpmath.inf
    if mpmath.isinf(alpha):
        return (min if alpha > 0 else max)(u for u, _ in positive)
    k = (1 - alpha) / 2
    if k == 0:
        return mp.fsum(w * u for u, w in positive)
    return mp.log(mp.fsum(w * mp.exp(k * u) for u, w in positive)) / k


def log_sum(logs: Sequence[Number]) -> Number:
    """log Σ exp(logs), -inf if all of them are."""
    finite = [u for u in logs if u != -mpmath.inf]
    return mp.log(mp.fsum(mp.exp(u) for u in finite)) if finite else -mpmath.inf
