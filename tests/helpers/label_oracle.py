"""Cross-entropy of labels by definition, in mpmath."""

from __future__ import annotations

import mpmath
import numpy as np
from definitions import log_softmax


def cross_entropy(
    logits: np.ndarray, labels: np.ndarray, ignore_index: int = -100
) -> tuple[np.ndarray, np.ndarray]:
    """Values (N,) and gradients (N, V) of rows of logits; zeros where there is no label."""
    values, grads = np.zeros(len(logits)), np.zeros(logits.shape)
    for i, (row, label) in enumerate(zip(logits, labels, strict=True)):
        if label == ignore_index:
            continue
        logs = log_softmax([mpmath.mpf(float(v)) for v in row])
        values[i] = float(-logs[label])
        grads[i] = [float(mpmath.exp(u) - (j == label)) for j, u in enumerate(logs)]
    return values, grads
