"""Measures of a batch beside its loss: distances to the teacher at some positions."""

from dataclasses import replace

import amidmath as am

# At λ = 0 the assistant is the student itself.
KL_TO_TEACHER = am.AMiD(am.KL(), order="pr", lam=0.0)

TOTAL_VARIATION = am.AMiD(am.TotalVariation(), order="pr", lam=0.0)

SAMPLE = 64
"""At so many positions of a batch, at most, are KL and overlap looked at for the log."""


def to_reference(loss: am.AMiD, reference: object, temperature: float) -> am.AMiD:
    """A measure of the distance to a reference.

    Args:
        loss: ``KL_TO_TEACHER`` or ``TOTAL_VARIATION``.
        reference: what the teacher says.
        temperature: of a teacher's lists, which tell of that one only.
    """
    return replace(loss, temperature=temperature) if isinstance(reference, am.TopK) else loss
