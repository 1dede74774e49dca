"""The probability of tokens that one of student and teacher has alone."""

from typing import Any

import torch

import amidmath as am
from amidmath.integrations.torch_loop.devices.shares import summed
from amidmath.integrations.torch_loop.loss.batch import Batch
from amidmath.integrations.torch_loop.loss.objective import sampled_positions
from amidmath.integrations.torch_loop.models.states import States, logits_of
from amidmath.integrations.torch_loop.teachers.cached import CachedTeacher
from amidmath.integrations.torch_loop.teachers.teachers import BaseStates, Reference, Teacher

_CHUNK_BYTES = 2**26


@torch.no_grad()
def outside_mass(reference: Any, common: int, mask: torch.Tensor) -> torch.Tensor:
    """The mean probability of the tokens outside of the common ones, over some positions.

    Args:
        reference: states of either side, hidden (..., H); or lists (..., k), whose tokens outside
            are counted as far as they are listed.
        common: how many first tokens are common.
        mask: shape (...), boolean, the positions; 0 if there are none.

    Returns:
        A scalar in float32.
    """
    return _outside_sum(reference, common, mask) / mask.sum().clamp(min=1)


class OutsideMass:
    """The mean probability outside of the common tokens, of teacher and student, over batches.

    Of a cache, only what is listed of a token outside counts: it is a lower bound.

    Args:
        teacher: the trainer's.
    """

    def __init__(self, teacher: Teacher) -> None:
        """Start with nothing seen."""
        # How many logits a cached teacher gave, and how many of them are common.
        self.of_cache = (0, 0)
        if isinstance(teacher, CachedTeacher):
            rows, size = teacher.rows, teacher.store.header.vocabulary
            self.of_cache = (size, size if rows.common is None else rows.common)
        self.sums: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def look(self, mode: str, student: States, reference: Reference, batch: Batch) -> None:
        """See the sampled positions of a batch.

        Args:
            mode: "train" or "eval", which are apart.
            student: the student's states.
            reference: the teacher's.
            batch: the rest.
        """
        if isinstance(reference, BaseStates):
            return  # the student's base model has the student's tokens
        ours = student.vocabulary
        if isinstance(reference, States):
            theirs = reference.vocabulary
            common = min(ours, theirs)
        else:
            theirs, common = self.of_cache
        if common == ours == theirs:
            return
        mask = sampled_positions(batch)
        sums = [_outside_sum(side, common, mask, True) for side in (reference, student)]
        found = torch.stack([*sums, mask.sum().float()])
        self.sums[mode] = self.sums[mode] + found if mode in self.sums else found

    def take(self, mode: str) -> dict[str, float]:
        """The means over all processes of what was seen in a mode since this was last called."""
        if mode not in self.sums:
            return {}
        teacher, student, count = summed(self.sums.pop(mode)).tolist()
        if not count:
            return {}
        return {"outside_teacher": teacher / count, "outside_student": student / count}


def _outside_sum(
    reference: Any, common: int, mask: torch.Tensor, taken_off: bool = False
) -> torch.Tensor:
    """As ``outside_mass``, added up over the positions.

    A token that ``CachedTeacher`` takes off a list keeps its place and probability; with
    ``taken_off`` it counts.
    """
    if isinstance(reference, am.TopK):
        logs, indices = reference.log_probs[mask].float(), reference.indices[mask]
        outside = (indices >= common) | ((indices < 0) & taken_off)
        return torch.where(outside, logs.exp(), 0.0).sum()
    hidden, vocabulary = reference.hidden[mask], reference.vocabulary
    step = max(1, _CHUNK_BYTES // (4 * vocabulary))
    total = torch.zeros((), device=hidden.device)
    if common < vocabulary:
        for part in hidden.split(step):
            logits = logits_of(part, reference.head).float()
            outside = logits[..., common:].logsumexp(-1) - logits.logsumexp(-1)
            total = total + outside.exp().sum()
    return total
