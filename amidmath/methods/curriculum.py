"""DistiLLM-2's curriculum: how its skews and weights change over training."""

from typing import Any

from amidmath.arrays import checks, libraries
from amidmath.arrays.annotations import Array
from amidmath.methods.method import between

# The code's: keeps the quotient finite, and the mixture from being the student's alone.
_OFFSET, _SMALLEST = 1e-5, 0.01


def distillm2_skew(gap: float | Array, anchor: float | Array, base: float = 0.1) -> float | Array:
    """DistiLLM-2's skew of each response, 1 - (1 - c₀) anchor/gap within [0.01, c₀].

    To first order p log(p/m) is (1-c)(p - q) for the mixture m with the skew c. The rule keeps
    (1-c) gap at (1-c₀) anchor, so that every response pulls as much as the average one with c₀:
    easy responses, whose gap is small, get a small skew. The code adds 1e-5 to the gap, and is
    0/0 or ±inf where that makes 0; here it gives c₀. In the published code the rule is off.

    Source: DistiLLM-2 (arXiv 2503.07067), its code; docs: methods, N6.

    Args:
        gap: of each response, exp of the mean of log p over its tokens less exp of the mean of
            log q for the teacher's responses, q less p for the student's; a number or an array.
        anchor: the mean gap at the start of training, a number or an array of that shape.
        base: c₀ in [0.01, 1], the skew of a response whose gap is large.

    Returns:
        The skews, a float or an array.

    Raises:
        TypeError: ``base`` that is not a number, or others that are neither numbers nor arrays.
        ValueError: ``base`` outside [0.01, 1].

    Example:
        >>> import numpy as np, amidmath as am
        >>> print(am.methods.distillm2_skew(np.array([0.01, 0.3, 0.5]), anchor=0.3).round(4))
        [0.01 0.1  0.1 ]
    """
    base = between("distillm2_skew's base", base, _SMALLEST, 1.0)
    name, other = "distillm2_skew's gap", "distillm2_skew's anchor"
    gap = checks.real(name, gap)
    size: Any = gap + _OFFSET
    if not checks.is_array(gap):
        anchor = checks.number(other, anchor)
        gain = (1.0 - base) * anchor / size if size != 0.0 else 0.0
        return min(max(1.0 - gain, _SMALLEST), base)
    anchor = checks.real(other, anchor, like=(name, gap))
    xp = libraries.array_namespace(gap)
    zero = size == 0.0
    gain = xp.where(zero, 0.0, (1.0 - base) * anchor / xp.where(zero, 1.0, size))
    return xp.clip(1.0 - gain, min=_SMALLEST, max=base)


def distillm2_beta(progress: float) -> float:
    """DistiLLM-2's weight β of the student's rows: from 1 to 1.5 over the first half of training.

    Source: DistiLLM-2 (arXiv 2503.07067), its code's ``gradual_beta``; docs: methods, N6.

    Args:
        progress: the share of the steps that are done, in [0, 1].

    Raises:
        TypeError: not a number.
        ValueError: outside [0, 1].

    Example:
        >>> import amidmath as am
        >>> [am.methods.distillm2_beta(progress) for progress in (0.0, 0.25, 0.75)]
        [1.0, 1.25, 1.5]
    """
    return 1.0 + 0.5 * min(1.0, 2.0 * between("distillm2_beta's progress", progress, 0.0, 1.0))
